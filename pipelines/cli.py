"""`flowtrain preprocess`."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipelines.option_types import BATCH, SHARDS, SIDE, FiniteRange
from pipelines.preprocess.thresholds import MAX_BAD_FRACTION, MIN_PSNR
from schemas.text import aligned, printable

if TYPE_CHECKING:
    from pipelines.preprocess.plan import Plan
    from schemas.manifest import Manifest

_NAMED = 5  # classes in a warning
# options that become part of the source's name, and what they are there
_OF_SOURCE = {
    "classes": "classes",
    "image_column": "image",
    "label_column": "label",
    "exif": "exif",
    "min_side": "min_side",
}
CROP_RULES = ("adm", "none")
EPILOG = """\b
Examples:
  flowtrain preprocess embedded:digits digits --resolution 32 --vae embedded
  flowtrain preprocess photos/ latents --flips
  flowtrain preprocess tar:ILSVRC2012_img_train.tar,ILSVRC2012_devkit_t12.tar.gz latents
  flowtrain preprocess tfds:celeb_a_hq/256 s3://bucket/latents -- --s3_region_name=eu-west-1
  flowtrain preprocess photos/ latents -- \\
      --direct_running_mode=multi_processing --direct_num_workers=4

The same command again goes on where the last one stopped."""


@click.command(epilog=EPILOG)
@click.argument("source")
@click.argument("out", type=click.Path(file_okay=True))
@click.option(
    "--split",
    default="train",
    show_default=True,
    help="Split of the source, and name of it in OUT. Of a folder or archive that holds train/ and "
    "val/ it is what lies below.",
)
@click.option(
    "--classes",
    type=click.Choice(["folders", "none"]),
    default="folders",
    show_default=True,
    help="none: all images are one class, whatever folders or columns say.",
)
@click.option(
    "--image-column",
    default="",
    help="Parquet: column of images; wds: extension.  [default: image, or the only possible]",
)
@click.option(
    "--label-column",
    default="",
    help="Column of classes of Parquet, metadata.jsonl or metadata.csv; of wds the key of .json.  "
    "[default: label, or the only possible; .cls]",
)
@click.option(
    "--exif",
    type=click.Choice(["apply", "ignore"]),
    default="apply",
    show_default=True,
    help="ignore: images as they are stored, not turned, as ADM, DiT, SiT and EDM2 have them.",
)
@click.option(
    "--min-side",
    type=click.IntRange(0, 10**6),
    default=0,
    help="Reject images with a shorter side of fewer pixels.  [default: none; small ones are "
    "enlarged]",
)
@click.option(
    "--resolution",
    type=SIDE,
    default=256,
    show_default=True,
    help="Side in pixels.",
)
@click.option(
    "--crop",
    type=click.Choice(CROP_RULES),
    default="adm",
    show_default=True,
    help="adm: resize the shorter side, cut out the centre. none: images must have the size.",
)
@click.option(
    "--vae",
    default="stabilityai/sd-vae-ft-mse",
    show_default=True,
    help="A hub id (org/name, org/name:folder), a directory in diffusers' format or of a tiny "
    "autoencoder's two files, embedded, or none to store pixels.",
)
@click.option("--vae-revision", default=None, help="Branch, tag or commit of a VAE on the hub.")
@click.option(
    "--vae-dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default=None,
    help=(
        "Precision of the VAE's computation.  [default: bfloat16 on an accelerator, float32 on a "
        "CPU]"
    ),
)
@click.option("--flips", is_flag=True, help="Encode mirrored images too, as the split SPLIT_flip.")
@click.option(
    "--shards",
    type=SHARDS,
    default=None,
    help="Number of shards.  [default: one per 1000 images]",
)
@click.option(
    "--batch-size",
    type=BATCH,
    default=32,
    show_default=True,
    help="Images encoded at once.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the order of the records.",
)
@click.option(
    "--max-bad-fraction",
    type=FiniteRange(0, 1),
    default=MAX_BAD_FRACTION,
    show_default=True,
    help="Fail when more of the images cannot be used.",
)
@click.option(
    "--min-psnr",
    type=FiniteRange(min=0),
    default=MIN_PSNR,
    show_default=True,
    help="Fail when the VAE reconstructs a sample of the images worse, in dB; 0 for no limit.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and its cost, and stop; nothing is written."
)
@click.option(
    "--images-per-second",
    type=FiniteRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="With --dry-run: the rate of all workers together, by which to tell the hours.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
def preprocess(
    dry_run: bool,
    images_per_second: float,
    as_json: bool,
    beam_options: tuple[str, ...],
    **typed: Any,
) -> None:
    """Encode the images of SOURCE into a latent dataset at OUT.

    SOURCE is a folder of images (its sub-folders are the classes), tar:FILE, zip:FILE, tfds:NAME,
    wds:SHARDS, parquet:PATH or embedded:digits. SOURCE and OUT may be in object stores (gs://,
    s3://). OUT can be opened by `tfds.builder_from_directory(OUT)`. What follows -- goes to Beam.
    """
    from pipelines.preprocess import plan as planning
    from pipelines.sources.options import SourceOptions, with_options

    if beam_options and not beam_options[0].startswith("-"):
        raise click.UsageError(
            f"unexpected argument {beam_options[0]!r}; options of Beam are given after --"
        )
    started = time.monotonic()
    said = {field: typed.pop(name) for name, field in _OF_SOURCE.items()}
    source = with_options(typed["source"], SourceOptions(**said))
    request = planning.Request(**{**typed, "source": source})
    if beam_options or any("://" in place for place in (request.source, request.out)):
        from pipelines.runners.runner import parse_options

        # object stores are reached by Beam's options, from the first look at the source on
        parse_options(beam_options)
    plan = planning.make_plan(request)
    for remark in plan.remarks:
        click.echo(printable(f"Note: {remark}"), err=True)
    if dry_run:
        from pipelines.preprocess.cost import describe

        _tell(describe(plan, images_per_second), as_json)
    elif beam_options and _only_builds(beam_options):
        _build(plan, beam_options, as_json)
    else:
        _make(plan, beam_options, as_json, started)


def _only_builds(beam_options: tuple[str, ...]) -> bool:
    """Whether Beam's own --dry_run=True is among its options."""
    from pipelines.runners.runner import only_builds

    return only_builds(beam_options)


def _build(plan: "Plan", beam_options: tuple[str, ...], as_json: bool) -> None:
    """The job as it would be submitted."""
    from pipelines.preprocess.pipeline import build_job

    job = build_job(plan, beam_options)
    facts = {"out": plan.directory.root, "state": "job built, not submitted", **asdict(job)}
    _tell(facts, as_json)


def _make(plan: "Plan", beam_options: tuple[str, ...], as_json: bool, started: float) -> None:
    """Make what is missing of the dataset, and tell of it; `started` by the monotonic clock."""
    done = plan.finished_manifest()
    if done is None or plan.cluttered:
        from pipelines.runners.beam_noise import quiet_log

        with quiet_log():
            from pipelines.preprocess.pipeline import preprocess as make

        manifest = make(plan, beam_options)  # or only clear away what a killed run left
    else:
        manifest = done
    reconstruction = manifest.reconstruction
    summary = {
        "out": plan.directory.root,
        "state": "written" if done is None else "was finished already",
        "records": manifest.counts.written,
        "rejected": manifest.counts.rejected,
        "duplicates": manifest.counts.duplicate,
        "classes": len(manifest.classes),
        "splits": list(manifest.splits),
        "shape": list(manifest.shape),
        "shards": plan.settings.shards,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "psnr_db": None if reconstruction is None else round(reconstruction.psnr_db, 2),
        "digest": manifest.digest(),
        "seconds": round(time.monotonic() - started, 1),
    }
    _tell(summary, as_json)
    if manifest.counts.enlarged:
        click.echo(
            f"Warning: {manifest.counts.enlarged} of {manifest.counts.written} images are smaller "
            f"than {manifest.resolution} pixels and were enlarged; --min-side "
            f"{manifest.resolution} leaves them out",
            err=True,
        )
    if manifest.empty_classes:
        click.echo(f"Warning: {_about_empty(manifest)}", err=True)
    if manifest.vae is not None and reconstruction is None:
        click.echo(
            f"Warning: the VAE {manifest.vae.id} has no decoder: nothing was decoded to see how "
            "good the latents are",
            err=True,
        )


def _about_empty(manifest: "Manifest") -> str:
    names = [manifest.classes[number] for number in manifest.empty_classes]
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    classes = "1 class has" if len(names) == 1 else f"{len(names)} classes have"
    return printable(f"{classes} no image ({shown}): samples are drawn of it only with --class")


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    rows = [
        (name.replace("_", " "), _SHOWN.get(name, _plain)(value))
        for name, value in facts.items()
        if value is not None
    ]
    click.echo(printable("\n".join(aligned(rows))))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _scaled(unit: str) -> Callable[[float], str]:
    """Three digits with a decimal prefix: 20990640128 -> 21.0 GB."""

    def show(value: float) -> str:
        for prefix in ("", "k", "M", "G", "T", "P"):
            if value < 999.5:
                return f"{value:.3g} {prefix}{unit}"
            value /= 1000
        return f"{value:.3g} E{unit}"

    return show


_SHOWN: dict[str, Callable[[Any], str]] = {
    "shape": lambda value: " x ".join(map(str, value)),
    "bytes": _scaled("B"),
    "bytes_per_shard": _scaled("B"),
    "flops_per_image": _scaled("FLOP"),
    "flops": _scaled("FLOP"),
}
