"""Progress bars as a caller hands them in: `tqdm.tqdm` fits, and so does nothing at all."""

from typing import Protocol


class Bar(Protocol):
    """The part of a tqdm bar that is used."""

    def update(self, n: int, /) -> object: ...
    def set_description(self, desc: str, /) -> object: ...
    def close(self) -> object: ...


class MakeBar(Protocol):
    """Makes a bar of `total` units."""

    def __call__(self, *, total: int, desc: str, unit: str) -> Bar: ...


class NoBar:
    """A bar nobody sees."""

    def __init__(self, *, total: int, desc: str, unit: str):
        del total, desc, unit

    def update(self, n: int, /) -> None:
        del n

    def set_description(self, desc: str, /) -> None:
        del desc

    def close(self) -> None: ...
