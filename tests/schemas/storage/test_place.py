import os
from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.storage.place import check_local, check_takes_files, check_writable_place


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "the path is empty"), (" ", "the path is empty"), ("gs://b/run", "not served here")],
)
def test_what_is_no_path_on_this_machine(path: str, message: str) -> None:
    for check in (check_local, check_writable_place):
        with pytest.raises(UserError, match=message):
            check(path)


def test_devices_and_pipes_are_read_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (str(pipe), "/dev/null", str(link)):
        check_local(path)
        with pytest.raises(UserError, match="which the output would take the place of"):
            check_writable_place(path)


def test_files_directories_and_places_where_nothing_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file, tmp_path / "new", tmp_path / "no" / "such"):
        check_writable_place(str(path))
    for path in (str(file / "below"), "/dev/null/x", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="cannot be written"):
            check_writable_place(path)


def test_a_folder_that_takes_no_file_is_told_and_nothing_is_left_in_one_that_does(
    tmp_path: Path,
) -> None:
    for folder in (tmp_path, tmp_path / "new" / "below"):
        check_takes_files(folder)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="files cannot be written there"):
        check_takes_files(Path("/proc"))
