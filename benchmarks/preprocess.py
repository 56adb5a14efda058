"""Rates of preprocessing as ratios, measured side by side in one run on the same images.

    python benchmarks/preprocess.py encode     our encoder against diffusers' AutoencoderKL
    python benchmarks/preprocess.py pipeline   images to shards against the encoder alone
    python benchmarks/preprocess.py workers    two worker processes of one core each against one
    python benchmarks/preprocess.py jpeg       decoding, with and without libjpeg's scaled decoding
    python benchmarks/preprocess.py memory     resident size against the number of records
    python benchmarks/preprocess.py index      a tar of tars with as many members as ImageNet

The VAE has Stable Diffusion's architecture and random weights: a rate does not depend on them.
`--width 32` makes it a quarter as wide, which is sixteen times less work. `encode` needs torch and
diffusers; all read JPEGs from --images.
"""

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from schemas.text import aligned

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT.parent / "shared" / "data" / "imagenet_sample"
IMAGENET = 1_281_167
CLASSES = 1000


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(MEASUREMENTS))
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of JPEGs")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--width", type=int, default=128, help="channels of the VAE's first block; 128 is SD's"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num", type=int, default=64, help="images of `pipeline` and `workers`")
    parser.add_argument("--members", type=int, default=IMAGENET, help="of `index`")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores; "
        f"{_versions()}"
    )
    MEASUREMENTS[options.what](options)


def encode(options: argparse.Namespace) -> None:
    """One batch at a time through each implementation, in turn; the same weights, and outputs
    compared first.
    """
    import jax
    import jax.numpy as jnp
    import torch

    from pipelines.encoders.flops import encoder_flops
    from pipelines.encoders.weights import load_vae

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    kind = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        model = _torch_vae(options.width)
        model.save_pretrained(folder)
        ours = load_vae(folder, options.dtype)
        flops = encoder_flops(folder, options.resolution) or 0
    pixels = next(_batches(options, options.batch_size))
    host = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    plain = host.to(device, kind)
    last = plain.contiguous(memory_format=torch.channels_last)
    model = model.to(device, kind)
    model_last = _torch_vae(options.width).to(device, kind).to(memory_format=torch.channels_last)
    model_last.load_state_dict(model.state_dict())

    def torch_run(module: Any, batch: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return module.encode(batch).latent_dist.parameters.float().cpu().numpy()

        return run

    images = jnp.asarray(pixels)
    runs: dict[str, Callable[[], Any]] = {
        "flowtrain": lambda: [np.asarray(value) for value in ours.encode(images)],
        "torch, NCHW": torch_run(model, plain),
        "torch, channels last": torch_run(model_last, last),
    }
    reference = runs["torch, NCHW"]()
    mean, logvar = runs["flowtrain"]()
    moments = np.concatenate([mean, logvar], -1).transpose(0, 3, 1, 2)
    error = np.abs(moments - reference.clip(-30, None)).max() / np.abs(reference).max()
    print(f"largest difference from torch, NCHW: {error:.1e} of the largest value")
    for name, module, batch in (("NCHW", model, plain), ("channels last", model_last, last)):
        compiled = torch_run(_Encode(torch.compile(module.encode)), batch)
        try:
            compiled()
        except Exception as reason:  # where it has no compiler, that is the finding
            print(f"torch.compile, {name}: does not work here ({str(reason).splitlines()[0][:90]})")
        else:
            runs[f"torch.compile, {name}"] = compiled
    side = 8192 if device == "cuda" else 2048
    factor = jnp.ones((side, side), options.dtype)
    product = jax.jit(lambda a: a @ a)
    runs["matmul"] = lambda: product(factor).block_until_ready()
    times = _interleaved(runs, options.rounds)
    ceiling = 2 * side**3 / times.pop("matmul")
    best = min(seconds for name, seconds in times.items() if name != "flowtrain")
    rows = [
        (
            name,
            f"{options.batch_size / seconds:.3g}",
            f"{best / seconds:.2f}",
            f"{flops * options.batch_size / seconds / ceiling:.0%}",
        )
        for name, seconds in times.items()
    ]
    _table(("encoder", "images/s", "of best torch", "of matmul ceiling"), rows)


def pipeline(options: argparse.Namespace) -> None:
    """The same images: files to shards through Beam, against the encoder on pixels that are decoded
    already.
    """
    import pipelines.preprocess.make_shard
    from pipelines.encoders.encode import load_encoder
    from pipelines.preprocess.pipeline import preprocess
    from pipelines.preprocess.plan import make_plan

    # Decoding 32 images again is a fixed cost, which a million records do not feel.
    pipelines.preprocess.make_shard.reconstruction_quota = lambda shard, shards: 0
    published: list[float] = []
    write_marker = pipelines.preprocess.make_shard.write_marker

    def note(*arguments: Any) -> None:
        write_marker(*arguments)
        published.append(time.perf_counter())

    pipelines.preprocess.make_shard.write_marker = note
    with tempfile.TemporaryDirectory() as folder:
        vae, photos = _saved_vae(folder, options.width), _photos(folder, options)
        batches = list(_batches(options, options.num, uint8=True))
        plans = (
            make_plan(_request(photos, f"{folder}/out{n}", vae, options)) for n in itertools.count()
        )
        first = next(plans)
        encoder = load_encoder(first.settings.vae)
        rates: dict[str, list[float]] = {
            "encoder alone": [],
            "pipeline": [],
            "decoding and cropping, one thread": [],
        }
        preprocess(first)  # compiles
        for _ in range(options.rounds):
            start = time.perf_counter()
            waiting = [encoder.start(batches[0])]
            for batch in batches[1:]:
                waiting.append(encoder.start(batch))
                waiting.pop(0)()
            waiting.pop()()
            rates["encoder alone"].append(options.num / (time.perf_counter() - start))
            published.clear()
            plan = next(plans)
            preprocess(plan)
            shard = options.num / plan.settings.shards
            rates["pipeline"].append(shard * (len(published) - 1) / (published[-1] - published[0]))
            start = time.perf_counter()
            for _ in _batches(options, options.num, uint8=True):
                pass
            rates["decoding and cropping, one thread"].append(
                options.num / (time.perf_counter() - start)
            )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [
        (name, f"{rate:.3g}", f"{rate / medians['encoder alone']:.2f}")
        for name, rate in medians.items()
    ]
    _table(("what", "images/s", "of encoder alone"), rows)
    print(
        "the pipeline's rate is that between its first and last shard: without listing, weights "
        "and Beam's start"
    )


def workers(options: argparse.Namespace) -> None:
    """Commands with worker processes pinned to a core each; rates between shards, when all have
    compiled.
    """
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        vae, photos = _saved_vae(folder, options.width), _photos(folder, options)
        for turn, count in itertools.product(range(options.rounds), rates):
            out = Path(folder, f"out{turn}.{count}")
            rates[count].append(_pinned_rate(photos, out, vae, count, options))
    one, two = (statistics.median(rates[count]) for count in (1, 2))
    rows = [
        (f"{count} of one core", f"{rate:.3g}", f"{rate / one:.2f}")
        for count, rate in ((1, one), (2, two))
    ]
    _table(("workers", "images/s", "of one"), rows)


def jpeg(options: argparse.Namespace) -> None:
    """libjpeg can decode at half, a quarter or an eighth of the size: how much faster, and how far
    off.
    """
    from PIL import Image

    from pipelines.images import adm_crop, decode_image

    def draft(data: bytes, least: int) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (least, least))
            return np.asarray(image.convert("RGB"))

    side = options.resolution
    files = [file.read_bytes() for file in _jpegs(options.images)]
    ways: dict[str, Callable[[bytes], np.ndarray]] = {
        "full": decode_image,
        "draft, at least twice the side": lambda data: draft(data, 2 * side),
        "draft, at least the side": lambda data: draft(data, side),
    }
    cropped = {name: [adm_crop(way(data), side) for data in files] for name, way in ways.items()}
    times = _interleaved(
        {
            name: lambda way=way: [adm_crop(way(data), side) for data in files]
            for name, way in ways.items()
        },
        options.rounds,
    )
    rows = []
    for name, seconds in times.items():
        off = [
            np.abs(a.astype(int) - b) for a, b in zip(cropped["full"], cropped[name], strict=True)
        ]
        touched = [difference for difference in off if difference.any()]
        mean = np.mean([difference.mean() for difference in touched]) if touched else 0.0
        most = max((difference.max() for difference in touched), default=0)
        speed = f"{1000 * seconds / len(files):.3g}", f"{times['full'] / seconds:.2f}"
        rows.append((name, *speed, f"{len(touched)} of {len(files)}", f"{mean:.2f}", most))
    head = (
        f"decode and crop to {side}",
        "ms an image",
        "rate",
        "images changed",
        "mean levels",
        "most",
    )
    _table(head, rows)


def memory(options: argparse.Namespace) -> None:
    """Peak resident size of a whole command, for two numbers of records."""
    rows = []
    for records in (2_000, 40_000):
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder, "images.tar")
            _tar_of_specks(archive, records)
            command = _command(f"tar:{archive}", Path(folder, "out"), "none", options)
            command[command.index("--resolution") + 1] = "8"
            command += ["--shards", str(records // 500)]
            script = (
                "import resource, subprocess, sys\n"
                "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            done = subprocess.run(
                [sys.executable, "-c", script, *command], check=True, capture_output=True, text=True
            )
            rows.append((records, f"{int(done.stdout) / 1024:.0f}"))
    _table(("records", "peak MiB"), rows)


def index(options: argparse.Namespace) -> None:
    """An archive laid out as ILSVRC2012_img_train.tar, with members of one pixel: listed, sorted,
    and its cost told.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "train.tar")
        _hollow_imagenet(archive, options.members)
        script = (
            "import json, resource, sys, time\n"
            "from pipelines.preprocess.index import build_index\n"
            "from pipelines.sources import open_source\n"
            "start = time.monotonic(); source = open_source(sys.argv[1], 'train'); classes = "
            "len(source.classes)\n"
            "index = build_index(source.index(), 0, source.fingerprint); seconds = "
            "time.monotonic() - start\n"
            "rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
            "print(json.dumps([classes, index.records, round(seconds, 1), rss]))"
        )
        rows = []
        for _ in range(2):  # the first one may find the archive outside the page cache
            done = subprocess.run(
                [sys.executable, "-c", script, f"tar:{archive}"],
                check=True,
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            rows.append(tuple(json.loads(done.stdout.splitlines()[-1])))
        _table(("classes", "records", "seconds", "peak MiB"), rows)
        vae = _saved_vae(folder, options.width)
        command = _command(f"tar:{archive}", Path(folder, "latents"), vae, options)
        subprocess.run([*command, "--batch-size", "32", "--dry-run"], check=True, cwd=ROOT)


class _Encode:
    """Stands in for a model whose `encode` is compiled."""

    def __init__(self, encode: Callable[[Any], Any]):
        self.encode = encode


def _torch_vae(width: int) -> Any:
    import torch

    try:
        import torchvision  # noqa: F401
    except Exception:  # one that was built for another torch breaks diffusers, which can do without
        from diffusers.utils import import_utils

        vars(import_utils)["_torchvision_available"] = False
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    channels = (width, 2 * width, 4 * width, 4 * width)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return AutoencoderKL(
        block_out_channels=channels, layers_per_block=2, latent_channels=4, **blocks
    ).eval()


def _saved_vae(folder: str, width: int) -> str:
    from flax import nnx

    from pipelines.encoders.kl import AutoencoderKL
    from pipelines.encoders.kl_config import VaeConfig
    from pipelines.encoders.weights import save_vae

    channels = (width, 2 * width, 4 * width, 4 * width)
    config = VaeConfig(block_out_channels=channels, layers_per_block=2, latent_channels=4)
    save_vae(AutoencoderKL(config, rngs=nnx.Rngs(0)), config, Path(folder, "vae"))
    return f"{folder}/vae"


def _jpegs(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        sys.exit(f"no JPEGs below {folder}; name a folder of photographs with --images")
    return found


def _photos(folder: str, options: argparse.Namespace) -> str:
    """A folder of `--num` JPEGs, by links, the same ones again when there are fewer."""
    photos = Path(folder, "photos")
    photos.mkdir()
    for number, file in enumerate(
        itertools.islice(itertools.cycle(_jpegs(options.images)), options.num)
    ):
        (photos / f"{number:05d}.jpg").symlink_to(file)
    return str(photos)


def _batches(options: argparse.Namespace, num: int, uint8: bool = False) -> Iterator[np.ndarray]:
    """`num` images, decoded and cropped, in batches: uint8, or float32 in [-1, 1]."""
    from pipelines.images import adm_crop, decode_image
    from schemas.pixels import from_uint8

    files = itertools.islice(itertools.cycle(_jpegs(options.images)), num)
    images = (adm_crop(decode_image(file.read_bytes()), options.resolution) for file in files)
    while rows := list(itertools.islice(images, options.batch_size)):
        batch = np.stack(rows)
        yield batch if uint8 else from_uint8(batch)


def _request(source: str, out: str, vae: str, options: argparse.Namespace) -> Any:
    from pipelines.preprocess.plan import Request

    return Request(
        source=source,
        out=out,
        split="train",
        resolution=options.resolution,
        crop="adm",
        vae=vae,
        vae_revision=None,
        vae_dtype=options.dtype,
        flips=False,
        shards=max(1, options.num // (4 * options.batch_size)),
        batch_size=options.batch_size,
        seed=0,
        max_bad_fraction=0.5,
        min_psnr=0.0,
    )


def _command(source: str, out: Path, vae: str, options: argparse.Namespace) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "flowtrain.cli",
        "preprocess",
        source,
        str(out),
        "--vae",
        vae,
        "--min-psnr",
        "0",
    ]
    return [
        *words,
        "--resolution",
        str(options.resolution),
        "--batch-size",
        str(options.batch_size),
    ]


def _pinned_rate(
    photos: str, out: Path, vae: str, count: int, options: argparse.Namespace
) -> float:
    """Images a second of `count` workers between the shard by which each has compiled and the last
    one.
    """
    shards = options.num // options.batch_size
    command = [
        *_command(photos, out, vae, options),
        "--vae-dtype",
        options.dtype,
        "--shards",
        str(shards),
    ]
    command += ["--", "--direct_running_mode=multi_processing", f"--direct_num_workers={count}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    cores = sorted(os.sched_getaffinity(0))[:count]
    pinning = threading.Thread(target=_pin_workers, args=(process, cores), daemon=True)
    pinning.start()
    seen: dict[str, float] = {}
    while process.poll() is None:
        for path in (out / ".work").glob("*/done/[0-9]*.json"):
            seen.setdefault(path.name, time.monotonic())
        time.sleep(0.01)
    if process.returncode:
        sys.exit(f"the command failed: {' '.join(command)}")
    times = sorted(seen.values())
    begin = 2 * count
    return (len(times) - begin) * options.batch_size / (times[-1] - times[begin - 1])


def _pin_workers(process: subprocess.Popen[bytes], cores: list[int]) -> None:
    """Give each worker process a core of its own before it counts the cores it may use."""
    pinned: dict[int, int] = {}
    while process.poll() is None:
        # a process or a thread that ends while we look
        with suppress(ProcessLookupError, FileNotFoundError):
            for child in Path(f"/proc/{process.pid}/task").glob("*/children"):
                for pid in map(int, child.read_text().split()):
                    if b"pipelines.runners.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        core = pinned.setdefault(pid, cores[len(pinned) % len(cores)])
                        for task in Path(f"/proc/{pid}/task").iterdir():
                            os.sched_setaffinity(int(task.name), {core})
        time.sleep(0.05)
    if len(pinned) != len(cores):
        print(f"{len(pinned)} worker processes were pinned, not {len(cores)}", file=sys.stderr)


def _tar_of_specks(path: Path, records: int) -> None:
    from schemas.png import encode_png

    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(records):
            data = encode_png(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            member = tarfile.TarInfo(f"class{number % 10}/{number:06d}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _hollow_imagenet(path: Path, members: int) -> None:
    from PIL import Image

    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "JPEG")
    padding = bytes(-pixel.tell() % 512)
    with tarfile.open(path, "w") as outer:
        for number in range(CLASSES):
            synset = f"n{number:08d}"
            count = members // CLASSES + (number < members % CLASSES)
            with tempfile.TemporaryFile() as file:
                for image in range(count):
                    member = tarfile.TarInfo(f"{synset}_{image}.JPEG")
                    member.size = pixel.tell()
                    file.write(member.tobuf(tarfile.GNU_FORMAT) + pixel.getvalue() + padding)
                file.write(bytes(1024))
                inner = tarfile.TarInfo(f"{synset}.tar")
                inner.size = file.tell()
                file.seek(0)
                outer.addfile(inner, file)


def _interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one after the other in every round, after one round that does not
    count.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    print(*aligned([tuple(map(str, row)) for row in [head, *rows]]), sep="\n")


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("jax", "flax", "torch", "diffusers", "apache-beam", "pillow"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "encode": encode,
    "pipeline": pipeline,
    "workers": workers,
    "jpeg": jpeg,
    "memory": memory,
    "index": index,
}

if __name__ == "__main__":
    main()
