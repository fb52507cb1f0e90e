"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input: the message is one sentence that says what is wrong and what to do.

    The tools print it without a stack trace and exit with code 2.
    """
