"""The members of a tar, by their headers alone; contents are not read.

Python's `tarfile` parses the headers (GNU long names, PAX, large sizes), but takes whatever it does
not understand for the end of the archive. Here an archive that does not end as a tar ends is
refused: a download that broke off must not pass for a smaller dataset. What it is given to parse is
bounded: it reads headers of any size into memory, follows any number of them by recursion, takes
the square of the time for some, and goes back and forth where a size is negative.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import Any, cast

from pipelines.sources.ranges import RangeFile
from schemas.errors import UserError

_BLOCK = 512
_LONGEST_END = 1 << 20  # a tar is filled up with zeros to a whole record, of 10 KiB by default
# A member's headers with all that extends them: long names, attributes. Names have 4 KiB at most.
_LONGEST_HEADERS = 1 << 18
_MOST_GLOBALS = 1000  # attributes for all members that follow, of which each member gets a copy
# Where digits go on, tarfile's patterns try each of them as the first; no name is longer.
_DIGITS = re.compile(rb"\d{256}")
_UNREADABLE = (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError)

_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a link to another member",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_COMPRESSED = "it is compressed, and its members cannot be read where they lie; unpack it with"
_OTHERS = {
    b"\x1f\x8b": f"{_COMPRESSED} gunzip",
    b"BZh": f"{_COMPRESSED} bunzip2",
    b"\xfd7zXZ": f"{_COMPRESSED} unxz",
    b"\x28\xb5\x2f\xfd": f"{_COMPRESSED} unzstd",
    b"PK\x03\x04": "it is a zip; give it as zip:FILE",
}


def walk(file: RangeFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Members of an uncompressed tar, in order; their bytes are at `offset_data`, `size` long.

    Args:
        file: the tar.
        name: what to call it when something is wrong.

    Raises:
        UserError: not a tar, a compressed one, damaged, or cut short.
        OSError: it cannot be read.
    """
    start = file.read(_BLOCK)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise UserError(f"{name}: {what}")
    if not start:
        raise UserError(f"{name}: an empty file; fetch it again")
    file.seek(0)
    try:
        headers = _Headers(file)
        archive = tarfile.TarFile(fileobj=cast(Any, headers), errors="surrogateescape")
    except _UNREADABLE as error:
        raise UserError(
            f"{name}: not a tar ({error}); fetch it again if it should be one"
        ) from error
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise _cut(name, f"it ends at byte {file.size} without the mark that ends a tar")
        if not any(header):
            _check_end(file, offset, name)
            return
        headers.begin(offset)
        try:
            member = archive.tarinfo.fromtarfile(archive)
            _check_member(member, archive, offset)
        except _UNREADABLE as error:
            if file.tell() >= file.size and not isinstance(error, _Refused):
                raise _cut(name, f"it ends at byte {file.size}, within a header") from error
            raise UserError(
                f"{name}: damaged: no header at byte {offset} ({error}); fetch it again"
            ) from error
        offset = archive.offset
        if offset > file.size:
            raise _cut(
                name,
                f"it ends at byte {file.size}, and {member.name} in it goes on to byte {offset}",
            )
        yield member


class _Refused(tarfile.HeaderError):
    """Headers that no program writes."""


class _Headers:
    """The tar as `tarfile` reads it, which gets no more than a member's headers may have."""

    def __init__(self, file: RangeFile):
        self._file, self._left = file, _LONGEST_HEADERS
        self.mode = "rb"
        self.seek, self.tell = file.seek, file.tell

    def begin(self, offset: int) -> None:
        """The next member begins at a byte."""
        self._file.seek(offset)
        self._left = _LONGEST_HEADERS

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise _Refused(f"headers of more than {_LONGEST_HEADERS} bytes")
        self._left -= size
        data = self._file.read(size)
        if _DIGITS.search(data):
            raise _Refused("a number of more than 255 digits")
        return data


def _check_member(member: tarfile.TarInfo, archive: tarfile.TarFile, offset: int) -> None:
    """Refuse sizes that lead backwards or beyond what is stored, and attributes without end."""
    stored = archive.offset - member.offset_data
    if archive.offset <= offset or not 0 <= member.size < 2**63:
        raise _Refused(f"a size of {member.size} bytes")
    if member.isreg() and not member.issparse() and member.size > stored:
        raise _Refused(f"a size of {member.size} bytes, with {stored} stored")
    if len(archive.pax_headers) > _MOST_GLOBALS:
        raise _Refused(f"more than {_MOST_GLOBALS} attributes for all members")


def problem_of(member: tarfile.TarInfo) -> str:
    """Why the bytes of a member cannot be read where it lies; "" where they can."""
    if not member.isreg():
        return f"{_KINDS.get(member.type, 'a special member')}, not a file"
    if member.issparse():
        return "stored with holes (a sparse file), which cannot be read where it lies"
    return ""


def _check_end(file: RangeFile, offset: int, name: str) -> None:
    """After the mark that ends a tar nothing may follow but a filling of zeros."""
    left = file.size - offset
    if left > _LONGEST_END:
        raise UserError(
            f"{name}: damaged or not fully downloaded: it ends at byte {offset}, but the file has "
            f"{file.size}; "
            "fetch it again"
        )
    file.seek(offset)
    if any(file.read(left)):
        raise UserError(
            f"{name}: more follows after its end at byte {offset}; if several tars were joined, "
            "give them one by one"
        )


def _cut(name: str, where: str) -> UserError:
    return UserError(f"{name}: cut short: {where}; fetch it again")
