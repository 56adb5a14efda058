"""A faithful miniature of ILSVRC2012: training tar of tars, validation tar, devkit, and the same as
a folder.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SYNSETS = 20
IMAGES = 3  # of each synset
VALIDATION = 30


@dataclass(frozen=True)
class Miniature:
    """Paths, and what the right answers are."""

    train: Path
    validation: Path
    devkit: Path
    folder: Path
    synsets: tuple[str, ...]  # by ILSVRC2012_ID, from 1 on; not in the order of their names
    truth: tuple[int, ...]


def make_miniature(root: Path) -> Miniature:
    """Lay out everything below `root`."""
    rng = np.random.default_rng(0)
    synsets = tuple(
        f"n{number:08d}"
        for number in rng.permutation(np.arange(SYNSETS) * 37911 + 1440764).tolist()
    )
    truth = tuple((rng.permutation(VALIDATION) % SYNSETS + 1).tolist())
    folder, train, validation = (
        root / "train",
        root / "ILSVRC2012_img_train.tar",
        root / "ILSVRC2012_img_val.tar",
    )
    with tarfile.open(train, "w", format=tarfile.GNU_FORMAT) as outer:
        for name in sorted(synsets):
            (folder / name).mkdir(parents=True)
            inner_bytes = io.BytesIO()
            with tarfile.open(fileobj=inner_bytes, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for number in rng.choice(20000, IMAGES, replace=False):
                    data = jpeg(rng)
                    (folder / name / f"{name}_{number}.JPEG").write_bytes(data)
                    add(inner, f"{name}_{number}.JPEG", data)
            add(outer, f"{name}.tar", inner_bytes.getvalue())
    with tarfile.open(validation, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(1, VALIDATION + 1):
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(rng))
    devkit = root / "ILSVRC2012_devkit_t12.tar.gz"
    make_devkit(devkit, synsets, truth)
    return Miniature(train, validation, devkit, folder, synsets, truth)


def make_devkit(path: Path, synsets: tuple[str, ...], truth: tuple[int, ...]) -> None:
    """`meta.mat` in the structure of the real one: leaves first, then what lies above them,
    numbered on.
    """
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
        ("children", object),
        ("wordnet_height", object),
        ("num_train_images", object),
    ]
    above = ("n00001740", "n00001930", "n01317541")
    table = np.zeros((len(synsets) + len(above), 1), dtype=kinds)
    for row, name in enumerate(synsets + above):
        leaf = row < len(synsets)
        children = np.zeros((1, 0)) if leaf else np.array([[1.0, 2.0]])
        number = row + 1.0 if leaf else 1000.0 + row
        table[row, 0] = (
            number,
            name,
            f"word {row}, other",
            "gloss",
            float(children.size),
            children,
            1.0,
            3.0,
        )
    meta = io.BytesIO()
    savemat(meta, {"synsets": table})
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/readme.txt", b"x")
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(
            archive,
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            "".join(f"{number}\n" for number in truth).encode(),
        )


def add(archive: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    """Add a member; `fields` are set on its TarInfo."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def jpeg(rng: np.random.Generator, side: int = 24) -> bytes:
    """A coloured image of its own, (side, side + 6)."""
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((side + 6, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def png(colour: str | tuple[int, ...] = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()
