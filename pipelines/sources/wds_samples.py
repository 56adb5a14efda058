"""The members of a WebDataset shard, as parts of samples, and what they say of a label.

A sample is what shares its name up to the first dot of the file name; the directory belongs to the
name. (https://github.com/webdataset/webdataset, `tariterators.base_plus_ext`)
"""

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.sources.names import LEADS_OUT, is_hidden, is_image, leads_out, plain
from pipelines.sources.options import SourceOptions
from pipelines.sources.ranges import RangeFile
from pipelines.sources.tarwalk import problem_of, walk
from schemas.json_text import parse_json

CLS = "cls"
USUAL_KEY = "label"  # of a JSON file
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_LARGEST = {CLS: 1 << 10, "json": 1 << 20}  # bytes of a file that tells a label


class Part(NamedTuple):
    """A member: its sample, its extension in small letters, and either an image (`size`, `offset`,
    why it cannot be used), or a label as a text, or what is left out.

    `label` is None where the member tells none.
    """

    sample: str
    extension: str
    kind: str  # "image", "label" or "other"
    size: int = 0
    offset: int = 0
    problem: str = ""
    label: str | None = None


def parts(path: str, options: SourceOptions) -> Iterator[Part]:
    """The members of a shard in order, hidden ones left out.

    Labels are read on the way, which costs no request of its own: they lie beside the headers.

    Args:
        path: of the shard.
        options: whether labels are read, and of which key.

    Raises:
        UserError: not a whole tar.
        OSError: it cannot be read.
    """
    wanted = _label_files(options)
    with RangeFile(path) as file:
        for member in walk(file, path):
            name = plain(member.name)
            if member.isdir() or is_hidden(name):
                continue
            part = _part(member, name)
            if part.extension in wanted and member.isreg():
                file.seek(member.offset_data)
                data = file.read(min(member.size, _LARGEST[part.extension] + 1))
                label = _label(data, part.extension, options.label or USUAL_KEY)
                part = part._replace(kind="label", label=label)
                if part.extension == CLS:
                    wanted = {CLS}  # it goes before a JSON file that lies beside it
            yield part


def _part(member: tarfile.TarInfo, name: str) -> Part:
    match = _MEMBER.fullmatch(name)
    sample, extension = (match[1], match[2].lower()) if match else (name, "")
    if not match or not is_image(name):
        return Part(sample, extension, "other")
    problem = problem_of(member) or (LEADS_OUT if leads_out(name) else "")
    return Part(sample, extension, "image", member.size, member.offset_data, problem)


def _label_files(options: SourceOptions) -> set[str]:
    """Extensions of the files that tell labels."""
    if options.classes == "none":
        return set()
    if options.label:
        return {CLS} if options.label == CLS else {"json"}
    return {CLS, "json"}


def _label(data: bytes, extension: str, key: str) -> str | None:
    """The label in a file, as a text; None without."""
    if len(data) > _LARGEST[extension]:
        return None
    try:
        text = data.decode()
        if extension == CLS:
            return text.strip() or None
        described = parse_json(text)
    except ValueError:
        return None
    value = described.get(key) if isinstance(described, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value).strip() or None
