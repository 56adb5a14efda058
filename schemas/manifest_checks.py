"""What the fields of a manifest must agree on. All raise ValueError, as validators do."""

from collections.abc import Mapping

from schemas.layout import LAYOUTS, Layout, TensorSpec


def check_empty_classes(empty: tuple[int, ...], classes: int) -> None:
    """Whether they are some of the classes and not all, in order."""
    known = [number for number in range(classes) if number in set(empty)]
    if list(empty) != known or len(known) == classes:
        raise ValueError(f"empty_classes {empty} are not some of {classes} classes, in order")


def check_tensors(layout: Layout, tensors: Mapping[str, TensorSpec], statistics: set[int]) -> None:
    """Whether tensors are those of a layout, of one shape (height, width, channels), and
    `statistics`, the lengths of means and deviations, are its channels.
    """
    if {name: spec.dtype for name, spec in tensors.items()} != LAYOUTS[layout].tensors:
        raise ValueError(f"tensors {', '.join(tensors)} are not those of {layout}")
    shapes = {spec.shape for spec in tensors.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"tensors of shape {shape}; each is height, width and channels")
    if statistics != {shape[2]}:
        raise ValueError(f"channels: a mean and a deviation for each of {shape[2]} are needed")
