"""Which classes samples have: rules and counts by name, and what is neither."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.class_rules import chosen_class, class_rule
from schemas.errors import UserError
from tests.refusals import refused

CLASSES = ("ant", "7", "red fox", "ant")


def statistics(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), **arrays)  # type: ignore[arg-type]
    return str(path)


def refusal(text: str, label: int | None = None) -> str:
    return refused(lambda: class_rule(text, label, ("ant", "bee")))


def test_rules_need_nothing_else() -> None:
    assert class_rule("cyclic", None, CLASSES) == ("cyclic", None)
    assert class_rule("cyclic", 2, CLASSES) == ("cyclic", None), "a class may be chosen beside it"
    assert class_rule("uniform", None, CLASSES) == ("uniform", None)


def test_counts_are_matched_by_name(tmp_path: Path) -> None:
    path = statistics(
        tmp_path / "x.npz",
        labels=np.array([10, 0, 30]),
        classes=np.array(["cat", "ant", "bee"]),
    )
    assert class_rule(path, None, ("ant", "bee", "cat")) == ("frequencies", (0.0, 30.0, 10.0))


def test_what_is_no_rule(tmp_path: Path) -> None:
    assert refusal("cyclical") == (
        "--labels cyclical: neither cyclic, uniform nor a statistics file"
    )
    for text in ("uniform", str(tmp_path)):
        assert refusal(text, 1) == "--labels and --class: give one of them"
    assert "neither cyclic, uniform nor" in refusal(str(tmp_path)), "a folder"


def test_statistics_without_the_counts_of_these_classes(tmp_path: Path) -> None:
    names = np.array(["ant", "bee"])
    for arrays in (
        {},
        {"labels": np.array([3, 4])},
        {"labels": np.zeros(2, int), "classes": names},
        {"labels": np.array(["a", "b"])},
    ):
        told = refusal(statistics(tmp_path / "x.npz", **arrays))
        assert "holds no counts of classes; measure it with `flowtrain stats`" in told
    for other in (["ant", "cat"], ["ant", "cat", "bee"]):
        path = statistics(
            tmp_path / "x.npz", labels=np.arange(1, 1 + len(other)), classes=np.array(other)
        )
        differing = "bee" if "bee" not in other else "cat"
        assert f"({differing!r} is in one of them only)" in refusal(path)


def test_a_class_by_name_before_its_number() -> None:
    assert chosen_class(None, CLASSES) is None
    assert chosen_class("red fox", CLASSES) == 2
    assert chosen_class("7", CLASSES) == 1, "it is a name here"
    assert chosen_class("3", CLASSES) == 3
    assert chosen_class("ant", CLASSES) == 0, "the first of two of one name"


@pytest.mark.parametrize("name", ["4", "-1", "fox", "", "1.0"])
def test_no_such_class(name: str) -> None:
    with pytest.raises(UserError, match=f"^--class {name}: no such class"):
        chosen_class(name, CLASSES)
    with pytest.raises(UserError, match="did you mean 'red fox'"):
        chosen_class("red fix", CLASSES)
