"""`flowtrain sample`: one setting, to a picture, a batch or a dataset; the ending of OUT says
which.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.draw.generate import SHARD_SIZE, draw_at, fitting_batch_size, generate
from evaluation.draw.setting import Setting
from evaluation.progress import Bar, MakeBar
from pipelines.encoders.decode import decode_samples
from pipelines.grid import by_class, write_png
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.layout import Layout, layout_tensors
from schemas.run import Run
from schemas.storage.place import check_takes_files

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel

COLUMNS = 10  # of a grid of one class, or of more classes than rows that can be looked at
MOST_ROWS = 20


@dataclass(frozen=True)
class DrawRequest:
    """What `sample` was asked for. `step` None is the newest checkpoint, `weights` as for
    `load_for_sampling`.
    """

    workdir: Path
    out: Path
    setting: Setting
    step: int | None
    weights: str
    batch_size: int


def draw_to(request: DrawRequest, bar: MakeBar) -> None:
    """Draw the samples and write them.

    Raises:
        UserError: no checkpoint, no such weights, or OUT cannot be written.
    """
    from flowtrain.state.checkpoint import load_for_sampling

    writer = WRITERS.get(request.out.suffix.lower(), _write_dataset)
    if writer is not _write_dataset:
        _check_file(request.out)
    else:
        check_takes_files(request.out)
    trained = load_for_sampling(request.workdir, step=request.step, weights=request.weights)
    with contextlib.closing(
        bar(total=request.setting.num, desc="sample", unit="sample")
    ) as progress:
        writer(trained, request, progress)


def images_and_labels(
    trained: "TrainedModel",
    setting: Setting,
    batch_size: int,
    progress: Callable[[int], object],
    numbers: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decoded samples (n, H, W, 3) uint8 and their classes (n,); of the given `numbers` only, or
    all of the setting.
    """
    run = trained.run
    numbers = np.arange(setting.num, dtype=np.int64) if numbers is None else numbers
    batch_size = fitting_batch_size(batch_size, len(numbers))

    def batches() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
        for drawn in draw_at(trained, setting, numbers, batch_size):
            yield (
                decode_samples(drawn.latents, run.normalization, run.vae, run.dataset.resolution),
                drawn.labels,
            )
            progress(len(drawn.labels))

    images, labels = zip(*batches(), strict=True)
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)


def _write_png(trained: "TrainedModel", request: DrawRequest, progress: Bar) -> None:
    images, labels = images_and_labels(
        trained, request.setting, request.batch_size, progress.update
    )
    if request.setting.label is None and len(np.unique(labels)) <= MOST_ROWS:
        rows = by_class(images, labels, columns=len(images))
    else:
        rows = [images[start : start + COLUMNS] for start in range(0, len(images), COLUMNS)]
    write_png(request.out, rows)


def _write_npz(trained: "TrainedModel", request: DrawRequest, progress: Bar) -> None:
    images, labels = images_and_labels(
        trained, request.setting, request.batch_size, progress.update
    )
    content = io.BytesIO()
    np.savez(content, images, labels)
    write_atomic(request.out, content.getvalue())


def _write_dataset(trained: "TrainedModel", request: DrawRequest, progress: Bar) -> None:
    generate(
        trained,
        request.setting,
        request.out,
        batch_size=request.batch_size,
        progress=progress.update,
    )


WRITERS: dict[str, Callable[["TrainedModel", DrawRequest, Bar], None]] = {
    ".png": _write_png,
    ".npz": _write_npz,
}


def _check_file(out: Path) -> None:
    if out.is_dir():
        raise UserError(
            f"{out}: is a directory; give a file name, or one without ending for a dataset"
        )
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no directory {out.parent}; make it first")
    check_takes_files(out.absolute().parent)


def plan(request: DrawRequest, run: Run) -> dict[str, Any]:
    """What would be done, for --dry-run."""
    setting, sampler = request.setting, request.setting.sampler
    kind = {".png": "a grid of images", ".npz": "a batch in ADM's layout"}.get(
        request.out.suffix.lower(), "a dataset"
    )
    nbytes = sum(spec.nbytes for spec in layout_tensors(Layout.LATENT, run.latent_shape).values())
    facts: dict[str, Any] = {
        "run": f"{request.workdir} ({run.parameters:,} parameters)",
        "checkpoint": (
            f"{'newest' if request.step is None else request.step}, {request.weights} weights"
        ),
        "samples": setting.num,
        "sampler": (
            f"{sampler.solver}, {sampler.effort}, guidance {sampler.cfg:g}, seed {sampler.seed}"
        ),
        "network evaluations": _evaluations(setting),
        "out": f"{request.out} ({kind})",
    }
    if kind == "a dataset":
        facts["shards"] = (
            f"{-(-setting.num // SHARD_SIZE)}, about {setting.num * nbytes / 1e6:.1f} MB"
        )
    return facts


def _evaluations(setting: Setting) -> str:
    nfe = setting.sampler.nfe
    if nfe is None:
        return "as many as each sample needs"
    return f"{nfe} a sample, {nfe * setting.num:,} in all"
