"""The words and numbers of a report: pairs of a name and a text, ready to be laid out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.draw.setting import CYCLIC
from evaluation.features.imagesets import DECODED
from evaluation.report.tables import figure, setting_text, unusual, weights_text
from evaluation.results import Result
from schemas.manifest import Manifest
from schemas.recipes import recipe_tables
from schemas.run import Run

# How a network was trained, by kind of objective.
_TRAINED_BY = {"flow": "flow matching", "diffusion": "denoising diffusion"}
# Solvers by name.
_SOLVERS = {
    "euler": "Euler's method",
    "heun": "Heun's method",
    "midpoint": "the midpoint method",
    "rk4": "the classical Runge-Kutta method",
    "dopri5": "Dormand-Prince 5(4), adaptive",
    "ddim": "DDIM",
    "ddpm": "DDPM's ancestral sampling",
    "sde": "Euler-Maruyama, w(t) = sigma(t)",
}

Card = list[tuple[str, str]]
Metrics = Sequence[Mapping[str, float]]


class Headline(NamedTuple):
    """A number, what it is, and for which setting."""

    value: str
    label: str
    detail: str


class Stage(NamedTuple):
    """Seconds of a stage, its share of all of them, and what it did.

    `rate` is images a second, `nfe` network evaluations an image, each "" where a stage has none.
    """

    name: str
    seconds: float
    share: float
    detail: str
    rate: str = ""
    nfe: str = ""


def headline(run: Run, metrics: Metrics, series: Sequence[Result]) -> list[Headline]:
    """The few numbers at the top: the best of the settings, and the size of the run."""
    card: list[Headline] = []
    if series:
        best = min(series, key=lambda result: result.distance)
        label = f"{best.protocol.metric}, lower is better"
        card.append(Headline(figure(best.distance), label, _setting(best)))
        top = most_accurate(series)
        if top is not None and top.accuracy is not None:
            label = "of samples classified as their class"
            card.append(Headline(f"{top.accuracy:.1%}", label, _setting(top)))
    if metrics:
        batch = run.recipe.train.batch_size
        steps = f"{int(metrics[-1]['step']):,}"
        card.append(Headline(steps, "training steps", f"batches of {batch}"))
    model = run.recipe.model
    size = f"depth {model.depth}, width {model.width}"
    card.append(Headline(_short(run.parameters), "parameters", size))
    return card


def most_accurate(series: Sequence[Result]) -> Result | None:
    """The setting most often classified as its class; of equals, the nearest one."""
    scored = [result for result in series if result.accuracy is not None]
    return max(scored, key=lambda result: (result.accuracy or 0.0, -result.distance), default=None)


def _setting(result: Result) -> str:
    return setting_text(result.sampling) if result.sampling else ""


def summary(run: Run) -> str:
    """One sentence of what this is."""
    h, w, c = run.latent_shape
    space = "pixels" if run.vae is None else f"latents of the VAE {run.vae.id}"
    classes = f"{len(run.classes)} classes" if len(run.classes) > 1 else "no classes"
    how = _TRAINED_BY[run.recipe.objective.kind]
    return (
        f"A Diffusion Transformer trained by {how} on {run.dataset.records:,} records of "
        f"{run.dataset.source} ({run.dataset.split}, {classes}), as {h} x {w} x {c} {space}."
    )


def training(metrics: Metrics) -> Card:
    """How the training went."""
    if not metrics:
        return []
    last = metrics[-1]
    card = [("step", f"{int(last['step']):,}"), ("loss", f"{last['loss']:.4f}")]
    rates = [line["images_per_s"] for line in metrics if "images_per_s" in line]
    if rates:
        card.append(("images/s", f"{sorted(rates)[len(rates) // 2]:,.0f} (median)"))
    waits = [line["data_wait"] for line in metrics if "data_wait" in line]
    if waits:
        card.append(("waiting for data", f"{sum(waits) / len(waits):.1%} of the time"))
    return card


def times(run: Run, metrics: Metrics, series: Sequence[Result]) -> list[Stage]:
    """Seconds of each stage, as metrics and results recorded them."""
    stages = [_train_stage(run, metrics), *map(_sample_stage, series), *_measure_stages(series)]
    found = [stage for stage in stages if stage is not None]
    total = sum(stage.seconds for stage in found) or 1.0
    return [stage._replace(share=stage.seconds / total) for stage in found]


def _train_stage(run: Run, metrics: Metrics) -> Stage | None:
    batch = run.recipe.train.batch_size
    before = seconds = images = 0.0
    for line in metrics:
        if line.get("images_per_s"):
            count = (line["step"] - before) * batch
            seconds += count / line["images_per_s"]
            images += count
        before = line["step"]
    if not seconds:
        return None
    detail = f"{int(before):,} steps of {batch} records, without compilation"
    return Stage("train", seconds, 0.0, detail, _rate(images, seconds))


def _sample_stage(result: Result) -> Stage | None:
    sampling, seconds = result.sampling, result.seconds.get("generate")
    if sampling is None or seconds is None:
        return None
    return Stage(
        f"sample, {setting_text(sampling)}",
        seconds,
        share=0.0,
        detail=f"{sampling.num_samples:,} samples",
        rate=_rate(sampling.num_samples, seconds),
        nfe=f"{result.nfe:g}",
    )


def _measure_stages(series: Sequence[Result]) -> list[Stage]:
    """What the settings of a table have in common, summed over them."""
    images = sum(result.n for result in series)
    stages = []
    for key, name, rated in (
        ("measure", "decode and measure", True),
        ("score", "distance and other metrics", False),
    ):
        seconds = sum(result.seconds.get(key, 0.0) for result in series)
        if seconds:
            rate = _rate(images, seconds) if rated else ""
            stages.append(Stage(name, seconds, 0.0, f"{images:,} images", rate))
    return stages


def _rate(images: float, seconds: float) -> str:
    """Images a second; nothing where they were there already."""
    if seconds < 0.05:
        return ""
    rate = images / seconds
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Seconds, with one decimal below 100."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def recipe(run: Run) -> list[tuple[str, Card]]:
    """The tables of the recipe; what was left out of it and has no value is not shown."""
    tables = recipe_tables(run.recipe)
    return [
        (name, [(key, value_text(value)) for key, value in table.items() if value is not None])
        for name, table in tables.items()
    ]


def dataset(run: Run, manifest: Manifest | None) -> Card:
    """The dataset card; without the dataset itself, what the run remembers of it."""
    ref = run.dataset
    if manifest is None:
        facts = {
            "source": ref.source,
            "split": ref.split,
            "records": f"{ref.records:,}",
            "digest": ref.digest[:16],
        }
        return [
            *facts.items(),
            ("resolution", str(ref.resolution)),
            ("path", f"{ref.path} (not reachable now)"),
        ]
    counts = manifest.counts
    card: Card = [
        ("source", f"{manifest.source.descriptor}, {manifest.source.split}"),
        (
            "records",
            f"{counts.written:,} written, {counts.rejected:,} rejected, {counts.duplicate:,} "
            "duplicate",
        ),
        ("classes", _first_names(manifest.classes)),
        ("resolution", f"{manifest.resolution} pixels, crop rule {manifest.crop}"),
        ("tensors", _tensors(manifest)),
        ("mirrored encodings", "yes" if manifest.flips else "no"),
    ]
    if manifest.vae is not None:
        vae = manifest.vae
        card.append(
            (
                "VAE",
                f"{vae.id}, factor {vae.factor}, scaling {vae.scaling_factor:g}, weights "
                f"{vae.sha256[:12]}",
            )
        )
    if manifest.reconstruction is not None:
        reconstruction = manifest.reconstruction
        card.append(
            (
                "reconstruction",
                f"{reconstruction.psnr_db:.1f} dB PSNR over {reconstruction.records} images",
            )
        )
    deviations = ", ".join(f"{std:.3f}" for std in manifest.channels.std)
    size = sum(shard.bytes for shard in manifest.shards)
    return [
        *card,
        ("channel deviations", deviations),
        ("shards", f"{len(manifest.shards)}, {size / 1e6:.1f} MB"),
        ("digest", manifest.digest()[:16]),
    ]


def _tensors(manifest: Manifest) -> str:
    """`mean float16 4 x 4 x 4, ...`."""
    return ", ".join(
        f"{name} {spec.dtype} {' x '.join(map(str, spec.shape))}"
        for name, spec in manifest.tensors.items()
    )


def protocol(result: Result) -> Card:
    """How the numbers were made."""
    sampling, rule, reference = result.sampling, result.protocol, result.reference
    images = reference.images.get("images", reference.images)
    source = images.get("descriptor", images.get("kind", "statistics"))
    of = f"{reference.n:,} images of {source}" if reference.n else "given statistics"
    if source == DECODED:
        of += " (hides the VAE's own error)"
    distance = f"{rule.metric}: Fréchet distance of Gaussians fitted to features"
    if rule.key == "fd":
        distance += "; not an FID"
    card: Card = [
        ("distance", distance),
        ("extractor", f"{rule.extractor}, {rule.dim} features, weights {rule.weights}"),
        ("resize", rule.resize),
        ("pixels", rule.quantisation),
        ("reference", f"{of}, digest {reference.digest[:12]}"),
    ]
    if sampling is None:
        return card
    channels = "all channels"
    if sampling.cfg_channels is not None:
        channels = f"the first {sampling.cfg_channels} channels"
    labels = "each class in turn" if sampling.labels == CYCLIC else sampling.labels
    return [
        *card,
        ("samples", f"{sampling.num_samples:,} a setting, seed {sampling.seed}, labels: {labels}"),
        ("sampler", _SOLVERS.get(sampling.sampler, sampling.sampler)),
        ("weights", f"{weights_text(sampling)}, step {sampling.step:,}"),
        ("guidance", f"uncond + w (cond - uncond) on {channels}"),
        *([("also", ", ".join(unusual(sampling)))] if unusual(sampling) else []),
        ("run digest", sampling.run[:16]),
    ]


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def value_text(value: Any) -> str:
    """A value of a recipe, as TOML would have it but for quotes."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _first_names(names: Sequence[str], most: int = 12) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
