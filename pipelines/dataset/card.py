"""The dataset card: `README.md`, metadata for the Hugging Face hub and facts for people.

Made from the manifest alone, so the same dataset has the same card anywhere.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence

from schemas.layout import LAYOUTS, Layout
from schemas.manifest import Manifest
from schemas.tfds_metadata import LABELS_NAME

CARD_NAME = "README.md"
CLASSES = 20  # named on the card

_LOCAL_PATH = re.compile(r"(?P<kind>[a-z]+:)?/(?!/)(?:.*/)?(?P<name>[^/]+)/*", re.DOTALL)

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_LARGEST = "n>1T"
_WHAT_GENERATED = "Latents that a trained model generated, in the model's own scale."


def size_category(records: int) -> str:
    """The hub's category for a number of records."""
    return next((name for limit, name in _SIZES if records < limit), _LARGEST)


_NAMED = ("records", "source", "VAE")  # facts that hold names of others


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 file`, `1,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def pretty_name(manifest: Manifest) -> str:
    """A name for people: source, split, size, content."""
    if manifest.parts:
        source = " + ".join(_source_name(part.source.descriptor) for part in manifest.parts)
    else:
        source = _source_name(manifest.source.descriptor)
    generated = "generated " if manifest.generated else ""
    noun = LAYOUTS[manifest.layout].noun
    return f"{source}, {manifest.split}, {manifest.resolution} px, {generated}{noun}"


def _source_name(descriptor: str) -> str:
    """The last part of a path, or what follows the kind of a source that is none."""
    _, slash, last = descriptor.rstrip("/").rpartition("/")
    return " ".join((last if slash else last.rpartition(":")[2]).split())


def dataset_card(manifest: Manifest) -> str:
    """Content of `README.md`."""
    sections = [
        _front_matter(manifest),
        f"# {_plain_name(pretty_name(manifest))}",
        _WHAT_GENERATED if manifest.generated else LAYOUTS[manifest.layout].about,
        "## Open it",
        _opening(manifest),
        "## Facts",
        _table(("what", "value"), _told_facts(manifest)),
        *_classes(manifest),
        "## Statistics",
        _statistics(manifest),
        "## How it was made",
        _making(manifest),
        "## Rights",
        "Those of the images it was made from; this card does not change them.",
    ]
    return "\n\n".join(sections) + "\n"


def facts(manifest: Manifest, whole_paths: bool = True) -> list[tuple[str, str]]:
    """Facts of a dataset as (name, value), for the card and `data inspect`."""
    counts, vae, named = manifest.counts, manifest.vae, str if whole_paths else _without_folder
    size = sum(shard.bytes for shard in manifest.shards)
    tensors = ", ".join(
        f"{name} {_shape(spec.shape)} {spec.dtype}" for name, spec in manifest.tensors.items()
    )
    rows = [
        ("records", f"{counts.written:,} in {' and as many in '.join(manifest.splits)}"),
        ("tensors", tensors),
        ("classes", f"{len(manifest.classes):,}"),
        ("resolution", f"{manifest.resolution} px, crop rule {manifest.crop}"),
        ("source", _source(manifest, named)),
        ("source records", f"{counts.source:,}: {_parts_of(manifest)}"),
        ("shards", f"{counted(len(manifest.shards), 'file')}, {counted(size, 'byte')}"),
    ]
    if vae is not None:
        revision = f" at revision {vae.revision}" if vae.revision else ""
        rows += [
            ("VAE", f"{named(vae.id)}{revision}, computed in {vae.dtype}"),
            ("VAE weights", f"sha256 {vae.sha256}"),
            ("VAE geometry", f"{vae.latent_channels} channels, {vae.factor} pixels a latent cell"),
            ("VAE scaling", f"z = (raw - {vae.shift_factor}) * {vae.scaling_factor}"),
        ]
        if vae.layout is Layout.LATENT:
            rows.append(("VAE network", f"diffusers' {vae.network}, without a posterior"))
        if vae.decoder_sha256 is not None:
            rows.append(("VAE decoder", f"sha256 {vae.decoder_sha256}"))
    if manifest.reconstruction is not None:
        gate = (
            f"{manifest.reconstruction.psnr_db:.2f} dB PSNR over {manifest.reconstruction.records} "
            "decoded records"
        )
        rows.append(("reconstruction", gate))
    rows += [
        (f"sampling {name}", str(value))
        for name, value in (manifest.sampling or {}).items()
        if value is not None
    ]
    rows += [("seed", str(manifest.seed)), ("schema version", str(manifest.schema_version))]
    return rows


def _source(manifest: Manifest, named: Callable[[str], str]) -> str:
    if manifest.parts:
        return f"{len(manifest.parts)} merged datasets"
    return f"{named(manifest.source.descriptor)}, split {manifest.source.split}"


def _told_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """For the card, whose reader's program would take a name for what it is not."""
    rows = facts(manifest, whole_paths=False)
    return [(name, _plain_name(value) if name in _NAMED else value) for name, value in rows]


def _without_folder(word: str) -> str:
    """A local path's last part, after the kind of source; any other word as it is.

    Where the maker of a dataset keeps things is nobody's business.
    """
    path = _LOCAL_PATH.fullmatch(word)
    return f"{path['kind'] or ''}{path['name']}" if path else word


def _classes(manifest: Manifest) -> list[str]:
    """The names of the first classes, as sections; none where there is one class only."""
    names = manifest.classes
    if len(names) < 2:
        return []
    told = "" if len(names) <= CLASSES else f"The first {CLASSES} of {len(names):,}. "
    rows = [(str(label), _plain(name)) for label, name in enumerate(names[:CLASSES])]
    return [
        "## Classes",
        f"{told}Line n of `{LABELS_NAME}` names label n - 1.\n\n{_table(('label', 'class'), rows)}",
    ]


def _parts_of(manifest: Manifest) -> str:
    counts = manifest.counts
    share = 100 * counts.rejected / counts.source if counts.source else 0.0
    return (
        f"{counts.written:,} written, {counts.rejected:,} rejected ({share:.2g}%), "
        f"{counts.duplicate:,} duplicate"
    )


def _front_matter(manifest: Manifest) -> str:
    tags = [
        "latents",
        "flow-matching",
        "diffusion",
        "tensorflow-datasets",
        "array-record",
        "flowtrain",
    ]
    metadata: dict[str, str | list[str]] = {
        "pretty_name": pretty_name(manifest),
        "license": "other",  # that of the images, which is not known here
        "task_categories": [
            "image-classification"
            if len(manifest.classes) > 1
            else "unconditional-image-generation"
        ],
        "size_categories": [size_category(manifest.counts.written)],
        "tags": tags,
    }
    lines = ["---"]
    for name, value in metadata.items():
        if isinstance(value, str):
            lines.append(f"{name}: {json.dumps(value)}")  # a JSON string is a YAML string
        else:
            lines += [f"{name}:", *(f"- {json.dumps(entry)}" for entry in value)]
    return "\n".join([*lines, "viewer: false", "---"])  # the hub's viewer does not read ArrayRecord


def _opening(manifest: Manifest) -> str:
    name = next(iter(manifest.tensors))
    shape = _shape(manifest.tensors[name].shape)
    return f"""With [TensorFlow Datasets](https://www.tensorflow.org/datasets), without \
TensorFlow or flowtrain:

```python
import tensorflow_datasets as tfds

source = tfds.builder_from_directory("DIR").as_data_source("{manifest.split}")
source[0]["{name}"]  # {shape} {manifest.tensors[name].dtype}; source[0]["label"], source[0]["key"]
```

With flowtrain, the Python package that made it, which trains image generators on such \
datasets (`pip install flowtrain`
brings the command `flowtrain`; `manifest.json` holds everything on this page):

```sh
flowtrain data inspect DIR --grid grid.png
flowtrain data verify DIR
flowtrain train DIR --workdir RUN --recipe FILE
```

{_normalization(manifest)}"""


def _normalization(manifest: Manifest) -> str:
    norm = manifest.model_normalization()
    numbers = f"offset {_numbers(norm.offset)} and scale {_numbers(norm.scale)}"
    if manifest.normalization is not None:
        return (
            "The latents are in the model's scale; what a VAE decodes is latent / scale + offset "
            f"with {numbers}."
        )
    return f"From stored to model scale, per channel: z = (stored - offset) * scale with {numbers}."


def _statistics(manifest: Manifest) -> str:
    note = LAYOUTS[manifest.layout].measured
    rows = [
        (str(channel), f"{mean:.6g}", f"{std:.6g}")
        for channel, (mean, std) in enumerate(
            zip(manifest.channels.mean, manifest.channels.std, strict=True)
        )
    ]
    return (
        f"Per channel of `{manifest.split}`, "
        f"{note}.\n\n{_table(('channel', 'mean', 'deviation'), rows)}"
    )


def _making(manifest: Manifest) -> str:
    command = shlex.join(map(_without_folder, shlex.split(manifest.command)))
    fence = "`" * (1 + max(2, *map(len, re.findall("`*", command))))
    text = (
        f"{fence}sh\n{command}\n{fence}\n\nOUT is where the dataset goes; local paths are "
        "without their folders, which "
    )
    text += "`manifest.json` has. The same command with the same versions gives the same bytes:\n\n"
    text += _table(("package", "version"), sorted(manifest.versions.items()))
    if manifest.parts:
        rows = [
            (
                _plain_name(_without_folder(source.descriptor)),
                _plain_name(source.split),
                f"{part.counts.written:,}",
                str(part.seed),
                part.digest,
            )
            for part in manifest.parts
            for source in (part.source,)
        ]
        text += (
            f"\n\nMerged from:\n\n{_table(('source', 'split', 'records', 'seed', 'digest'), rows)}"
        )
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in row)} |" for row in cells)


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for what it is."""
    return re.sub(r"([\\`*_\[\]<>&])", r"\\\1", text)


def _plain_name(text: str) -> str:
    """The same, without what changes nothing: an underscore within a word is one anyway."""
    return re.sub(r"(?<=[^\W_])\\_(?=[^\W_])", "_", _plain(text))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _numbers(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return str(values[0])
    return f"({', '.join(map(str, values))})"
