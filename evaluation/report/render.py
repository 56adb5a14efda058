"""What the pages of `report` are made of: files inside a page, plots, and filled-in templates."""

import base64
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from evaluation.progress import Notify
from evaluation.report.cards import duration
from evaluation.report.plots import NARROW, Paint, draw
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.json_text import parse_json
from schemas.run import METRICS_NAME

TEMPLATES = "templates"
HALF, WHOLE = (5.4, 3.6), (9.2, 3.9)  # inches of a plot beside another, and of one alone


@dataclass(frozen=True)
class Plot:
    """A figure drawn twice: for a wide page and for a phone."""

    wide: str
    narrow: str
    alt: str


def data_uri(data: bytes, mime: str) -> str:
    """A file inside a page."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def plot(paint: Paint, alt: str, size: tuple[float, float] = HALF) -> Plot:
    """Draw for both widths."""
    wide, narrow = (data_uri(draw(paint, each), "image/svg+xml") for each in (size, NARROW))
    return Plot(wide, narrow, alt)


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Training's lines of metrics.jsonl, without those that cannot be read: a last one that is
    being written, and damaged ones.

    Lines without a loss are of validation and previews, or of steps that were all skipped.
    """
    path = workdir / METRICS_NAME
    lines: list[dict[str, float]] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with contextlib.suppress(ValueError):
            content = parse_json(line)
            if isinstance(content, dict) and "loss" in content:
                lines.append(content)
    return lines


def or_none(make: Callable[[], Any], notify: Notify) -> Any:
    """A part of the page, or nothing and a warning."""
    try:
        return make()
    except UserError as error:
        notify(f"left out of the report: {error}")
        return None


def render(content: Mapping[str, Any], template: str) -> str:
    """Fill a template in; everything is escaped."""
    import jinja2

    folder = resources.files("evaluation.report").joinpath(TEMPLATES)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["duration"] = duration
    return environment.get_template(template).render(content)


def write_page(out: Path, make: Callable[[], str]) -> None:
    """Write what `make` returns, whole or not at all.

    Raises:
        UserError: no directory to write to, which is found before anything is made.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no directory {out.parent}; make it first")
    write_atomic(out, make())
