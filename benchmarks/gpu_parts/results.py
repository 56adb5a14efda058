"""`results.json` and `results.md` of a work directory: every attempt at every part, in the order of
the calls.
"""

import json
from pathlib import Path
from typing import Any

DONE, FAILED, OVER, UNFINISHED, RUNNING = (
    "done",
    "failed",
    "over its limit",
    "unfinished",
    "running",
)
JSON_NAME, TABLE_NAME = "results.json", "results.md"

Attempt = dict[str, Any]


def read(work: Path) -> list[Attempt]:
    """All attempts so far."""
    path = work / JSON_NAME
    return json.loads(path.read_text(encoding="utf-8"))["attempts"] if path.is_file() else []


def write(attempts: list[Attempt], folders: list[Path]) -> None:
    """Both files in every folder, each in one piece."""
    texts = {
        JSON_NAME: json.dumps({"attempts": attempts}, indent=1) + "\n",
        TABLE_NAME: table(attempts),
    }
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            draft = folder / f".{name}.new"
            draft.write_text(text, encoding="utf-8")
            draft.replace(folder / name)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last one that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def is_done(attempts: list[Attempt], part: str, tiny: bool) -> bool:
    """Whether a part was measured to its end, at these sizes."""
    return any(
        one["part"] == part and one["tiny"] == tiny and one["status"] == DONE for one in attempts
    )


def table(attempts: list[Attempt]) -> str:
    """Markdown: where and with what, then one table an attempt."""
    lines = ["# Measured on a GPU machine", ""]
    said = ""
    for attempt in attempts:
        where = _where(attempt)
        if where != said:
            lines += [where, ""]
            said = where
        size = " (miniature sizes, which show no rate)" if attempt["tiny"] else ""
        lines += [f"## {attempt['part']}: {attempt['status']}{size}", ""]
        lines += [
            f"`{attempt['command']}`, {attempt['begun']}, {attempt['seconds']:.0f} s of "
            f"{attempt['limit']:.0f} s"
        ]
        lines += [""]
        if attempt["reason"]:
            lines += [f"Reason: {attempt['reason']}", ""]
        lines += [*_rows(attempt["rows"]), ""]
    return "\n".join(lines)


def _where(attempt: Attempt) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in attempt["versions"].items())
    driver = f", driver {attempt['driver']}" if attempt["driver"] else ""
    return f"{attempt['device']}{driver}; {versions}; commit {attempt['commit']}"


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    """A table of the columns that any row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return ["No results."]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + [
        "| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "/").split())
