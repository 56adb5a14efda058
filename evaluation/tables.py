"""Results as a table: one row a number of steps, two columns (distance, accuracy) a guidance weight."""

from collections.abc import Sequence

from evaluation.results import Result, Sampling


def describe(result: Result) -> str:
    """One line of what was measured, for above a table."""
    protocol, sampling = result.protocol, result.sampling
    against = f"against {result.reference.n} images" if result.reference.n else "against given statistics"
    if sampling is None:
        return f"{protocol.metric}, {result.n} images {against}"
    return (
        f"{protocol.metric}, {result.n} samples {against}; {weights_text(sampling)} of step {sampling.step}, "
        f"{sampling.sampler}, seed {sampling.seed}"
    )


def weights_text(sampling: Sampling) -> str:
    """Which weights, in words; those of further averages by their names."""
    name = {"ema": "EMA", "params": "raw"}.get(sampling.weights, sampling.weights)
    return f"{name} weights"


def by_setting(results: Sequence[Result]) -> tuple[list[int], list[float], dict[tuple[int, float], Result]]:
    """Step counts (most first), guidance weights (least first), and the newest result of each pair."""
    cells = {(s.steps, s.cfg): r for r in results if (s := r.sampling) is not None}
    steps = sorted({steps for steps, _ in cells}, reverse=True)
    return steps, sorted({cfg for _, cfg in cells}), cells


def same_series(results: Sequence[Result], like: Result) -> list[Result]:
    """The results that differ from `like` in steps and guidance only, so that they may share a table."""

    def series(result: Result) -> tuple[object, ...]:
        assert result.sampling is not None
        varying = {"steps": 0, "nfe": 0, "cfg": 0.0}
        fixed: Sampling = result.sampling.model_copy(update=varying)
        return fixed, result.protocol, result.reference.digest

    return [r for r in results if r.sampling is not None and series(r) == series(like)]


def figure(distance: float) -> str:
    """Two decimals, as papers print them; three below 1."""
    return f"{distance:.2f}" if distance >= 1 else f"{distance:.3f}"


def setting_text(sampling: Sampling) -> str:
    """Steps and guidance in words."""
    steps = f"{sampling.steps} step{'s' if sampling.steps > 1 else ''}"
    return f"{steps}, no guidance" if sampling.cfg == 1 else f"{steps}, guidance {sampling.cfg:g}"


def rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text; `-` where a pair was not measured."""
    steps, guidances, cells = by_setting(results)
    metric = results[0].protocol.metric
    scored = any(result.accuracy is not None for result in results)
    header = ["steps"]
    for cfg in guidances:
        header += [f"{metric}, cfg {cfg:g}"] + ([f"accuracy, cfg {cfg:g}"] if scored else [])
    body = []
    for count in steps:
        row = [str(count)]
        for cfg in guidances:
            result = cells.get((count, cfg))
            row.append(figure(result.distance) if result else "-")
            if scored:
                row.append(f"{result.accuracy:.1%}" if result and result.accuracy is not None else "-")
        body.append(row)
    return header, body


def text_table(results: Sequence[Result]) -> str:
    """For a terminal: a line that says what, then aligned columns. Compared images get one line."""
    if results[0].sampling is None:
        return "\n".join(f"{describe(result)}: {result.distance:.4f}{_accuracy(result)}" for result in results)
    header, body = rows(results)
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *body)]
    return "\n".join([describe(results[0]), lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(results: Sequence[Result]) -> str:
    """The same in GitHub's Markdown."""
    header, body = rows(results)
    lines = [header, ["---:"] * len(header), *body]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    protocol = results[0].protocol
    return (
        f"{describe(results[0])}. Lower is better.\n\n{table}\n\n"
        f"Extractor {protocol.extractor} ({protocol.extractor_digest[:12]}), resize {protocol.resize}, "
        f"resolution {protocol.resolution}; reference {results[0].reference.digest[:12]}.\n"
    )


def _accuracy(result: Result) -> str:
    return "" if result.accuracy is None else f", {result.accuracy:.1%} classified as labelled"
