"""Strips from noise to a sample: x at several times, and the data predicted there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation.draw.setting import Setting, setting_name
from evaluation.report.pictures import Picture, picture
from evaluation.report.tables import setting_text
from evaluation.results import Result, Sampling
from pipelines.dataset.finished import LatentDataset
from pipelines.encoders.decode import decode_samples
from schemas.errors import UserError
from schemas.run import SAMPLES_DIR, Run
from schemas.solvers import ADAPTIVE

if TYPE_CHECKING:
    from flowtrain.flow.sampler import Trajectory

SAMPLES = 5
FRAMES = 8
MOST = float(np.finfo(np.float16).max)  # of a latent: what a sample set can hold
ENOUGH = 20  # steps: fewer make a short strip, more are slow to draw and look the same


@dataclass(frozen=True)
class Paths:
    """Strips with one row a sample; `note` says of which setting, `times` when the frames are."""

    seen: Picture
    predicted: Picture
    times: list[str]
    note: str


def denoising_paths(workdir: Path, run: Run, series: Sequence[Result], cfg: float) -> Paths:
    """The first few samples on their way, drawn now.

    Args:
        workdir: of the run; its checkpoint is loaded.
        run: what was trained.
        series: results of one table, of which one at guidance `cfg` is shown; without any, what the
            recipe says.
        cfg: guidance weight.

    Raises:
        UserError: no such checkpoint or sample set, a solver without steps of its own, or values
            that are not finite.
    """
    from flowtrain.flow.sampler import trajectory
    from flowtrain.state.checkpoint import load_for_sampling

    sampling = choose(series, cfg)
    if sampling is None:
        settings, step, weights = run.recipe.sampler.settings(), None, "ema"
        if settings.solver == ADAPTIVE:
            raise UserError(f"denoising paths: {ADAPTIVE} chooses its steps for each sample alone")
        labels = Setting(SAMPLES, settings).labels(np.arange(SAMPLES), run.sampled_classes)
    else:
        settings, step, weights = sampling.settings, sampling.step, sampling.weights
        labels = stored_labels(workdir, sampling)
    moments = frames(settings.steps)
    trained = load_for_sampling(workdir, step, weights)
    found = trajectory(trained, labels, np.arange(len(labels)), settings, moments)
    seen, predicted = decoded(found, run)
    guided = "no guidance" if settings.cfg == 1 else f"guidance {settings.cfg:g}"
    note = setting_text(sampling) if sampling else f"{settings.effort}, {guided}"
    return Paths(
        picture(
            list(seen),
            f"{len(seen)} samples at {len(moments)} times from noise to data, one row a sample",
        ),
        picture(list(predicted), "what the network predicts as the data at those times"),
        [f"{max(float(t), 0.0):.2f}" for t in found.t],
        f"{settings.solver}, {note}",
    )


def choose(series: Sequence[Result], cfg: float) -> Sampling | None:
    """Of a guidance's settings, the fewest steps from `ENOUGH` on, or else the most."""
    found = sorted(
        (
            s
            for result in series
            if (s := result.sampling) is not None and s.cfg == cfg and s.steps > 0
        ),
        key=lambda sampling: sampling.steps,
    )
    return next(
        (sampling for sampling in found if sampling.steps >= ENOUGH), found[-1] if found else None
    )


def frames(steps: int) -> list[int]:
    """At most `FRAMES` step numbers to look at, evenly from 0 to `steps` inclusive."""
    return np.unique(np.linspace(0, steps, FRAMES).round().astype(int)).tolist()


def stored_labels(workdir: Path, sampling: Sampling) -> NDArray[np.int32]:
    """The classes of the first samples of a set. Raises `UserError` when it is gone or broken."""

    dataset = LatentDataset(workdir / SAMPLES_DIR / setting_name(sampling))
    records = dataset.records(stop=min(SAMPLES, len(dataset)))
    return np.array([record.label for record in records], np.int32)


def decoded(found: "Trajectory", run: Run) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`x` and `data` of a trajectory as pixels, (samples, frames, H, W, 3) each.

    Raises:
        UserError: a sample is not finite.
    """
    if not np.isfinite(found.x[-1]).all():
        raise UserError("denoising paths: the weights give samples that are not finite")
    both = np.stack([found.x, found.data]).swapaxes(1, 2)  # (2, samples, frames, h, w, c)
    # What a diffusion takes for the data at its noisiest may be far away.
    flat = np.clip(np.nan_to_num(both.reshape(-1, *both.shape[3:])), -MOST, MOST)
    images = decode_samples(flat, run.normalization, run.vae, run.dataset.resolution)
    seen, predicted = images.reshape(*both.shape[:3], *images.shape[1:])
    return seen, predicted
