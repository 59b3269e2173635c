"""The one exception that a user is meant to read, and how to tell that memory ran out."""


class MinicosError(Exception):
    """Bad input: the message says in one line what is wrong, what was expected and what to do.

    The command line prints it and exits with code 2; in Python it is raised as it is.
    """


class CannotRun(MinicosError):
    """An experiment asks for what this model, or this machine, does not have: others can be run all the same."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that a GPU or the host has no memory left. torch, which has names of its own, is not imported."""
    words = "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def memory_advice(error: BaseException) -> str:
    """What the user is told when memory ran out."""
    reason = (str(error).splitlines() or [""])[0]
    advice = "close other programs (nvidia-smi names those on a GPU), or take a machine with more of it"
    return f"out of memory: {advice}; of a model with a minicos.json, lower `batch` or `frames`. {reason}"
