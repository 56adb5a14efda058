"""Classes by labels."""

import pytest

from pipelines.sources import label_values
from pipelines.sources.label_values import Labels
from tests.refusals import refused


def test_numbers_are_classes_up_to_the_highest() -> None:
    found = Labels([4, 0, 2, -1], "x")
    assert found.names == ("0", "1", "2", "3", "4")
    assert [found.number(label) for label in (-1, 0, 3, 4, 5)] == [None, 0, 3, 4, None]
    assert Labels([], "x").names == ()


def test_texts_are_classes_by_code_point() -> None:
    found = Labels(["bee", "ant", "Cow", "bee", "a\nb"], "x")
    assert found.names == ("Cow", "a\\nb", "ant", "bee")
    assert [found.number(label) for label in ("Cow", "a\nb", "bee", "eel")] == [0, 1, 3, None]


@pytest.mark.parametrize("label", [1_000_001, 2**62])
def test_a_number_that_would_make_a_million_classes_is_refused(label: int) -> None:
    assert refused(lambda: Labels([0, label], "x: the column id")).startswith(
        f"x: the column id holds the label {label}, and classes are numbered from 0 on, to 1,000,"
    )


def test_captions_are_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_values, "MOST_TEXTS", 3)
    assert len(Labels(["a", "b", "c"] * 2, "x").names) == 3
    assert "more than 3 different texts, as captions do" in refused(lambda: Labels("abcd", "x"))
