"""How options and arguments of the commands are read: paths on this machine."""

from pathlib import Path
from typing import Any

import click

from schemas.errors import UserError
from schemas.storage.place import check_local, check_writable_place


class LocalPath(click.Path):
    """A path on this machine, given to the command as a `Path`.

    A URL would else become a local directory by the name of its scheme, and be gone with the
    machine. Where the command writes to the path, a device or a pipe is refused as well.
    """

    def __init__(self, *, writes: bool = False, file_okay: bool = True):
        super().__init__(path_type=Path, file_okay=file_okay)
        self._check = check_writable_place if writes else check_local

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            self._check(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


READ = LocalPath()
WRITTEN = LocalPath(writes=True)
