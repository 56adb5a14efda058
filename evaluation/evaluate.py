"""`flowtrain eval WORKDIR`: for each setting generate, measure and compare.

A killed command goes on: results are read back here (`_Work.result`), a set of samples is taken up
by `evaluation.draw.generate`, whole statistics by `evaluation.features.measure`, and their ranges
by `evaluation.features.pipeline`.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from evaluation.results import Result, append_result, find_result, read_results
from evaluation.score.compare import (
    Notify,
    check_exists,
    check_named,
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
from schemas.manifest import Manifest
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

    shared = _Shared(_once(notify), bar)
    # every mistake before any work
    items = [item for request in requests for item in shared.items(request)]
    # most of a sweep draws from one set of weights
    restore = functools.lru_cache(maxsize=1)(load_for_sampling)
    known, results = read_results(requests[0].workdir), []
    total = sum(item.setting.num for item in items)
    with contextlib.closing(bar(total=total, desc="eval", unit="sample")) as progress:
        for item in items:
            request = item.request
            trained = restore(request.workdir, request.step, request.weights)
            result = _Work(item, trained).result(known, progress)
            known.append(result)
            results.append(result)
    write_outputs(requests[0].workdir, results)
    return results


def _once(notify: Notify) -> Notify:
    """Tells no line twice: the requests of a sweep have much in common."""
    told: set[str] = set()

    def notify_once(message: str) -> None:
        if message not in told:
            told.add(message)
            notify(message)

    return notify_once


@dataclass(frozen=True)
class _Item:
    """One item of the work list: a setting of a checkpoint, measured under a protocol.

    `digest` is that of the reference that it is compared with.
    """

    request: Request
    setting: Setting
    protocol: EvaluationProtocol
    groups: tuple[str, ...]
    reference: Measured
    digest: str


class _Shared:
    """Makes the work list, and holds what its items have in common.

    These are the references, by path, protocol and whether their feature rows are needed.
    """

    def __init__(self, notify: Notify, bar: MakeBar):
        self._notify, self._bar = notify, bar
        self._references: dict[tuple[Path, str, bool], Measured] = {}

    def items(self, request: Request) -> list[_Item]:
        """The items of a request that can be carried out, as far as is known without weights.

        Raises:
            UserError: as `evaluate`.
        """
        from flowtrain.state.checkpoint import check_sampling

        check_exists(request.reference)
        check_sampling(request.workdir, request.step, request.weights)
        run = read_run(request.workdir)
        protocol = protocol_of(request.recipe, run.dataset.resolution, request.measuring.weights)
        fewest = _fewest(request)
        groups = choose(request.metrics, protocol, fewest, self._notify)
        if request.neighbours:
            check_training_set(run)
        reference = self._reference(request, needs_reference_rows(groups))
        statistics = reference.statistics
        described = check_reference(protocol, statistics, request.reference, self._notify)
        groups = with_reference(groups, request.metrics, reference, self._notify)
        warn_of_rank(fewest, protocol.dim, "samples", self._notify)
        return [
            _Item(request, setting, protocol, groups, reference, described.digest)
            for setting in request.settings
        ]

    def _reference(self, request: Request, keep_features: bool) -> Measured:
        """Read or, when it is a dataset, measured; once."""
        key = request.reference, request.recipe.name, keep_features
        if key not in self._references:
            measuring = replace(request.measuring, make_bar=self._bar, keep_features=keep_features)
            self._references[key] = load_reference(
                request.reference, request.recipe, request.workdir / EVAL_DIR, measuring
            )
        return self._references[key]


def check_training_set(run: Run) -> None:
    """Whether the dataset that a run was trained on is where it was. Raises `UserError`."""
    if dataset_images(Path(run.dataset.path)).digest != run.dataset.digest:
        raise UserError(
            f"{run.dataset.path}: not the dataset that the run was trained on; leave --neighbours "
            "out"
        )


class _Work:
    """An item of the work list with its weights, at work."""

    def __init__(self, item: _Item, trained: "TrainedModel"):
        request, setting = item.request, item.setting
        self._item, self._request, self._trained = item, request, trained
        keep = needs_rows(item.groups) or request.neighbours > 0
        self._measuring = replace(request.measuring, keep_features=keep)
        self._sampling = sampling_facts(trained, setting)
        self._cache = request.workdir / EVAL_DIR
        self._samples = request.workdir / SAMPLES_DIR / setting_name(self._sampling)

    def result(self, known: Sequence[Result], progress: Bar) -> Result:
        """Read back where it was measured before, and written down where not."""
        item, setting = self._item, self._item.setting
        result = find_result(known, (self._sampling, item.protocol, item.digest))
        missing = item.groups if result is None else lacking(item.groups, result.metrics)
        if result is None or missing:
            sampler = setting.sampler
            progress.set_description(f"{sampler.effort}, cfg {sampler.cfg:g}", refresh=False)
            result = self._measure(result, missing, progress.update)
            append_result(self._request.workdir, result)
        else:
            progress.update(setting.num)
        if self._request.neighbours:
            self._show_neighbours()
        return result

    def _measure(
        self, known: Result | None, groups: Sequence[str], progress: Callable[[int], object]
    ) -> Result:
        """Draw, decode and measure; metrics that are known are kept."""
        begin = time.monotonic()
        manifest = self._generate(progress)
        generated = time.monotonic()
        subject = self._statistics()
        measured = time.monotonic()
        result = compare(
            subject,
            self._item.reference,
            self._item.protocol,
            groups,
            sampling=self._sampling,
            mean_nfe=mean_evaluations(self._samples, manifest),
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

    def _show_neighbours(self) -> None:
        """The picture of `evaluation.report.neighbours`, unless it is there."""
        from evaluation.report.neighbours import write_neighbours

        count, protocol = self._request.neighbours, self._item.protocol
        out = self._cache / f"neighbours-{self._samples.name}-{protocol.name}-{count}.png"
        if out.is_file():
            return
        self._generate(lambda samples: None)  # if the sample set was deleted
        images = dataset_images(Path(self._trained.run.dataset.path))
        file = self._cache / f"training-{images.digest[:12]}-{protocol.name}.npz"
        training = images, kept_statistics(images, protocol, file, self._measuring)
        samples = dataset_images(self._samples), self._statistics()
        write_neighbours(out, samples, training, count)

    def _generate(self, progress: Callable[[int], object]) -> Manifest:
        return generate(
            self._trained,
            self._item.setting,
            self._samples,
            batch_size=self._request.batch_size,
            progress=progress,
        )

    def _statistics(self) -> Measured:
        protocol = self._item.protocol
        file = self._cache / "statistics" / f"{self._samples.name}-{protocol.name}.npz"
        return kept_statistics(dataset_images(self._samples), protocol, file, self._measuring)


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
    """What would be done, for --dry-run.

    Raises:
        UserError: no such reference, weights or metric.
    """
    from flowtrain.state.checkpoint import check_sampling

    first = requests[0]
    for request in requests:
        check_named(request.reference, request.recipe, request.metrics, _fewest(request))
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


def _fewest(request: Request) -> int:
    """Samples in the smallest set of a request."""
    return min(setting.num for setting in request.settings)


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
