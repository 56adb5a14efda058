"""Bars, drawn where no terminal is: what a log file holds."""

import pytest

from schemas.bars import bytes_bar


def test_bytes_are_counted_in_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    with bytes_bar(3_000_000, "copy") as moved:
        moved.update(1_500_000)
        moved.update(1_500_000)
    told = capsys.readouterr().err
    assert "copy: 100%" in told
    assert "3.00M/3.00M" in told
    assert "50%" not in told, "a log file needs no bar that moves"


@pytest.mark.parametrize("disable", [True, None])
def test_no_bar_is_drawn_where_none_is_wanted(
    disable: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with bytes_bar(10, "copy", disable) as moved:
        moved.update(10)
    assert capsys.readouterr() == ("", "")
