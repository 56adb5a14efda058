"""Nested values and rows as text."""

from schemas.text import aligned, differing, dotted, printable


def test_nested_values_have_dotted_names_in_their_order():
    values = {"b": 1, "vae": {"id": "x", "norm": {"scale": [2]}}, "a": None}
    assert list(dotted(values).items()) == [
        ("b", 1),
        ("vae.id", "x"),
        ("vae.norm.scale", [2]),
        ("a", None),
    ]


def test_differences_hold_both_values():
    old, new = {"a": 1, "vae": {"id": "x"}}, {"a": 1, "vae": {"id": "y", "factor": 8}, "b": 0}
    assert differing(old, new) == {"vae.id": ("x", "y"), "vae.factor": (None, 8), "b": (None, 0)}
    assert differing(old, {"a": 1, "vae": None}) == {"vae.id": ("x", None)}


def test_columns_are_padded_and_lines_are_not():
    assert aligned([("name", "n"), ("a", "100"), ("bb", "")]) == ["name  n", "a     100", "bb"]


def test_no_name_controls_a_terminal():
    assert printable("a\x1b[31mb\rc\x7f\x9bd") == "a\\x1b[31mb\\rc\\x7f\\x9bd"
    assert printable("abc\u202etxt.exe") == "abc\\u202etxt.exe"
    whole = "żółw | 日本\tend\nnext — 100 %"
    assert printable(whole) == whole
