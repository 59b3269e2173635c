"""The one exception that a user is meant to read."""


class MinicosError(Exception):
    """Bad input: the message says in one line what is wrong, what was expected and what to do.

    The command line prints it and exits with code 2; in Python it is raised as it is.
    """


class NotTrained(MinicosError):
    """The model was trained on none of the tasks that are asked for."""
