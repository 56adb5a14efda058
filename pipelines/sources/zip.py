"""`zip:FILE[,FILE]`: images in zips, read where they lie; folders are classes."""

import stat
import zlib
from collections.abc import Callable, Iterator

from pipelines.images import ImageError
from pipelines.sources.base import Item
from pipelines.sources.inside import below, place_of
from pipelines.sources.listed import MAX_BYTES, Found, ListedSource
from pipelines.sources.names import LEADS_OUT, OTHER, is_hidden, kind_of, leads_out, plain
from pipelines.sources.options import SourceOptions
from pipelines.sources.ranges import RangeFile
from pipelines.sources.zipdirectory import LOCAL_HEADER, LOCAL_MAGIC, Member, directory
from schemas.errors import UserError, reason_of
from schemas.storage import paths

_SLACK = 64  # a local header may be longer than the directory tells; about what programs add
_LINK = "a symbolic link, not a file"


class ZipSource(ListedSource):
    """Images in zips, stored or deflated, checked against their CRC-32.

    Args:
        names: local paths or URLs, separated by commas, each perhaps with `!FOLDER`.
        split: what the user calls this part of the data.
        options: whether folders are classes.

    Raises:
        UserError: no file named, or one that is not there.
    """

    def __init__(self, names: str, split: str, options: SourceOptions):
        self._zips = [place_of(name) for name in names.split(",") if name]
        if not self._zips:
            raise UserError(f"zip:{names}: no zip given; say zip:FILE or zip:FILE,FILE")
        super().__init__(f"zip:{','.join(map(str, self._zips))}", split, options, unwrap=True)

    def find(self) -> Iterator[Found]:
        for number, place in enumerate(self._zips):
            try:
                yield from below(_members(place.path, number), place)
            except OSError as error:
                raise UserError(f"{place.path}: cannot be read ({reason_of(error)})") from error

    def read_bytes(self, item: Item) -> bytes:
        number, offset, head, compressed, method, crc = map(int, item.location.split(":"))
        path = self._zips[number].path
        data = paths.read(path, offset, head + _SLACK + compressed)
        if len(data) < LOCAL_HEADER.size:
            raise OSError(f"{path} is shorter than it was when it was listed")
        magic, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(data)
        if magic != LOCAL_MAGIC:
            raise ImageError(f"damaged: no zip member at byte {offset}", "BadZipFile")
        start = LOCAL_HEADER.size + name_length + extra_length
        content = data[start : start + compressed]
        if len(content) < compressed:
            content = paths.read(path, offset + start, compressed)
        if len(content) < compressed:
            raise OSError(f"{path} is shorter than it was when it was listed")
        unpacked = _METHODS[method](content, item.size)
        if len(unpacked) != item.size or zlib.crc32(unpacked) != crc:
            raise ImageError(
                "damaged: its CRC-32 is not the one in the zip's directory", "BadZipFile"
            )
        return unpacked


def _members(path: str, number: int) -> Iterator[Found]:
    modified = paths.facts(path).modified
    with RangeFile(path) as file:
        for member in directory(file, path):
            found = _entry_of(member, number, modified)
            if found is not None:
                yield found


def _entry_of(member: Member, number: int, modified: int) -> Found | None:
    """What a member is to a source; None for what is neither a folder nor a file that is seen."""
    name = plain(member.name)
    if is_hidden(name) or name in ("", "/"):
        return None
    if name.endswith("/"):
        return None if leads_out(name) else Found(name)
    kind = kind_of(name)
    if kind == OTHER:
        return Found(name, kind=kind)
    fields = (number, member.offset, member.head, member.compressed, member.method, member.crc)
    location = ":".join(map(str, fields))
    return Found(name, member.size, location, modified, _problem(member, name), kind)


def _problem(member: Member, name: str) -> str:
    if leads_out(name):
        return LEADS_OUT
    if member.encrypted:
        return "encrypted; unpack the zip with its password"
    if stat.S_ISLNK(member.mode):
        return _LINK
    if member.method not in _METHODS:
        return (
            f"compressed by method {member.method} of zip; only stored (0) and deflated (8) "
            "members can be read"
        )
    return ""


def _stored(content: bytes, size: int) -> bytes:
    return content


def _deflated(content: bytes, size: int) -> bytes:
    try:
        # No more than was promised, and no more than is allowed: a few bytes can unpack to
        # gigabytes.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, min(size, MAX_BYTES) + 1)
    except zlib.error as error:
        raise ImageError(f"damaged: cannot be inflated ({error})", "BadZipFile") from error


_METHODS: dict[int, Callable[[bytes, int], bytes]] = {0: _stored, 8: _deflated}
