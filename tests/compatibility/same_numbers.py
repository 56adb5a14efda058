"""Whether two commits make the same datasets, parameters, samples and distances on this machine.

    python tests/compatibility/same_numbers.py BEFORE [AFTER]

AFTER is HEAD unless it is given. Both are checked out side by side and run the same commands with
this interpreter and its packages. Floats differ between processors, so nothing is written down to
be compared with later; what holds no floats is in `test_earlier_commits.py`. Compared are: all
files of a dataset from a folder, a tar and a zip; the parameters and averages after 20 steps;
samples of three solvers; the line of `eval` without its times. Prints a line for each, and exits
with 1 where one differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 24
SIDE = 16
SMALL = {
    "model.depth": "2",
    "model.width": "32",
    "model.heads": "2",
    "train.batch_size": "8",
    "train.steps": "20",
    "train.checkpoint_every": "10",
    "preview.every": "0",
}
SOLVERS = ("euler", "heun", "sde")
# Run in a checkout, of before or after modules moved: digests of the arrays of a checkpoint.
PARAMETERS = """
import hashlib, json, sys
from pathlib import Path
import jax, numpy as np
try:
    from flowtrain.state.checkpoint import load_for_sampling
except ImportError:
    from flowtrain.checkpoint import load_for_sampling
for weights in ("params", "ema"):
    trained = load_for_sampling(Path(sys.argv[1]), 20, weights)
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    print(json.dumps([weights, digest.hexdigest()]))
"""


def main() -> None:
    """Read the arguments, run both sides, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sources = _make_sources(work / "images")
        sides = []
        for commit in (arguments.before, arguments.after):
            # Both write to one place in turn: manifests and runs name their paths.
            with _checked_out(commit, work / "tree") as tree:
                sides.append(_Side(tree, work / "out").run(sources))
            (work / "out").rename(work / f"out-{len(sides)}")
    before, after = sides
    failed = before.keys() ^ after.keys()
    for name, value in before.items():
        same = after.get(name) == value
        print(f"{'equal    ' if same else 'DIFFERENT'}  {name}")
        if not same:
            failed.add(name)
    sys.exit(1 if failed else 0)


class _Side:
    """The commands in one checkout."""

    def __init__(self, tree: Path, out: Path) -> None:
        self._tree = tree
        self._out = out
        out.mkdir()

    def run(self, sources: dict[str, str]) -> dict[str, str]:
        """Digests by the name of what they are of."""
        found: dict[str, str] = {}
        for kind, source in sources.items():
            dataset = self._out / kind
            options = f"--resolution {SIDE} --vae embedded --shards 2 --flips --min-psnr 0 --seed 3"
            self._flowtrain("preprocess", source, str(dataset), *options.split())
            found |= {f"{kind}: {name}": digest for name, digest in _file_digests(dataset)}
        run = self._out / "run"
        settings = [f"--set={key}={value}" for key, value in SMALL.items()]
        dataset = str(self._out / "folder")
        self._flowtrain("train", dataset, "--workdir", str(run), "--recipe", "digits", *settings)
        for line in self._python("-c", PARAMETERS, str(run)).splitlines():
            weights, digest = json.loads(line)
            found[f"parameters: {weights}"] = digest
        for solver in SOLVERS:
            batch = self._out / f"{solver}.npz"
            drawing = ["--num", "8", "--steps", "4", "--cfg", "2", "--solver", solver]
            self._flowtrain("sample", str(run), str(batch), *drawing)
            found[f"samples: {solver}"] = _array_digest(batch)
        reference = self._out / "reference.npz"
        measuring = ["--resolution", str(SIDE), "--protocol", "embedded"]
        self._flowtrain("stats", sources["folder"], str(reference), *measuring)
        found["statistics"] = _array_digest(reference)
        setting = ["--num-samples", "12", "--steps", "2", "--cfg", "1", "--protocol", "embedded"]
        self._flowtrain("eval", str(run), "--reference", str(reference), *setting)
        found["result"] = _result(run / "results.jsonl")
        return found

    def _flowtrain(self, *arguments: str) -> None:
        self._python("-m", "flowtrain.cli", *arguments)

    def _python(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self._tree), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=self._tree, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(arguments[:4])} failed in {self._tree}:\n{done.stderr}")
        return done.stdout


def _make_sources(folder: Path) -> dict[str, str]:
    """The same images as a folder of two classes, a tar and a zip; what `preprocess` calls each."""
    random = np.random.default_rng(0)
    photos = folder / "photos"
    for number in range(IMAGES):
        path = photos / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    files = sorted(photos.rglob("*.png"))
    with (
        tarfile.open(folder / "photos.tar", "w") as tar,
        zipfile.ZipFile(folder / "photos.zip", "w") as archive,
    ):
        for file in files:
            name = str(file.relative_to(photos))
            tar.add(file, name)
            archive.write(file, name)
    return {
        "folder": str(photos),
        "tar": f"tar:{folder / 'photos.tar'}",
        "zip": f"zip:{folder / 'photos.zip'}",
    }


@contextmanager
def _checked_out(commit: str, tree: Path) -> Iterator[Path]:
    subprocess.run(
        ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True
    )
    try:
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def _file_digests(dataset: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(dataset.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(dataset)), hashlib.sha256(file.read_bytes()).hexdigest()


def _array_digest(file: Path) -> str:
    """Of all arrays of an .npz; the archive itself holds the time of day."""
    digest = hashlib.sha256()
    with np.load(file) as arrays:
        for name in sorted(arrays.files):
            digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _result(file: Path) -> str:
    (line,) = file.read_text().splitlines()
    result: dict[str, Any] = json.loads(line)
    return json.dumps({name: value for name, value in result.items() if name != "seconds"})


if __name__ == "__main__":
    main()
