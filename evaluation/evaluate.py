"""`flowtrain eval WORKDIR`: for each setting generate, measure and compare, each step restartable."""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.generate import BATCH_SIZE, Setting, generate, sampling_facts, setting_name
from evaluation.imagesets import dataset_images
from evaluation.measure import (
    Notify,
    check_exists,
    check_reference,
    compare,
    kept_statistics,
    load_reference,
    protocol_of,
    warn_of_rank,
)
from evaluation.plots import accuracy_plot, distance_plot, draw
from evaluation.progress import MakeBar
from evaluation.protocols import EvaluationProtocol, Recipe
from evaluation.results import Result, append_result, find_result, read_results
from evaluation.tables import markdown_table
from schemas.files import write_atomic
from schemas.run import Run
from schemas.statistics import FeatureStatistics

if TYPE_CHECKING:
    from flowtrain.checkpoint import TrainedModel

SAMPLES_DIR = "samples"
EVAL_DIR = "eval"


@dataclass(frozen=True)
class Request:
    """What `eval` was asked for. `step` None is the newest checkpoint, `weights` as for `load_for_sampling`."""

    workdir: Path
    reference: Path
    recipe: Recipe
    settings: tuple[Setting, ...]
    step: int | None = None
    weights: str = "ema"
    batch_size: int = BATCH_SIZE
    beam_args: tuple[str, ...] = ()


def evaluate(request: Request, notify: Notify, bar: MakeBar) -> list[Result]:
    """Results of all settings, in order; what was measured before is read back.

    Args:
        request: what to measure.
        notify: told of warnings, one line each.
        bar: makes a progress bar over samples.

    Raises:
        UserError: no checkpoint, no such weights, or a reference that cannot be compared with.
    """
    from flowtrain.checkpoint import load_for_sampling

    workdir, cache = request.workdir, request.workdir / EVAL_DIR
    check_exists(request.reference)
    trained = load_for_sampling(workdir, step=request.step, weights=request.weights)
    protocol = protocol_of(request.recipe, trained.run.dataset.resolution)
    reference, where = load_reference(request.reference, request.recipe, cache, request.beam_args, bar)
    described = check_reference(protocol, reference, where, notify)
    warn_of_rank(min(setting.num for setting in request.settings), protocol.dim, "samples", notify)
    known, results = read_results(workdir), []
    with contextlib.closing(bar(total=sum(s.num for s in request.settings), desc="eval", unit="sample")) as progress:
        for setting in request.settings:
            identity = (sampling_facts(trained, setting), protocol, described.digest)
            result = find_result(known, identity)
            if result is None:
                progress.set_description(f"{setting.steps} steps, cfg {setting.cfg:g}", refresh=False)
                result = _measure_setting(request, trained, setting, protocol, reference, progress.update)
                append_result(workdir, result)
            else:
                progress.update(setting.num)
            results.append(result)
    write_outputs(workdir, results)
    return results


def _measure_setting(
    request: Request,
    trained: "TrainedModel",
    setting: Setting,
    protocol: EvaluationProtocol,
    reference: FeatureStatistics,
    progress: Callable[[int], object],
) -> Result:
    sampling = sampling_facts(trained, setting)
    name = setting_name(sampling)
    directory = request.workdir / SAMPLES_DIR / name
    begin = time.monotonic()
    generate(trained, setting, directory, batch_size=request.batch_size, progress=progress)
    generated = time.monotonic()
    out = request.workdir / EVAL_DIR / "statistics" / f"{name}-{protocol.name}.npz"
    statistics = kept_statistics(dataset_images(directory), protocol, out, request.beam_args)
    seconds = {"generate": round(generated - begin, 3), "measure": round(time.monotonic() - generated, 3)}
    return compare(statistics, reference, protocol, sampling, seconds)


def write_outputs(workdir: Path, results: Sequence[Result]) -> None:
    """`eval/table.md`, `results.json`, and the plots as SVG and PNG."""
    directory = workdir / EVAL_DIR
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "table.md", markdown_table(results))
    content = [result.to_json() for result in results]
    write_atomic(directory / "results.json", json.dumps(content, indent=2) + "\n")
    for kind in ("svg", "png"):
        write_atomic(directory / f"distance.{kind}", draw(distance_plot(results), kind=kind))
        if any(result.accuracy is not None for result in results):
            write_atomic(directory / f"accuracy.{kind}", draw(accuracy_plot(results), kind=kind))


def plan(request: Request, run: Run) -> dict[str, Any]:
    """What would be done, for --dry-run. Raises `UserError` when there is no such reference."""
    check_exists(request.reference)
    settings = request.settings
    evaluations = sum(setting.nfe * setting.num for setting in settings)
    steps = ", ".join(str(count) for count in dict.fromkeys(setting.steps for setting in settings))
    guidances = ", ".join(f"{cfg:g}" for cfg in dict.fromkeys(setting.cfg for setting in settings))
    return {
        "run": f"{request.workdir} ({run.parameters:,} parameters)",
        "checkpoint": f"{'newest' if request.step is None else request.step}, {request.weights} weights",
        "reference": request.reference,
        "protocol": f"{request.recipe.name}, printed as {request.recipe.metric}",
        "settings": f"{len(settings)}: {settings[0].solver}, steps {steps}; guidance {guidances}",
        "samples": f"{settings[0].num} a setting, {sum(setting.num for setting in settings):,} in all",
        "network evaluations": f"{evaluations:,}",
        "samples in": request.workdir / SAMPLES_DIR,
        "results in": request.workdir / EVAL_DIR,
    }
