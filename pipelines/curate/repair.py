"""The commands that make damaged files of a dataset again, and leave the others alone."""

import math
import shlex
from collections.abc import Container, Sequence
from typing import NamedTuple

from pipelines.preprocess.settings import Settings
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION, MIN_PSNR
from schemas.json_text import parse_object
from schemas.manifest import MERGE_NAME, RESULTS_NAME, SETTINGS_NAME, Manifest
from schemas.sealed import unseal
from schemas.storage import paths
from schemas.storage.url import is_url
from schemas.text import printable

_PROGRAM = "flowtrain"  # a manifest from elsewhere may name any command; no other is repeated
_OUT = "OUT"  # what stands for the dataset in its command
_DELETE = {"gs": "gcloud storage rm", "s3": "aws s3 rm"}


class Repair(NamedTuple):
    """Commands for a shell, and what to know before running them."""

    commands: tuple[str, ...]
    note: str


def repair_commands(
    root: str, manifest: Manifest | None, damaged: Sequence[str], present: Container[str]
) -> Repair:
    """Delete what is damaged, then repeat the command of the dataset, which makes what is missing.

    Args:
        root: path or URL of the dataset.
        manifest: None where it is damaged itself; the command is then taken from `settings.json`.
        damaged: names of files.
        present: names of all files that are there; those that are missing need not be deleted.
    """
    if not damaged:
        return Repair((), "")
    command = _begun_with(root) if manifest is None else _made_with(manifest)
    delete = _delete(root, [name for name in damaged if name in present])
    if command is None:
        return Repair(
            delete,
            "then repeat the command that made the dataset: the file that tells it is damaged",
        )
    if command[:1] != [_PROGRAM]:
        return Repair((), "get or make the dataset again: no flowtrain command is noted in it")
    repeat = " ".join(_quoted(root if word == _OUT else word) for word in command)
    notes = []
    if RESULTS_NAME in damaged:
        notes.append(f"without {RESULTS_NAME} all shards are made again")
    if "WORKDIR" in command:
        notes.append("WORKDIR is the run that the samples were drawn from")
    return Repair((*delete, repeat), "; ".join(notes))


def _delete(root: str, names: Sequence[str]) -> tuple[str, ...]:
    quoted = [_quoted(paths.join(root, name)) for name in names]
    if is_url(root):
        return tuple(f"{_DELETE[root.partition('://')[0]]} {path}" for path in quoted)
    return (f"rm -- {' '.join(quoted)}",) if quoted else ()


def _quoted(word: str) -> str:
    """A word for a shell; with control characters as bash's escapes, since they are not printed."""
    if printable(word) == word:
        return shlex.quote(word)
    escaped = printable(word.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{escaped}'"


def _made_with(manifest: Manifest) -> list[str]:
    """The words of the command by the manifest; none where they are no words of a shell."""
    try:
        words = shlex.split(manifest.command)
    except ValueError:
        return []
    return [*words, *_thresholds(manifest)]


def _begun_with(root: str) -> list[str] | None:
    """The words of the command by the file that was written before the first shard."""
    for name, command in ((SETTINGS_NAME, _preprocess_command), (MERGE_NAME, _merge_command)):
        try:
            return command(unseal(paths.read(paths.join(root, name))))
        except (OSError, ValueError, KeyError):
            continue
    return None


def _preprocess_command(text: str) -> list[str]:
    settings = Settings.model_validate(parse_object(text))
    # What the thresholds were is not known; the dataset kept them, so that any will do.
    return [*shlex.split(settings.command()), "--max-bad-fraction", "1", "--min-psnr", "0"]


def _merge_command(text: str) -> list[str]:
    return shlex.split(str(parse_object(text)["command"]))


def _thresholds(manifest: Manifest) -> list[str]:
    """Options that let a dataset pass which would not pass the defaults."""
    if not manifest.command.startswith("flowtrain preprocess "):
        return []
    options: list[str] = []
    fraction = manifest.counts.rejected / max(manifest.counts.source, 1)
    if fraction > MAX_BAD_FRACTION:
        options += ["--max-bad-fraction", str(math.ceil(fraction * 1000) / 1000)]
    if manifest.reconstruction is not None and manifest.reconstruction.psnr_db < MIN_PSNR:
        options += [
            "--min-psnr",
            str(max(math.floor(manifest.reconstruction.psnr_db * 10) / 10, 0.0)),
        ]
    return options
