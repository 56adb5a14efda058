"""What is told of the files of a tree that are no images."""

from collections import Counter

_USUAL = frozenset({"thumbs.db", "desktop.ini"})
_USUAL_STEMS = frozenset({"readme", "license", "licence", "copying", "checksums", "md5sums"})
_LONGEST = 8  # letters of what is still taken for an extension
_KINDS = 1000  # extensions that are told apart
_SHOWN = 5


class LeftOut:
    """Counts files that are left out, by extension, but for those that lie beside any images."""

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def note(self, name: str) -> None:
        """One more file; `name` may have folders."""
        last = name.rpartition("/")[2].lower()
        stem, dot, extension = last.rpartition(".")
        if last in _USUAL or (stem if dot else last) in _USUAL_STEMS:
            return
        told = dot and len(extension) <= _LONGEST and extension.isalnum()
        kind = f".{extension}" if told else ""
        self._counts[kind if kind in self._counts or len(self._counts) < _KINDS else ""] += 1

    @property
    def remark(self) -> str:
        """One line; "" where there were none."""
        total = self._counts.total()
        if not total:
            return ""
        order = sorted(self._counts.items(), key=lambda kind: (-kind[1], kind[0]))
        named = [(kind, count) for kind, count in order if kind][:_SHOWN]
        rest = total - sum(count for _, count in named)
        told = [f"{kind} {count}" for kind, count in named] + ([f"others {rest}"] if rest else [])
        one, many = "1 file that is no image was", f"{total} files that are no images were"
        return f"{one if total == 1 else many} left out: {', '.join(told)}"
