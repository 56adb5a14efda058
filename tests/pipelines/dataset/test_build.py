"""One build, whoever uses it: each shard made once, whatever was lost or killed; never two at once.

The datasets are copied shard by shard from one that is there, under an identity of one line.
"""

import functools
import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.dataset.build import Claim, Identity, ShardedBuild, identity_key, made_once
from pipelines.dataset.lock import exclusive
from pipelines.dataset.shard_results import ShardResult, drop_damaged_results
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, RESULTS_NAME, Manifest, read_manifest
from schemas.storage.directory import WORK, Directory
from tests.pipelines.datasets import make
from tests.pipelines.running import contents

NAME = "toy.json"
TEXT = '{"toy": 1}\n'
SHARDS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset to copy."""
    directory = tmp_path_factory.mktemp("model") / "model"
    make(directory, [{f"k{shard}": "ant"} for shard in range(SHARDS)], rejects=["bad"])
    return directory


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its copy, by a build that nobody disturbed. Not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert copy(model, out) == list(range(SHARDS))
    return out


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, bytes]:
    return contents(finished)


def toy(directory: Directory, text: str = TEXT) -> ShardedBuild:
    def refusal(content: bytes, finished: bool) -> str | None:
        return None if content == text.encode() else f"begun as {content!r}, finished {finished}"

    identity = Identity(
        name=NAME,
        text=text,
        refusal=refusal,
        made=lambda manifest: manifest.command == command(text),
        occupied=lambda entry: f"occupied by {entry}",
    )
    work = f"{WORK}/{identity_key(text)}"
    return ShardedBuild(directory, identity, work, f"{work}/ready")


def command(text: str) -> str:
    return f"toy {text}"


def copy(
    model: Path,
    out: Path | Directory,
    text: str = TEXT,
    progress: Callable[[int], object] = lambda shard: None,
) -> list[int]:
    """Build it, or what is missing of it; gives the shards that were made."""
    directory = Directory(str(out)) if isinstance(out, Path) else out
    build = toy(directory, text)
    made: list[int] = []
    with exclusive(directory):
        if build.resume(functools.partial(drop_damaged_results, directory)) is None:
            build.prepare(lambda name: directory.write(name, "yes\n"))
            results = []
            for shard, result in enumerate(model_results(model)):
                step = functools.partial(copy_shard, model, directory, result, made)
                results.append(build.shard(shard, step))
                progress(shard)
            build.write_rejects(results)
            manifest = read_manifest(model).model_copy(update={"command": command(text)})
            build.finish(manifest, results, others=(NAME,))
        build.clear_away()
    return made


def model_results(model: Path) -> list[ShardResult]:
    lines = (model / RESULTS_NAME).read_bytes().splitlines()
    return [ShardResult.model_validate_json(line) for line in lines]


def copy_shard(
    model: Path, directory: Directory, result: ShardResult, made: list[int]
) -> ShardResult:
    made.append(result.shard)
    for file in result.files:
        with directory.staging() as folder:
            (folder / file.name).write_bytes((model / file.name).read_bytes())
            directory.publish(folder / file.name, file.name)
    return result


def test_key_is_of_the_whole_text() -> None:
    assert identity_key("ä") == hashlib.sha256("ä".encode()).hexdigest()[:16]
    assert identity_key("a") != identity_key("a ")


def test_unit_that_is_there_is_not_made_again() -> None:
    calls: list[str] = []

    def make_it() -> str:
        calls.append("made")
        return "new"

    assert made_once(lambda: "", make_it) == "", "whatever is there, be it empty"
    assert made_once(lambda: None, make_it) == "new"
    assert calls == ["made"]


def test_finished_dataset_is_left_alone(
    model: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    copy(model, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert copy(model, tmp_path / "out") == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("after", [1])
def test_killed_between_two_shards(
    model: Path, undisturbed: dict[str, bytes], tmp_path: Path, after: int
) -> None:
    out = tmp_path / "out"
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.pipelines.dataset.test_build import copy\n"
        "def wait(shard):\n"
        f"    if shard == {after - 1}:\n"
        "        print('now', flush=True); sys.stdin.read()\n"
        f"copy(Path({str(model)!r}), Path({str(out)!r}), progress=wait)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        with pytest.raises(UserError, match="another command is writing"):
            copy(model, out)
        process.send_signal(signal.SIGKILL)
    assert not (out / MANIFEST_NAME).exists()
    assert copy(model, out) == list(range(after, SHARDS))
    assert contents(out) == undisturbed


class Killed(BaseException):
    """The end of a command before one of its changes."""


@dataclass(frozen=True)
class Mortal(Directory):
    """A directory whose user dies before so many changes have been made."""

    left: int = 0
    changes: list[str] = field(default_factory=list)

    def _change(self, name: str) -> None:
        if len(self.changes) == self.left:
            raise Killed
        self.changes.append(name)

    def write(self, name: str, data: bytes | str) -> None:
        self._change(name)
        Directory(self.root).write(name, data)

    def create(self, name: str, data: bytes | str) -> None:
        self._change(name)
        Directory(self.root).create(name, data)

    def publish(self, staged: Path, name: str) -> None:
        self._change(name)
        super().publish(staged, name)

    def remove(self, name: str) -> None:
        self._change(name)
        super().remove(name)

    def clear_work(self) -> None:
        self._change(WORK)
        super().clear_work()


@pytest.mark.parametrize("lost", ["nothing yet made", "shard", "identity", "both", "results too"])
def test_killed_between_any_two_changes(
    model: Path, finished: Path, undisturbed: dict[str, bytes], tmp_path: Path, lost: str
) -> None:
    """From nothing, or from a finished dataset that has lost files: the same bytes in the end."""
    names = [shard.name for shard in read_manifest(model).shards]
    victim = names[1]
    files = {
        "shard": [victim],
        "identity": [NAME],
        "both": [victim, NAME],
        "results too": [victim, NAME, RESULTS_NAME],
    }
    for left in range(100):
        out = tmp_path / str(left)
        if lost in files:
            shutil.copytree(finished, out)
            for name in files[lost]:
                (out / name).unlink()
        directory = Mortal(str(out), left)
        try:
            copy(model, directory)
        except Killed:
            marked = {int(path.stem) for path in out.glob(f"{WORK}/*/done/*.json")}
            whole = {shard for shard in marked if (out / names[shard]).exists()}
            made = {*copy(model, out)}
            assert not whole & made, "what is marked and there is not made again"
            if lost in files and RESULTS_NAME not in files[lost]:
                assert made <= {1}, "of a dataset that was whole, what is lost alone"
            assert contents(out) == undisturbed, left
        else:
            assert contents(out) == undisturbed
            break
    assert left == len(directory.changes)
    assert left >= 2, "a test of kills needs something to kill"


def test_only_the_lost_shard_is_made_again(
    model: Path, finished: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / read_manifest(model).shards[2].name).unlink()
    assert copy(model, out) == [2]
    assert contents(out) == undisturbed


def test_results_of_another_manifest_are_not_believed(
    model: Path, finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    results = out / RESULTS_NAME
    results.write_bytes(results.read_bytes().replace(b'"items":1', b'"items":9'))
    (out / read_manifest(model).shards[2].name).unlink()
    assert copy(model, out) == list(range(SHARDS))


def test_another_identity_is_refused_and_nothing_is_touched(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build = toy(Directory(str(out)))
    build.take()
    with pytest.raises(UserError, match=r"begun as .*finished False"):
        copy(model, out, text='{"toy": 2}\n')
    copy(model, out)
    before = contents(out)
    with pytest.raises(UserError, match=r"begun as .*finished True"):
        copy(model, out, text='{"toy": 2}\n')
    (out / NAME).unlink()
    with pytest.raises(UserError, match=r"occupied by README\.md"):
        copy(model, out, text='{"toy": 2}\n')
    after = {name: data for name, data in contents(out).items() if not name.startswith(WORK)}
    assert after == {name: data for name, data in before.items() if name != NAME}


def test_lost_identity_is_known_by_the_manifest(
    model: Path, finished: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / NAME).unlink()
    assert copy(model, out) == [], "no shard is damaged"
    assert contents(out) == undisturbed


def test_what_a_kill_before_the_claim_leaves_is_not_foreign(model: Path, tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "out"))
    directory.write(f".{NAME}.17.tmp", "half")
    directory.write(f"{WORK}.gone.1/x", "half deleted")
    directory.write(f"{WORK}/other/x", "of somebody else")
    build = toy(directory)
    build.check_ownership()
    claim = Claim(directory, build.identity)  # that has no such folders of its own
    with pytest.raises(UserError, match=rf"occupied by \{WORK}"):
        claim.check_ownership()
    directory.write("thesis.txt", "precious")
    with pytest.raises(UserError, match=r"occupied by thesis\.txt"):
        build.check_ownership()


def test_of_two_that_come_at_once_the_second_learns_whose_it_is(tmp_path: Path) -> None:
    """Both have seen an empty directory, as in an object store, where nobody holds a lock."""
    directory = Directory(str(tmp_path / "out"))

    class Late(Directory):
        """Does not see the identity until it has tried to write one."""

        looks = 0

        def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
            type(self).looks += 1
            if type(self).looks == 1:
                raise FileNotFoundError(name)
            return super().read(name, start, length)

    toy(directory).take()
    toy(Late(directory.root)).take()  # the same dataset: they may work side by side
    Late.looks = 0
    with pytest.raises(UserError, match=r"begun as"):
        toy(Late(directory.root), '{"toy": 2}\n').take()
    assert directory.read(NAME) == TEXT.encode()


def test_worker_that_was_cut_off_publishes_nothing(model: Path, tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "out"))
    build = toy(directory)
    with pytest.raises(UserError, match="finished or begun anew"):
        build.check_ours()
    build.prepare(lambda name: directory.write(name, "yes\n"))
    build.check_ours()
    with pytest.raises(UserError, match="finished or begun anew"):
        toy(directory, '{"toy": 2}\n').check_ours()
    directory.remove(NAME)  # as `rm -r OUT/*`, which spares what begins with a dot
    with pytest.raises(UserError, match="finished or begun anew"):
        build.check_ours()
    directory.write(NAME, '{"toy": 2}\n')
    with pytest.raises(UserError, match="finished or begun anew"):
        build.check_ours()
    directory.write(NAME, TEXT)
    copy(model, Path(directory.root))  # another command does all of it
    with pytest.raises(UserError, match="finished or begun anew"):
        build.check_ours()


def test_manifest_is_written_last(model: Path, tmp_path: Path) -> None:
    directory = Mortal(str(tmp_path / "out"), 1000)
    copy(model, directory)
    assert directory.changes[0] == NAME
    assert directory.changes[-2:] == [MANIFEST_NAME, WORK]


def test_manifest_that_another_command_mends_meanwhile_stays(
    model: Path, finished: Path, tmp_path: Path
) -> None:
    """Found wanting once, it is looked at again before it goes."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    directory = Directory(str(out))
    victim = out / read_manifest(model).shards[0].name
    data = victim.read_bytes()
    victim.unlink()

    def mended(manifest: Manifest) -> None:
        victim.write_bytes(data)

    assert toy(directory).resume(mended) == read_manifest(out)


def test_finished_dataset_that_is_not_good_enough_is_told(
    model: Path, finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))

    def refuse(manifest: Manifest) -> None:
        raise UserError(f"{manifest.counts.rejected} is too many")

    build = toy(Directory(str(out)))
    with pytest.raises(UserError, match="1 is too many"):
        build.finished(refuse)
    with pytest.raises(UserError, match="1 is too many"):
        build.resume(lambda manifest: None, refuse)
    assert build.finished() == read_manifest(out)
