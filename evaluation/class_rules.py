"""Which classes samples have: one, or a rule and how often each comes."""

from pathlib import Path

from schemas.errors import UserError, nearest


def class_rule(
    text: str, label: int | None, classes: tuple[str, ...], empty: tuple[int, ...] = ()
) -> tuple[str, tuple[float, ...] | None]:
    """The rule of the classes and, of statistics, how many images there are of each; none of those
    that are `empty`, which nothing was trained on.

    Raises:
        UserError: neither a rule nor statistics with counts of these classes; or a single class is
            asked for too.
    """
    from evaluation.draw.setting import CYCLIC, UNIFORM

    if text != CYCLIC and label is not None:
        raise UserError("--labels and --class: give one of them")
    if text in (CYCLIC, UNIFORM):
        return text, None
    if not Path(text).is_file():
        raise UserError(f"--labels {text}: neither {CYCLIC}, {UNIFORM} nor a statistics file")
    frequencies = _frequencies(Path(text), classes)
    if not any(count for number, count in enumerate(frequencies) if number not in empty):
        raise UserError(f"--labels {text}: counts only classes without training images")
    return "frequencies", frequencies


def _frequencies(path: Path, classes: tuple[str, ...]) -> tuple[float, ...]:
    """How many images of each class statistics count; they are matched by name.

    Raises:
        UserError: they count none, or other classes.
    """
    from schemas.statistics import read_statistics

    statistics = read_statistics(path)
    counts = statistics.labels
    known = {name: index for index, name in enumerate(statistics.classes)}
    if counts is None or len(counts) != len(known) or counts.sum() == 0:
        raise UserError(
            f"--labels {path}: holds no counts of classes; measure it with `flowtrain stats`"
        )
    differing = {*classes} ^ {*known}
    if differing:
        raise UserError(
            f"--labels {path}: its classes are not those of the run ({min(differing)!r} is in one "
            "of them only)"
        )
    return tuple(float(counts[known[name]]) for name in classes)


def chosen_class(name: str | None, classes: tuple[str, ...]) -> int | None:
    """A class's index from its name or, where no class has that name, its number."""
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    numbers = {str(number): number for number in range(len(classes))}
    if name in numbers:
        return numbers[name]
    known = dict.fromkeys(classes[:20])
    raise UserError(f"--class {name}: no such class{nearest(name, known)}")
