"""Checksums of the files of a step's folder, in a sealed file beside its items.

`{"step": 40, "files": {"ema/d/1f2e": "9ab01c77", ...}}`: CRC-32 in hex, which tells any flipped
bit. Left out are the files outside of items, which orbax writes last: when it saved, and that it
did. They say nothing about arrays. The folders of earlier releases have no such file.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from schemas.files import write_atomic
from schemas.json_text import parse_json
from schemas.sealed import seal, unseal

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 20  # bytes; one that stays in the cache of a core
_THREADS = min(4, os.cpu_count() or 1)


def write_checksums(folder: Path, step: int) -> None:
    """Of what is in a folder that is not yet called by its step: they are committed with it.

    Raises:
        OSError: a file cannot be read, or this one not be written.
    """
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.glob("*/**/*") if path.is_file()
    )
    content = {"step": step, "files": _sums(folder, names)}
    write_atomic(folder / CHECKSUMS, seal(json.dumps(content, indent=2) + "\n"))


def read_checksums(folder: Path, step: int) -> dict[str, str] | None:
    """CRC-32 by the name of a file in `folder`; None: an earlier release saved it.

    Raises:
        ValueError: the file is damaged, or another step's.
    """
    try:
        data = (folder / CHECKSUMS).read_bytes()
    except FileNotFoundError:
        return None
    try:
        content: Mapping[str, Any] = parse_json(unseal(data))
    except ValueError as error:
        raise ValueError(f"{CHECKSUMS}: {error}") from None
    if content["step"] != step:
        raise ValueError(f"{CHECKSUMS}: it is of step {content['step']}")
    return content["files"]


def check_items(folder: Path, known: Mapping[str, str], items: Iterable[str]) -> None:
    """Read the files of some items. Items that are not there are passed over.

    Args:
        folder: of a step.
        known: its `read_checksums`.
        items: names.

    Raises:
        ValueError: a file is damaged, missing, or not of this step.
    """
    there = [item for item in items if (folder / item).is_dir()]
    found = _sums(folder, chain.from_iterable(_files_of(item, known) for item in there))
    for name, crc in found.items():
        if crc != known[name]:
            what = "its bytes are not those that were saved" if crc else "it is missing"
            raise ValueError(f"{name}: {what}")


def _files_of(item: str, known: Iterable[str]) -> list[str]:
    names = [name for name in known if name.startswith(f"{item}/")]
    if not names:
        raise ValueError(f"{item}: it was not saved with this step")
    return names


def crc_of(path: Path) -> str:
    """CRC-32 of a file's bytes, eight hex digits; nothing where there is no file."""
    crc, block = 0, memoryview(bytearray(_BLOCK))
    try:
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(block):
                crc = zlib.crc32(block[:size], crc)
    except FileNotFoundError:
        return ""
    return f"{crc:08x}"


def _sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """`crc_of` each; threads, since both reading and the sum leave Python's lock alone."""
    names = list(names)
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: crc_of(folder / name), names), strict=True))
