"""Parts of pages: parts that fail, templates that escape and share their frame."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from evaluation.report.render import data_uri, or_none, render, write_page
from schemas.errors import UserError


def test_a_part_that_cannot_be_had_is_nothing_and_told() -> None:
    told: list[str] = []

    def fails() -> Any:
        raise UserError("gone")

    assert or_none(fails, told.append) is None
    assert told == ["left out of the report: gone"]
    assert or_none(lambda: 3, told.append) == 3
    with pytest.raises(ZeroDivisionError):
        or_none(lambda: 1 / 0, told.append)


def test_a_page_is_not_made_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory"):
        write_page(tmp_path / "no" / "page.html", lambda: pytest.fail("made first"))
    write_page(tmp_path / "page.html", lambda: "<p>")
    assert (tmp_path / "page.html").read_text() == "<p>"


def test_the_frame_of_a_page_escapes_and_misses_nothing_silently() -> None:
    facts = {"title": "<b>", "made": "now", "versions": {"jax": "1 & 2"}}
    text = render(facts, "base.html.j2")
    assert "<title>&lt;b&gt; · flowtrain</title>" in text
    assert "jax 1 &amp; 2" in text
    with pytest.raises(jinja2.UndefinedError, match="made"):
        render({name: fact for name, fact in facts.items() if name != "made"}, "base.html.j2")


def test_a_file_inside_a_page() -> None:
    assert data_uri(b"abc", "image/png") == "data:image/png;base64,YWJj"
