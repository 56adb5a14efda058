"""What a mistake of the user's is told: one line."""

from collections.abc import Callable

import pytest

from schemas.errors import UserError


def refused(call: Callable[[], object]) -> str:
    """The line that a call refuses a mistake with."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
