"""Errors that a person, not a bug, causes."""


class UserError(ValueError):
    """Something that was asked for cannot be done.

    The message is one line that says what is wrong and what to do; commands print it and exit with code 2.
    """


class OutOfReachError(UserError):
    """A contender cannot be had as it was asked for: a budget that a policy never spends, a control that it
    cannot undergo. A study keeps that as a result.
    """
