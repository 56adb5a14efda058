"""From labels as files hold them, numbers or texts, to classes."""

from collections.abc import Iterable

from pipelines.sources.names import readable
from schemas.errors import UserError

MOST_NUMBERS = 1_000_000  # the highest label of classes without names
MOST_TEXTS = 100_000  # classes that are named by texts

Label = int | str


class Labels:
    """The classes of all labels that are there, and the number of each.

    Numbers are classes from 0 to the highest, texts are classes by themselves, sorted.

    Args:
        labels: of all images, or all that are different; either all numbers or all texts.
        where: what to name when they cannot be classes.

    Raises:
        UserError: too many classes.
    """

    def __init__(self, labels: Iterable[Label], where: str):
        texts, highest = set[str](), -1
        for label in labels:
            if isinstance(label, str):
                texts.add(label)
                if len(texts) > MOST_TEXTS:
                    raise UserError(
                        f"{where} holds more than {MOST_TEXTS:,} different texts, as captions do "
                        "and classes do not; choose another with --label-column, or --classes none"
                    )
            elif label > MOST_NUMBERS:
                raise UserError(
                    f"{where} holds the label {label}, and classes are numbered from 0 on, to "
                    f"{MOST_NUMBERS:,} at most; choose another with --label-column, or --classes "
                    "none"
                )
            else:
                highest = max(highest, label)
        self._count = highest + 1
        self._texts = {text: number for number, text in enumerate(sorted(texts))}
        self.names = tuple(map(readable, self._texts)) or tuple(map(str, range(highest + 1)))

    def number(self, label: Label) -> int | None:
        """The class of a label; None where it is none: a number below 0, or an empty text."""
        if isinstance(label, str):
            return self._texts.get(label)
        return label if 0 <= label < self._count else None


def none_labelled(where: str, count: int) -> UserError:
    """What is told of a source of `count` images of which none has a class."""
    return UserError(
        f"{where}: none of its {count} images has a label, as in a test split whose classes are "
        "not told; --classes none takes the images without"
    )
