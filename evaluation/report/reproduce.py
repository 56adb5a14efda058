"""The commands that make a page again, ready to be typed; what has its default is left out."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.draw.setting import command_line, default_words, sampling_words
from evaluation.report.tables import by_setting
from evaluation.results import Result
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
    options = {"--reference": REFERENCE}
    if sampling.tolerance is None:
        options["--steps"] = ",".join(map(str, steps))
    options |= {
        "--cfg": ",".join(f"{cfg:g}" for cfg in guidances),
        "--num-samples": f"{sampling.num_samples}",
        "--protocol": series[-1].protocol.name,
    }
    metrics = ",".join(_requested_groups(series))
    if metrics:
        options["--metrics"] = metrics
    defaults = default_words(run.recipe)
    for option, value in sampling_words(sampling, run.recipe, REFERENCE).items():
        if option not in options and defaults.get(option) != value:
            options[option] = value
    return command_line("eval", workdir, options=options)


def _requested_groups(series: Sequence[Result]) -> list[str]:
    """Groups of metrics that are computed on request only, and need feature rows."""
    known = {name for result in series for name in result.metrics}
    return [
        name for name, group in GROUPS.items() if group.rows != "none" and known >= {*group.keys}
    ]


def _unless(default: Any, value: Any) -> Any:
    return None if value == default else value


def _words(options: Mapping[str, Any]) -> list[str]:
    return [
        word for name, value in options.items() if value is not None for word in (name, str(value))
    ]


def _line(*words: str) -> str:
    return shlex.join(words)
