"""The one error type that a person, not a bug, causes."""


class UserError(ValueError):
    """Something that was asked for cannot be done.

    The message is one line that says what is wrong and what to do; commands print it and exit with code 2.
    """
