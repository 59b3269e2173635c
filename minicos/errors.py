"""The one exception that a user is meant to read, and how to tell that memory ran out."""


class MinicosError(Exception):
    """Bad input: the message says in one line what is wrong, what was expected and what to do.

    The command line prints it and exits with code 2; in Python it is raised as it is.
    """


class NotTrained(MinicosError):
    """The model was trained on none of the tasks that are asked for."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that a GPU or the host has no memory left. torch, which has names of its own, is not imported."""
    words = "can't allocate memory", "not enough memory"
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
