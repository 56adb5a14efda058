"""The members of a tar, by their headers alone; contents are not read.

Python's `tarfile` parses the headers (GNU long names, PAX, large sizes), but takes whatever it does
not understand for the end of the archive. Here an archive that does not end as a tar ends is
refused: a download that broke off must not pass for a smaller dataset.
"""

import tarfile
from collections.abc import Iterator

from pipelines.sources.ranges import RangeFile
from schemas.errors import UserError

_BLOCK = 512
_LONGEST_END = 1 << 20  # a tar is filled up with zeros to a whole record, of 10 KiB by default

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
        archive = tarfile.TarFile(fileobj=file, errors="surrogateescape")
    except (tarfile.TarError, ValueError) as error:
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
        file.seek(offset)
        try:
            member = archive.tarinfo.fromtarfile(archive)
        except (tarfile.TarError, ValueError) as error:
            if file.tell() >= file.size:
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
