"""The two errors that every room knows."""


class UserError(Exception):
    """Something a person can mend: its text is one line that says what is wrong and what to do.

    The command line prints it and exits with code 2.
    """


class DecodeError(ValueError):
    """These bytes are no message of ours. The text says what was wrong, never more than a line."""
