"""The commands that make a page again, ready to be typed; what has its default is left out."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.draw.setting import CYCLIC, UNIFORM
from evaluation.report.tables import by_setting
from evaluation.results import Result, Sampling
from evaluation.score.groups import GROUPS, needs_reference_rows
from schemas.manifest import Manifest
from schemas.run import Run

REFERENCE = "reference.npz"


def commands(
    workdir: Path, run: Run, manifest: Manifest | None, series: Sequence[Result]
) -> list[str]:
    """From preprocessing to the page; `recipe.toml` stands for the recipe shown on it.

    Args:
        workdir: of the run.
        run: what was trained.
        manifest: of its dataset, None when it cannot be had.
        series: results that differ in steps and guidance only.
    """
    data, name = run.dataset.path, str(workdir)
    lines = [preprocess(manifest.command, data)] if manifest else []
    lines.append(_line("flowtrain", "train", data, "--workdir", name, "--recipe", "recipe.toml"))
    if series:
        lines += [reference(series[-1], run), evaluate(name, run, series)]
    return [*lines, _line("flowtrain", "report", name)]


def preprocess(command: str, out: str) -> str:
    """A manifest's command with its OUT, the word after the source, filled in."""
    words = shlex.split(command)
    if words[3:4] == ["OUT"]:
        words[3] = out
    return _line(*words)


def reference(result: Result, run: Run) -> str:
    """The command that measures the reference, or a comment where only its digest is known."""
    images, rule = result.reference.images, result.protocol
    options = {"--split": images.get("split"), "--num": images.get("num")}
    if images.get("kind") == "source":
        source = images["descriptor"]
        options |= {"--resolution": rule.resolution, "--crop": _unless("adm", images.get("crop"))}
    elif "split" in images and images.get("digest") == run.dataset.digest:
        source = run.dataset.path
    else:
        of = (
            f"images of digest {images['digest'][:12]}"
            if "digest" in images
            else "given statistics"
        )
        return f"# {REFERENCE}: {of}, digest of mu and sigma {result.reference.digest[:12]}"
    kept = ["--features"] if needs_reference_rows(_requested_groups([result])) else []
    return _line(
        "flowtrain",
        "stats",
        source,
        REFERENCE,
        *_words({**options, "--extractor": rule.name}),
        *kept,
    )


def evaluate(workdir: str, run: Run, series: Sequence[Result]) -> str:
    """The `eval` of a series."""
    steps, guidances, _ = by_setting(series)
    sampling = series[-1].sampling
    assert sampling is not None, "a series is of samples"
    options = {
        "--reference": REFERENCE,
        "--steps": ",".join(map(str, steps)) if sampling.tolerance is None else None,
        "--cfg": ",".join(f"{cfg:g}" for cfg in guidances),
        "--num-samples": sampling.num_samples,
        "--protocol": series[-1].protocol.name,
        "--metrics": ",".join(_requested_groups(series)) or None,
    }
    return _line(
        "flowtrain", "eval", workdir, *_words({**options, **_sampling_options(sampling, run)})
    )


def _requested_groups(series: Sequence[Result]) -> list[str]:
    """Groups of metrics that are computed on request only, and need feature rows."""
    known = {name for result in series for name in result.metrics}
    return [
        name for name, group in GROUPS.items() if group.rows != "none" and known >= {*group.keys}
    ]


def _labels(rule: str) -> dict[str, Any]:
    if rule == UNIFORM:
        return {"--labels": UNIFORM}
    if rule.startswith("frequencies "):
        return {"--labels": REFERENCE}
    return {"--class": _unless(CYCLIC, rule)}


def _sampling_options(sampling: Sampling, run: Run) -> dict[str, Any]:
    same_interval = sampling.cfg_interval == run.recipe.sampler.cfg_interval
    return {
        "--solver": _unless(run.recipe.sampler.solver, sampling.sampler),
        "--tolerance": None if sampling.tolerance is None else f"{sampling.tolerance:g}",
        "--shift": _unless(run.recipe.sampler.shift, sampling.shift),
        "--cfg-channels": _unless(run.recipe.sampler.cfg_channels, sampling.cfg_channels),
        "--cfg-interval": None if same_interval else "{:g},{:g}".format(*sampling.cfg_interval),
        **_labels(sampling.labels),
        "--seed": _unless(0, sampling.seed),
        "--step": _unless(run.recipe.train.steps, sampling.step),
        "--weights": _unless("ema", sampling.weights),
    }


def _unless(default: Any, value: Any) -> Any:
    return None if value == default else value


def _words(options: Mapping[str, Any]) -> list[str]:
    return [
        word for name, value in options.items() if value is not None for word in (name, str(value))
    ]


def _line(*words: str) -> str:
    return shlex.join(words)
