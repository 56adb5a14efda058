"""The one exception that means "the user can mend this", and what its messages share."""

import difflib
from collections.abc import Mapping


class UserError(Exception):
    """A mistake of the user's, told in one line: what is wrong and what to do next.

    Commands print it on stderr without a traceback and exit with status 2. Library callers may
    catch it; anything else that escapes is a fault of ours.
    """


def nearest(name: str, known: Mapping[str, object]) -> str:
    """The end of a message about a wrong name."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(known)}"


def reason_of(error: OSError) -> str:
    """What the system says of the error, without number and file name; where it says nothing, the
    whole text of the error.
    """
    return error.strerror or str(error)
