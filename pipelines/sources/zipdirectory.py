"""A zip's central directory, entry by entry; Python's `zipfile` holds all entries at once.

Layout and names of the fields: PKWARE's APPNOTE.TXT 6.3, sections 4.3.12 (entries), 4.3.14 to
4.3.16 (where the directory is, with and without Zip64), 4.5.3 (Zip64 sizes in the extra field).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.sources.ranges import RangeFile
from schemas.errors import UserError

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
LOCAL_MAGIC = b"PK\x03\x04"

_ENTRY, _ENTRY_MAGIC = struct.Struct("<4s6H3L5H2L"), b"PK\x01\x02"
_END, _END_MAGIC = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_LOCATOR, _LOCATOR_MAGIC = struct.Struct("<4sLQL"), b"PK\x06\x07"
_END64, _END64_MAGIC = struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06"
_LONGEST_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF  # a size or an offset that has no room in 32 bits
_LARGEST = 2**63 - 1  # of file systems
_ZIP64 = 1
_UTF8, _ENCRYPTED = 0x800, 0x1
_WINDOWS = (0, 10)  # systems whose programs may have written backslashes


@dataclass(frozen=True)
class Member:
    """An entry. `offset` is the local header's, `head` those bytes of it that the entry tells."""

    name: str
    size: int
    compressed: int
    offset: int
    head: int
    method: int
    crc: int
    encrypted: bool
    mode: int  # of Unix; 0 where there is none


class _End(NamedTuple):
    entries: int
    size: int
    start: int


def directory(file: RangeFile, name: str) -> Iterator[Member]:
    """Entries of a zip in the order of its directory.

    Args:
        file: the whole zip.
        name: what to call it when something is wrong.

    Raises:
        UserError: not a zip, cut short, damaged, or one of several parts.
        OSError: it cannot be read.
    """
    if not file.size:
        raise UserError(f"{name}: an empty file; fetch it again")
    end = _end(file, name)
    file.seek(end.start)
    for _ in range(end.entries):
        fixed = file.read(_ENTRY.size)
        if len(fixed) < _ENTRY.size or not fixed.startswith(_ENTRY_MAGIC):
            raise UserError(f"{name}: damaged: its directory breaks off; fetch it again")
        member = _member(fixed, file)
        _check_member(member, end, name)
        yield member


def _member(fixed: bytes, file: RangeFile) -> Member:
    _, made, _, flags, method, _, _, crc, compressed, size, *lengths, _, _, attributes, offset = (
        _ENTRY.unpack(fixed)
    )
    raw, extra, _ = (file.read(length) for length in lengths)
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
    if made >> 8 in _WINDOWS:
        name = name.replace("\\", "/")
    size, compressed, offset = _long(extra, size, compressed, offset)
    head = LOCAL_HEADER.size + len(raw) + len(extra)
    return Member(
        name,
        size,
        compressed,
        offset,
        head,
        method,
        crc,
        bool(flags & _ENCRYPTED),
        attributes >> 16,
    )


def _check_member(member: Member, end: _End, name: str) -> None:
    """Members lie before the directory, and unpack to no more than any file has.

    Raises:
        UserError: this one does not.
    """
    inside = member.offset + LOCAL_HEADER.size + member.compressed <= end.start
    if not inside or member.size > _LARGEST:
        raise UserError(
            f"{name}: damaged: {member.name}, {member.size} bytes from {member.compressed} at byte "
            f"{member.offset}, cannot be in it; fetch it again"
        )


def _long(extra: bytes, *values: int) -> list[int]:
    """Zip64's values for the fields that are marked as too long, in the fields' order."""
    fields = iter(())
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _ZIP64:
            count = min(length, len(extra) - 4) // 8
            fields = iter(struct.unpack_from(f"<{count}Q", extra, 4))
        extra = extra[4 + length :]
    return [next(fields, value) if value == _IN_EXTRA else value for value in values]


def _end(file: RangeFile, name: str) -> _End:
    """Where the directory is; it must reach to the record that says so."""
    back = min(file.size, _END.size + _LONGEST_COMMENT)
    file.seek(file.size - back)
    tail = file.read(back)
    at = _find_end(tail)
    if at < 0:
        file.seek(0)
        if file.read(4) == LOCAL_MAGIC:
            raise UserError(
                f"{name}: cut short: the directory at the end of the zip is not there; fetch it "
                "again"
            )
        raise UserError(f"{name}: not a zip; fetch it again if it should be one")
    _, disk, first, _, entries, size, start, _ = _END.unpack_from(tail, at)
    if (disk, first) not in ((0, 0), (0xFFFF, 0xFFFF)):
        raise UserError(
            f"{name}: one part of a zip in several; join them first (zip -s 0 {name} --out "
            "whole.zip)"
        )
    position = file.size - back + at
    file.seek(max(0, position - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if locator.startswith(_LOCATOR_MAGIC) and len(locator) == _LOCATOR.size:
        position = _LOCATOR.unpack(locator)[2]
        file.seek(position)
        record = file.read(_END64.size)
        if not record.startswith(_END64_MAGIC) or len(record) < _END64.size:
            raise UserError(
                f"{name}: damaged: its Zip64 record is not where it should be; fetch it again"
            )
        entries, size, start = _END64.unpack(record)[-3:]
    if start + size != position:
        missing = "is missing before" if start + size > position else "stands before or within"
        raise UserError(
            f"{name}: damaged or cut: something {missing} its directory at byte {start}; fetch it "
            "again"
        )
    return _End(entries, size, start)


def _find_end(tail: bytes) -> int:
    """Offset of the end record: the last one whose comment reaches exactly to the end of the file,
    else -1.
    """
    at = tail.rfind(_END_MAGIC)
    while at >= 0:
        if len(tail) - at >= _END.size and at + _END.size + _END.unpack_from(tail, at)[-1] == len(
            tail
        ):
            return at
        at = tail.rfind(_END_MAGIC, 0, at)
    return -1
