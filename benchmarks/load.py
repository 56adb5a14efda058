"""The loader alone, as ratios, side by side in one run: the same records in the same order, batch
after batch.

    python benchmarks/load.py                       20,000 moments of 32x32x4 float16, 16 KiB each
    python benchmarks/load.py --shape 256x256x3     pixels

Ours, from ArrayRecord shards and with each cache, against PyTorch's DataLoader over one .npy and
one label file a record (what fast-DiT does; the .npy holds the same numbers), and against a bare
np.memmap that one thread indexes: no epochs, no labels, nothing read ahead. The same shards are
also read with each record parsed for itself, to show what `schemas.columns` brings. Everything is
in the page cache. Batches are compared before they are timed, and in every turn those that were
read ahead meanwhile are thrown away first. The peer needs torch; without it its row is left out.
"""

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.sides import Watch
from flowtrain.records.cache import open_records
from flowtrain.records.data import BatchReader, make_loader
from flowtrain.records.reader import Index, LatentReader
from pipelines.dataset.finished import finish_dataset
from schemas.columns import Columns
from schemas.layout import LABEL, Layout, TensorSpec, layout_tensors
from schemas.manifest import SourceInfo
from schemas.storage.directory import Directory
from schemas.text import aligned
from tests.datasets import Row, build_dataset

PEER = "torch DataLoader, .npy files"
BARE = "np.memmap, one thread"
SHARDS = "flowtrain, --cache none"
PARSED = "flowtrain, records parsed one by one"
AHEAD = 16  # batches thrown away first; no loader here reads more ahead
CLASSES = 1000


class Rate(NamedTuple):
    """Median records a second, by the clock and by this process's processor time, which repeats
    better where others use the CPU.
    """

    clock: float
    cpu: float


class ParsedReader(LatentReader):
    """The same records from the same shards, each parsed by protobuf and then stacked."""

    def gather(self, index: Index, mirrored: NDArray[np.bool_]) -> Columns:
        """See `LatentReader`; here nothing is mirrored."""
        records = self.read(index)
        columns = {
            name: np.stack([record.tensors[name] for record in records])
            for name in self.manifest.tensors
        }
        return columns | {LABEL: np.array([record.label for record in records], np.int32)}


def main() -> None:
    """Read the arguments, make the data, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument(
        "--shape",
        default="32x32x4",
        help="height x width x channels; pixels where there are 3 channels",
    )
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40, help="timed in each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep the data here and use it again; default: a temporary folder",
    )
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores; "
        f"{_versions()}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.folder or Path(temporary))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """One turn of each loader in every round."""
    height, width, channels = map(int, options.shape.split("x"))
    layout = Layout.IMAGE if channels == 3 else Layout.MOMENTS
    specs = layout_tensors(layout, (height, width, channels))
    dataset = folder / f"latents-{options.records}-{options.shape}-{options.shards}"
    if not (dataset / "manifest.json").exists():
        _write_dataset(dataset, options, layout, specs)
    loaders: dict[str, Callable[[], Iterator[Any]]] = {}
    for cache in ("none", "disk", "ram"):
        start = time.perf_counter()
        records = open_records(dataset, cache, folder / "cache")
        if cache != "none":
            print(f"--cache {cache}: opened in {time.perf_counter() - start:.1f} s")
        batches = BatchReader(records, batch_size=options.batch_size, seed=0, flip="never")
        loaders[f"flowtrain, --cache {cache}"] = lambda batches=batches: _ours(batches)
    order = [batches(number)["index"] for number in range(AHEAD + options.batches)]
    parsed = BatchReader(ParsedReader(dataset), batch_size=options.batch_size, seed=0, flip="never")
    loaders[PARSED] = lambda: _ours(parsed)
    files = folder / f"npy-{dataset.name}"
    _write_files(files, dataset)
    loaders[BARE] = lambda: _bare(files / "all.npy", order)
    try:
        import torch  # noqa: F401
    except ImportError:
        print(
            "torch is not installed: nothing to compare with but np.memmap (make parity installs "
            "it)"
        )
    else:
        loaders = {PEER: lambda: _peer(files, order, options.workers), **loaders}
    _compare(loaders, specs)
    _print(_rates(loaders, options), options)


def _ours(batches: BatchReader) -> Iterator[Columns]:
    return make_loader(batches, 1 << 30)


def _bare(path: Path, order: list[np.ndarray]) -> Iterator[np.ndarray]:
    rows = np.load(path, mmap_mode="r")
    return (rows[index] for index in order)


def _peer(files: Path, order: list[np.ndarray], workers: int) -> Iterator[tuple[Any, Any]]:
    """The dataset class of fast-DiT's train.py, and its DataLoader with the order given."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class CustomDataset(Dataset):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            features = np.load(files / "features" / f"{index}.npy")
            labels = np.load(files / "labels" / f"{index}.npy")
            return torch.from_numpy(features), torch.from_numpy(labels)

    return iter(
        DataLoader(
            CustomDataset(), batch_sampler=[index.tolist() for index in order], num_workers=workers
        )
    )


def _compare(loaders: dict[str, Callable[[], Iterator[Any]]], specs: dict[str, TensorSpec]) -> None:
    """All loaders give the same numbers."""
    firsts = {name: next(make()) for name, make in loaders.items()}
    ours = firsts[SHARDS]
    for name, first in firsts.items():
        if isinstance(first, dict):
            same = all(np.array_equal(first[key], ours[key]) for key in ours)
        else:
            features = np.asarray(first[0] if name == PEER else first)
            stored = np.stack([ours[key] for key in specs], 1)
            if "image" in specs:  # we hand out floats, the others what is stored
                stored = np.rint((stored + 1) * 127.5).astype(np.uint8)
            same = np.array_equal(features.reshape(stored.shape), stored)
        if not same:
            raise SystemExit(f"{name} gives other numbers")


def _rates(
    loaders: dict[str, Callable[[], Iterator[Any]]], options: argparse.Namespace
) -> dict[str, Rate]:
    """Of each loader, after a round that does not count."""
    watches: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    records = options.batches * options.batch_size
    for turn in range(options.rounds + 1):
        for name, make in loaders.items():
            loader = make()
            for _ in itertools.islice(loader, AHEAD):
                pass
            watch = Watch()
            for _ in itertools.islice(loader, options.batches):
                pass
            if turn:
                watches[name].append(watch.seconds(records))
            del loader
    rates: dict[str, Rate] = {}
    for name, seconds in watches.items():
        wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
        rates[name] = Rate(1 / wall, 1 / cpu)
    return rates


def _print(rates: dict[str, Rate], options: argparse.Namespace) -> None:
    peer, bare = rates.get(PEER), rates[BARE]
    rows = [("loader", f"of {PEER}", f"of {BARE}")]
    rows += [
        (
            name,
            f"{rate.clock / peer.clock:.1f}" if peer else "-",
            f"{rate.clock / bare.clock:.2f}",
        )
        for name, rate in rates.items()
    ]
    print(
        f"{options.records:,} records of {options.shape}, batches of {options.batch_size}, "
        f"{options.shards} shards"
    )
    print(*aligned(rows), sep="\n")
    cut, parsed = rates[SHARDS], rates[PARSED]
    print(
        f"records in columns against parsed one by one: {cut.clock / parsed.clock:.2f}, by "
        f"processor time {cut.cpu / parsed.cpu:.2f}"
    )


def _write_dataset(
    directory: Path, options: argparse.Namespace, layout: Layout, specs: dict[str, TensorSpec]
) -> None:
    """Noise of the range of real moments, or pixels: nothing that compresses."""
    cuts = np.linspace(0, options.records, options.shards + 1).round().astype(int).tolist()
    height, width, channels = next(iter(specs.values())).shape
    build_dataset(
        directory,
        layout,
        (height, width, channels),
        {"train": [_rows(start, stop, specs) for start, stop in itertools.pairwise(cuts)]},
        finish=lambda place, manifest: finish_dataset(Directory(str(place)), manifest),
        resolution=8 * height,
        classes=tuple(map(str, range(CLASSES))),
        source=SourceInfo(descriptor="noise", split="train", digest="0" * 64),
        command="python benchmarks/load.py",
    )


def _rows(start: int, stop: int, specs: dict[str, TensorSpec]) -> Iterator[Row]:
    ranges = {"mean": (0, 5), "logvar": (-12, 3), "image": (128, 40)}
    for index in range(start, stop):
        rng = np.random.default_rng(index)
        tensors = {
            name: rng.normal(*ranges[name], spec.shape).clip(-300, 255).astype(spec.dtype)
            for name, spec in specs.items()
        }
        folder = f"n{index % CLASSES:08d}"
        yield Row(f"{folder}/{folder}_{index}.JPEG", index % CLASSES, tensors)


def _write_files(folder: Path, dataset: Path) -> None:
    """One .npy of all tensors and one of the label for each record, and all of them in one
    array.
    """
    reader = LatentReader(dataset)
    names = list(reader.manifest.tensors)
    spec = reader.manifest.tensors[names[0]]
    for kind in ("features", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    shape = (len(reader), len(names), *spec.shape)
    whole = np.lib.format.open_memmap(folder / "all.npy", "w+", np.dtype(spec.dtype), shape)
    for start in range(0, len(reader), 256):
        index = np.arange(start, min(start + 256, len(reader)))
        columns = reader.gather(index, np.zeros(len(index), np.bool_))
        whole[index] = np.stack([columns[name] for name in names], 1)
        for row, number in enumerate(index):
            np.save(folder / "features" / f"{number}.npy", whole[number])
            np.save(folder / "labels" / f"{number}.npy", columns["label"][row : row + 1])


def _versions() -> str:
    found = []
    for name in ("grain", "array-record", "numpy", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
