"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake of the user's, told in one line: what is wrong and what to do next.

    Commands print it on stderr without a traceback and exit with status 2. Library callers may catch it; anything
    else that escapes is a fault of ours.
    """
