"""`flowtrain eval WORKDIR`: for each setting generate, measure and compare, each step
restartable.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.draw.generate import BATCH_SIZE, generate, mean_evaluations
from evaluation.draw.setting import Setting, sampling_facts, setting_name
from evaluation.features.imagesets import dataset_images
from evaluation.features.measure import (
    DEFAULTS,
    Measured,
    MeasureOptions,
    kept_statistics,
    protocol_of,
)
from evaluation.progress import Bar, MakeBar
from evaluation.protocols import EvaluationProtocol, Recipe
from evaluation.report.plots import accuracy_plot, distance_plot, draw
from evaluation.report.tables import by_series, markdown
from evaluation.results import Reference, Result, append_result, find_result, read_results
from evaluation.score.compare import (
    Notify,
    check_exists,
    check_reference,
    compare,
    load_reference,
    warn_of_rank,
)
from evaluation.score.groups import (
    choose,
    lacking,
    needs_reference_rows,
    needs_rows,
    with_reference,
)
from schemas.errors import UserError
from schemas.files import write_atomic
from schemas.run import EVAL_DIR, SAMPLES_DIR, Run, read_run
from schemas.sampler import SamplerSettings

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel


@dataclass(frozen=True)
class Request:
    """What `eval` was asked for, with one checkpoint, average and protocol.

    `step` None is the newest checkpoint, `weights` as for `load_for_sampling`; `metrics` names
    groups of `evaluation.score.groups`, none for those that cost nothing. With `neighbours` a
    picture shows the nearest training images of so many samples of each setting.
    """

    workdir: Path
    reference: Path
    recipe: Recipe
    settings: tuple[Setting, ...]
    step: int | None = None
    weights: str = "ema"
    batch_size: int = BATCH_SIZE
    metrics: tuple[str, ...] = ()
    neighbours: int = 0
    measuring: MeasureOptions = DEFAULTS


def evaluate(requests: Sequence[Request], notify: Notify, bar: MakeBar) -> list[Result]:
    """Results of all settings of all requests, in order; what was measured before is read back.

    Args:
        requests: what to measure, of one work directory.
        notify: told of warnings, one line each.
        bar: makes a progress bar over samples.

    Raises:
        UserError: no checkpoint, no such weights, or a reference that cannot be compared with.
    """
    from flowtrain.state.checkpoint import load_for_sampling

    told: set[str] = set()

    def notify_once(message: str) -> None:
        if message not in told:  # the requests of a sweep have much in common
            told.add(message)
            notify(message)

    # most of a sweep draws from one set of weights
    restore = functools.lru_cache(maxsize=1)(load_for_sampling)
    references: _References = {}
    # every mistake before any work
    prepared = [_prepare(request, notify_once, bar, references) for request in requests]
    total = sum(setting.num for request in requests for setting in request.settings)
    with contextlib.closing(bar(total=total, desc="eval", unit="sample")) as progress:
        results = [result for each in prepared for result in _evaluate(each, progress, restore)]
    write_outputs(requests[0].workdir, results)
    return results


class _Prepared(NamedTuple):
    """A request that can be carried out, as far as can be told without the weights."""

    request: Request
    protocol: EvaluationProtocol
    groups: tuple[str, ...]
    reference: Measured
    described: Reference


# by path, protocol, and whether its rows are needed
_References = dict[tuple[Path, str, bool], Measured]


def _prepare(request: Request, notify: Notify, bar: MakeBar, references: _References) -> _Prepared:
    """Check a request, and measure its reference when that is a dataset; `references` keeps those
    of other requests.

    Raises:
        UserError: as `evaluate`.
    """
    from flowtrain.state.checkpoint import check_sampling

    check_exists(request.reference)
    check_sampling(request.workdir, request.step, request.weights)
    run = read_run(request.workdir)
    protocol = protocol_of(request.recipe, run.dataset.resolution, request.measuring.weights)
    fewest = min(setting.num for setting in request.settings)
    groups = choose(request.metrics, protocol, fewest, notify)
    if request.neighbours:
        check_training_set(run)
    measuring = replace(request.measuring, make_bar=bar, keep_features=needs_reference_rows(groups))
    key = request.reference, request.recipe.name, measuring.keep_features
    if key not in references:
        references[key] = load_reference(
            request.reference, request.recipe, request.workdir / EVAL_DIR, measuring
        )
    reference = references[key]
    described = check_reference(protocol, reference.statistics, request.reference, notify)
    groups = with_reference(groups, request.metrics, reference, notify)
    warn_of_rank(fewest, protocol.dim, "samples", notify)
    return _Prepared(request, protocol, groups, reference, described)


def check_training_set(run: Run) -> None:
    """Whether the dataset that a run was trained on is where it was. Raises `UserError`."""
    if dataset_images(Path(run.dataset.path)).digest != run.dataset.digest:
        raise UserError(
            f"{run.dataset.path}: not the dataset that the run was trained on; leave --neighbours "
            "out"
        )


def _evaluate(
    prepared: _Prepared, progress: Bar, restore: Callable[[Path, int | None, str], "TrainedModel"]
) -> list[Result]:
    """The results of one request; `restore` is `load_for_sampling`."""
    request, groups = prepared.request, prepared.groups
    trained = restore(request.workdir, request.step, request.weights)
    keep = needs_rows(groups) or request.neighbours > 0
    work = _Work(
        request,
        trained,
        prepared.protocol,
        prepared.reference,
        replace(request.measuring, keep_features=keep),
    )
    known, results = read_results(request.workdir), []
    for setting in request.settings:
        identity = (sampling_facts(trained, setting), prepared.protocol, prepared.described.digest)
        result = find_result(known, identity)
        missing = groups if result is None else lacking(groups, result.metrics)
        if result is None or missing:
            sampler = setting.sampler
            progress.set_description(f"{sampler.effort}, cfg {sampler.cfg:g}", refresh=False)
            result = work.measure(setting, result, missing, progress.update)
            append_result(request.workdir, result)
        else:
            progress.update(setting.num)
        if request.neighbours:
            work.show_neighbours(setting)
        results.append(result)
    return results


@dataclass(frozen=True)
class _Work:
    """What the settings of a request share."""

    request: Request
    trained: "TrainedModel"
    protocol: EvaluationProtocol
    reference: Measured
    measuring: MeasureOptions

    def measure(
        self,
        setting: Setting,
        known: Result | None,
        groups: Sequence[str],
        progress: Callable[[int], object],
    ) -> Result:
        """Draw, decode and measure one setting; metrics that are known are kept."""
        sampling = sampling_facts(self.trained, setting)
        directory, begin = self._samples(setting), time.monotonic()
        manifest = generate(
            self.trained, setting, directory, batch_size=self.request.batch_size, progress=progress
        )
        generated = time.monotonic()
        subject = self._statistics(setting)
        measured = time.monotonic()
        nfe = mean_evaluations(directory, manifest)
        result = compare(
            subject, self.reference, self.protocol, groups, sampling=sampling, mean_nfe=nfe
        )
        seconds = {
            "generate": generated - begin,
            "measure": measured - generated,
            "score": time.monotonic() - measured,
        }
        before = known.seconds if known else {}
        return result.model_copy(
            update={
                "metrics": {**(known.metrics if known else {}), **result.metrics},
                "seconds": {
                    name: round(value + before.get(name, 0.0), 3) for name, value in seconds.items()
                },
            }
        )

    def show_neighbours(self, setting: Setting) -> None:
        """The picture of `evaluation.report.neighbours`, unless it is there."""
        from evaluation.report.neighbours import write_neighbours

        directory, cache = self._samples(setting), self.request.workdir / EVAL_DIR
        out = (
            cache
            / f"neighbours-{directory.name}-{self.protocol.name}-{self.request.neighbours}.png"
        )
        if not out.is_file():
            # if it was deleted
            generate(self.trained, setting, directory, batch_size=self.request.batch_size)
            images = dataset_images(Path(self.trained.run.dataset.path))
            measured = cache / f"training-{images.digest[:12]}-{self.protocol.name}.npz"
            training = images, kept_statistics(images, self.protocol, measured, self.measuring)
            samples = dataset_images(directory), self._statistics(setting)
            write_neighbours(out, samples, training, self.request.neighbours)

    def _samples(self, setting: Setting) -> Path:
        return (
            self.request.workdir / SAMPLES_DIR / setting_name(sampling_facts(self.trained, setting))
        )

    def _statistics(self, setting: Setting) -> Measured:
        directory = self._samples(setting)
        out = (
            self.request.workdir
            / EVAL_DIR
            / "statistics"
            / f"{directory.name}-{self.protocol.name}.npz"
        )
        return kept_statistics(dataset_images(directory), self.protocol, out, self.measuring)


def write_outputs(workdir: Path, results: Sequence[Result]) -> None:
    """`eval/table.md`, `results.json`, and the plots as SVG and PNG."""
    directory = workdir / EVAL_DIR
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "table.md", markdown(results, read_run(workdir), workdir.name) + "\n")
    content = [result.to_json() for result in results]
    write_atomic(directory / "results.json", json.dumps(content, indent=2) + "\n")
    last = by_series(results)[-1]  # a plot has one line a guidance weight
    for kind in ("svg", "png"):
        write_atomic(directory / f"distance.{kind}", draw(distance_plot(last), kind=kind))
        accuracy = directory / f"accuracy.{kind}"
        if any(result.accuracy is not None for result in last):
            write_atomic(accuracy, draw(accuracy_plot(last), kind=kind))
        else:
            accuracy.unlink(missing_ok=True)  # of other results


def plan(requests: Sequence[Request], run: Run) -> dict[str, Any]:
    """What would be done, for --dry-run. Raises `UserError` when there is no such reference."""
    from flowtrain.state.checkpoint import check_sampling

    first = requests[0]
    for request in requests:
        check_exists(request.reference)
        check_sampling(request.workdir, request.step, request.weights)
    settings = [setting for request in requests for setting in request.settings]
    checkpoints = _all_of("newest" if each.step is None else each.step for each in requests)
    weights = _all_of(each.weights for each in requests)
    protocols = (f"{each.recipe.name}, printed as {each.recipe.metric}" for each in requests)
    numbers = [setting.num for setting in settings]
    return {
        "run": f"{first.workdir} ({run.parameters:,} parameters)",
        "checkpoint": f"{checkpoints}, {weights} weights",
        "reference": first.reference,
        "protocol": _all_of(protocols),
        "settings": f"{len(settings)}: {_in_words([setting.sampler for setting in settings])}",
        "samples": f"{_all_of(numbers)} a setting, {sum(numbers):,} in all",
        "network evaluations": _evaluations(settings),
        "samples in": first.workdir / SAMPLES_DIR,
        "results in": first.workdir / EVAL_DIR,
    }


def _all_of(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _in_words(samplers: Sequence[SamplerSettings]) -> str:
    efforts = _all_of(sampler.effort.removesuffix(" steps") for sampler in samplers)
    solvers = _all_of(sampler.solver for sampler in samplers)
    guidances = _all_of(f"{sampler.cfg:g}" for sampler in samplers)
    return f"{solvers}, steps {efforts}; guidance {guidances}"


def _evaluations(settings: Sequence[Setting]) -> str:
    """How many network evaluations there are in all, as far as that is known before."""
    known = sum((setting.sampler.nfe or 0) * setting.num for setting in settings)
    if any(setting.sampler.nfe is None for setting in settings):
        return f"{known:,} and what adaptive solvers need"
    return f"{known:,}"
