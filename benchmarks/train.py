"""One training step of ours against the same step in PyTorch: side by side, one run, one device, batches of one shape.

    python benchmarks/train.py                  S/2 on a CPU, B/2 on a GPU
    python benchmarks/train.py --size XL        XL/2
    python benchmarks/train.py --all            B/2 and XL/2, on a GPU

Needs jax, flax, optax and numpy; torch if it is there. Both steps do: a sample of the VAE's posterior, noise,
logit-normal t, label drop, a DiT forward and backward, Adam, a moving average of the parameters. Ours is
`flowtrain.step`, as `train` runs it, which also measures norms and losses by t and guards against updates that are not
finite; the other does without. The peer is written below: fused qkv, scaled_dot_product_attention, autocast to bfloat16
with the residual stream in bfloat16 as ours, fused Adam, averages by _foreach_lerp_; as it is, and through
torch.compile. First both networks are given the same random weights, and their outputs compared.

Each framework is in a process of its own. `--turns` (default on a GPU, where both rarely fit) measures ours, then
PyTorch, then ours again; `--together` (default on a CPU) alternates in every round. Shares are of the rate that JAX's
matrix products of the same dtype reach between the rounds: 3 x 2 x multiply-accumulates of a forward pass, by formula.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare machine has the code but no installation

SIZES = {"debug": (2, 32, 2), "S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
GPU_BATCH = {"debug": 256, "S": 256, "B": 256, "L": 128, "XL": 128}
SCAN_FROM_DEPTH = 24
CLASSES, LABEL_DROP, EMA_DECAY = 1000, 0.1, 0.9999
RATE, BETA1, BETA2, EPSILON = 1e-4, 0.9, 0.99, 1e-8
VAE_SCALE = 0.18215
CHECK_BATCH, CHECK_DEPTH = 2, 4  # images and blocks; all blocks are alike
TOLERANCE = 1e-4  # of float32 outputs; rounding is a few 1e-7, TensorFloat-32 1e-3, another network 1e-1


@dataclass(frozen=True)
class Settings:
    """What is timed. `latent` is (h, w, c)."""

    size: str
    depth: int
    patch: int
    batch_size: int
    latent: tuple[int, int, int]
    dtype: str
    scan: bool
    remat: bool
    accumulate: int


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="default: S on a CPU, B on a GPU")
    parser.add_argument("--all", action="store_true", help="B and XL, one after the other")
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="default: 8 on a CPU; 256, from L on 128, on a GPU")
    parser.add_argument("--latent", default="32x32x4", help="height x width x channels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, help="default: as in recipes, from L on")
    parser.add_argument("--remat", action="store_true", help="compute activations again, on both sides")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after another, on both sides")
    parser.add_argument("--rounds", type=int, help="default: 3 on a GPU, 5 on a CPU")
    parser.add_argument("--steps", type=int, help="of a round; default: 10 on a GPU, 1 on a CPU")
    parser.add_argument("--turns", action=argparse.BooleanOptionalAction, help="ours, PyTorch, ours; default on a GPU")
    parser.add_argument("--together", dest="turns", action="store_false", help="both alternate in every round")
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other side needs memory too
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    with Side(Ours) as ours:
        facts = ours.ask("facts")
    gpu = facts["platform"] != "cpu"
    sizes = ["B", "XL"] if options.all else [options.size or ("B" if gpu else "S")]
    result = {**facts, "commit": _commit(), "load": os.getloadavg()[0], "runs": []}
    if not options.json:
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        print(f"{facts['device']}; {versions}; commit {result['commit']}; load {result['load']:.1f}")
    for size in sizes:
        run = measure(_settings(options, size, gpu), options, gpu)
        result["runs"].append(run)
        if not options.json:
            _print(run)
    if options.json:
        print(json.dumps(result))
    if not all("seconds" in run["rows"][0] for run in result["runs"]):
        sys.exit("our own step could not be timed; see the remark in its row")


def _settings(options: argparse.Namespace, size: str, gpu: bool) -> Settings:
    depth = SIZES[size][0]
    height, width, channels = map(int, options.latent.split("x"))
    return Settings(
        size=size,
        depth=depth,
        patch=options.patch,
        batch_size=options.batch_size or (GPU_BATCH[size] if gpu else 8),
        latent=(height, width, channels),
        dtype=options.dtype or ("bfloat16" if gpu else "float32"),
        scan=depth >= SCAN_FROM_DEPTH if options.scan is None else options.scan,
        remat=options.remat,
        accumulate=options.accumulate,
    )


@dataclass
class Figures:
    """What was found out so far, by name of the step or of the side."""

    checks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    times: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    ceilings: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def measure(settings: Settings, options: argparse.Namespace, gpu: bool) -> dict[str, Any]:
    """Every step, in rounds, for one size."""
    turns = gpu if options.turns is None else options.turns
    rounds, steps = options.rounds or (3 if gpu else 5), options.steps or (10 if gpu else 1)
    kinds: list[Kind] = [Ours, Torch] if options.torch else [Ours]
    visits: list[list[Kind]] = [[Ours], [Torch], [Ours]] if turns and options.torch else [kinds]
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"  # both compile from nothing,
        if turns:  # and ours only once: its second visit finds what the first one left
            os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        for visit in visits:
            with ExitStack() as stack:
                sides = [stack.enter_context(Side(kind)) for kind in visit]
                for side in sides:
                    _prepare(side, settings, folder, figures, options.torch)
                for _ in range(rounds):
                    for side in sides:
                        _round(side, steps, figures)
                for side in sides:
                    for name in side.steps:
                        figures.notes[name]["memory"] = side.ask("memory", name)
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return _summary(settings, figures)


def _prepare(side: "Side", settings: Settings, folder: str, figures: Figures, both: bool) -> None:
    """Compare, then build and compile; what fails becomes the remark of a row and is not timed."""
    try:
        if both and side.kind.label not in figures.checks:
            few = replace(settings, depth=min(settings.depth, CHECK_DEPTH))
            figures.checks[side.kind.label] = side.ask("check", few, folder)
        names, side.ready = side.ask("prepare", settings), True
    except SideError as reason:
        figures.notes.setdefault(side.kind.label, {"remark": str(reason)})
        return
    for name in names:
        try:
            note = side.ask("build", name)
        except SideError as reason:
            figures.notes.setdefault(name, {"remark": str(reason)})
        else:
            figures.notes.setdefault(name, note)  # that of the first visit, which had to compile
            side.steps.append(name)


def _round(side: "Side", steps: int, figures: Figures) -> None:
    if side.ready:
        figures.ceilings[side.kind.label].append(side.ask("ceiling"))
    for name in list(side.steps):
        try:
            figures.times[name].append(side.ask("time", name, steps))
        except SideError as reason:
            figures.notes[name]["remark"] = str(reason)
            side.steps.remove(name)


def _summary(settings: Settings, figures: Figures) -> dict[str, Any]:
    from flowtrain.model import forward_macs

    macs = forward_macs(_recipe(settings).model, settings.latent)
    ceilings = {name: statistics.median(found) for name, found in figures.ceilings.items()}
    ceiling = ceilings.get(Ours.label, math.nan)
    rows = []
    for name, note in figures.notes.items():
        row = {"step": name, **note}
        if figures.times[name]:
            seconds, cpu = zip(*figures.times[name], strict=True)
            row["seconds"], row["cpu_seconds"] = statistics.median(seconds), statistics.median(cpu)
            row["spread"] = (max(seconds) - min(seconds)) / row["seconds"]
            row["images_per_second"] = settings.batch_size / row["seconds"]
            row["flops"] = 6 * macs * row["images_per_second"]
            row["share"] = row["flops"] / ceiling
        rows.append(row)
    for row in rows:
        if "seconds" in row and "seconds" in rows[0]:
            row["ours_over_this"] = row["seconds"] / rows[0]["seconds"]
    run = {**vars(settings), "forward_macs": macs, "ceiling": ceiling, "load": os.getloadavg()[0], "rows": rows}
    if Torch.label in ceilings:
        run["torch_ceiling"] = ceilings[Torch.label]
    if len(figures.checks) == 2:
        run["check"] = _differences(figures.checks[Ours.label], figures.checks[Torch.label])
    return run


def _differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest differences of the outputs, in units of the largest output.

    Raises:
        SystemExit: in float32 it is not rounding; what would be timed is not the same network.
    """
    largest = float(np.abs(theirs["float32"]).max())

    def off(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max()) / largest

    found = {
        "float32": off(ours["float32"], theirs["float32"]),
        "bfloat16": off(ours["bfloat16"], theirs["bfloat16"]),
        "bfloat16_ours": off(ours["bfloat16"], theirs["float32"]),
        "bfloat16_torch": off(theirs["bfloat16"], theirs["float32"]),
    }
    if not found["float32"] < TOLERANCE:
        sys.exit(f"the networks differ by {found['float32']:.1e} of the largest output: not the same computation")
    return found


def _print(run: dict[str, Any]) -> None:
    ways = [name for name in ("scan", "remat") if run[name]]
    ways += [f"in {run['accumulate']} parts"] if run["accumulate"] > 1 else []
    shape = "x".join(map(str, run["latent"]))
    print(
        f"\nDiT-{run['size']}/{run['patch']}, latent {shape}, batch {run['batch_size']}, {run['dtype']}",
        *ways,
        sep=", ",
    )
    if "check" in run:
        off = run["check"]
        print(
            f"same weights, largest difference of outputs: float32 {off['float32']:.1e}, bfloat16 "
            f"{off['bfloat16']:.1e} (from float32: ours {off['bfloat16_ours']:.1e}, torch {off['bfloat16_torch']:.1e})"
        )
    ceilings = f"matrix products, {run['dtype']}: {run['ceiling'] / 1e12:.3g} TFLOP/s by JAX"
    print(ceilings + (f", {run['torch_ceiling'] / 1e12:.3g} by torch" if "torch_ceiling" in run else ""))
    rows = []
    for row in run["rows"]:
        rate = [row["step"], "", "", "", "", "", ""]
        if "seconds" in row:
            rate[1] = f"{row['images_per_second']:.4g}"
            rate[2] = f"{row['ours_over_this']:.2f}" if "ours_over_this" in row else ""
            rate[3] = f"{row['flops'] / 1e12:.3g}"
            rate[4] = f"{row['share']:.1%}"
            rate[5] = f"{row['spread']:.0%}"
            rate[6] = f"{row['cpu_seconds']:.3g}"
        compiling = f"{row['compile_seconds']:.1f}" if row.get("compile_seconds") else ""
        memory = f"{row['memory'] / 2**30:.2f}" if row.get("memory") else ""
        rows.append((*rate, compiling, memory, row.get("remark", "")))
    head = (
        "step",
        "images/s",
        "ours/this",
        "TFLOP/s",
        "of ceiling",
        "spread",
        "CPU s a step",
        "compile s",
        "peak GiB",
        "",
    )
    _table(head, rows)
    print(f"load {run['load']:.1f}")


class Watch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self.begin, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self, steps: int) -> tuple[float, float]:
        """Of one of so many steps. On a CPU that others use too, processor time repeats better than the wall's."""
        return (time.perf_counter() - self.begin) / steps, (time.process_time() - self.cpu) / steps


class SideError(Exception):
    """What a side could not do, in one line."""


class Side:
    """A process with one framework in it; it ends with the `with` block, and its device memory with it."""

    def __init__(self, kind: "Kind"):
        self.kind, self.ready, self.steps = kind, False, list[str]()

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, self.kind), daemon=True)
        self._process.start()
        far.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call a method over there. Raises `SideError`."""
        try:
            self._pipe.send((what, arguments))
            done, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise SideError(f"its process ended in {what!r}") from None
        if not done:
            raise SideError(answer)
        return answer


def _serve(pipe: Any, kind: "Kind") -> None:
    side = kind()
    with suppress(EOFError):
        while True:
            what, arguments = pipe.recv()
            try:
                pipe.send((True, getattr(side, what)(*arguments)))
            except Exception as reason:
                line = (str(reason).strip().splitlines() or [""])[0]
                pipe.send((False, f"{type(reason).__name__}: {line[:120]}"))


def _recipe(settings: Settings) -> Any:
    """What `flowtrain` reads of a recipe, at its defaults, without the validation that needs pydantic."""
    _, width, heads = SIZES[settings.size]
    model = SimpleNamespace(
        depth=settings.depth,
        width=width,
        heads=heads,
        patch=settings.patch,
        mlp_ratio=4.0,
        dtype=settings.dtype,
        qk_norm=False,
        scan=settings.scan,
        remat=settings.remat,
        time_conditioning=True,
        time_direction="to_data",
        time_scale=1000.0,
        time_offset=0.0,
        time_integer=False,
        time_frequencies="half",
        output="velocity",
    )
    objective = SimpleNamespace(kind="flow", time="logit_normal", logit_mean=0.0, logit_std=1.0, label_drop=LABEL_DROP)
    optimizer = SimpleNamespace(learning_rate=RATE, beta1=BETA1, beta2=BETA2, eps=EPSILON, weight_decay=0.0)
    vars(optimizer).update(warmup_steps=0, schedule="constant", rsqrt_steps=70_000, clip_norm=None)
    train = SimpleNamespace(steps=1_000_000, accumulate=settings.accumulate, ema_decay=EMA_DECAY)
    vars(train).update(ema_extra=(), ema_power=())
    return SimpleNamespace(model=model, objective=objective, optimizer=optimizer, train=train)


def _batch(settings: Settings) -> dict[str, np.ndarray]:
    """As `flowtrain.data` hands it over: raw float16 moments."""
    rng, n = np.random.default_rng(0), settings.batch_size
    mean = 5 * rng.standard_normal((n, *settings.latent), np.float32)
    logvar = rng.uniform(-15, -5, (n, *settings.latent))
    label, index = rng.integers(0, CLASSES, n), np.arange(n)
    numbers = {"index": index, "epoch": np.zeros(n), "label": label}
    moments = {"mean": mean.astype(np.float16), "logvar": logvar.astype(np.float16)}
    return moments | {name: value.astype(np.int32) for name, value in numbers.items()}


def _check_inputs(settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((CHECK_BATCH, *settings.latent), np.float32)
    return x, np.linspace(0.1, 0.9, CHECK_BATCH, dtype=np.float32), np.array([3, CLASSES], np.int32)


def _square(platform: str) -> tuple[int, int]:
    """Side and number of the products in one measurement of a ceiling, those of `flowtrain.ceiling`."""
    from flowtrain import ceiling

    return ceiling._SIZES.get(platform, ceiling._SIZE)


class Ours:
    """The step of `flowtrain.step`, as `flowtrain train` runs it."""

    label = "flowtrain"

    def facts(self) -> dict[str, Any]:
        """Device and versions."""
        import jax

        device, found = jax.devices()[0], {}
        for name in ("jax", "flax", "optax", "torch"):
            with suppress(PackageNotFoundError):
                found[name] = version(name)
        name = device.device_kind
        if device.platform == "cpu":
            name = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        return {"platform": device.platform, "device": name, "versions": found}

    def check(self, settings: Settings, folder: str) -> dict[str, np.ndarray]:
        """Outputs in both dtypes for random weights, which are left in `folder` for the other side."""
        import jax

        from flowtrain.model import make_network, unstack_blocks

        inputs, outputs = _check_inputs(settings), {}
        for dtype in ("float32", "bfloat16"):
            config = _recipe(replace(settings, dtype=dtype)).model
            network = make_network(config, settings.latent, CLASSES)
            params = _random_parameters(network.abstract)
            with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
                outputs[dtype] = np.asarray(jax.jit(network.predict)(params, *inputs))
        plain = unstack_blocks(params, config.depth) if settings.scan else params
        leaves = jax.tree_util.tree_leaves_with_path(plain)
        named = {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}
        np.savez(Path(folder, "parameters.npz"), **named)
        return outputs

    def prepare(self, settings: Settings) -> list[str]:
        """State and batch on the device; names of what can be built."""
        import jax

        from flowtrain.model import make_network
        from flowtrain.step import Setup, init_state

        self.recipe = _recipe(settings)
        channels = settings.latent[-1]
        self.setup = Setup(
            recipe=self.recipe,
            network=make_network(self.recipe.model, settings.latent, CLASSES),
            latent_shape=settings.latent,
            null_class=CLASSES,
            layout="moments",
            offset=(0.0,) * channels,
            scale=(VAE_SCALE,) * channels,
        )
        self.key = jax.random.key(0)
        self.state = jax.jit(partial(init_state, self.setup))(self.key)
        self.batch = jax.device_put(_batch(settings))
        return [self.label]

    def build(self, name: str) -> dict[str, Any]:
        """Lower and compile, then a few steps that do not count."""
        from flowtrain.step import make_train_step

        begin = time.perf_counter()
        self.step = make_train_step(self.setup).lower(self.state, self.batch, self.key).compile()
        seconds = time.perf_counter() - begin
        self.time(name, 2)
        return {"compile_seconds": seconds}

    def time(self, name: str, steps: int) -> tuple[float, float]:
        """Seconds a step, dispatched one after another and waited for at the end; and those of all the CPU's cores."""
        import jax

        watch = Watch()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))
        seconds = watch.seconds(steps)
        if not np.isfinite(float(metrics["loss"])) or int(metrics["skipped"]):
            raise ValueError(f"the loss is {float(metrics['loss'])}")
        return seconds

    def ceiling(self) -> float:
        """FLOP/s of matrix products."""
        import jax

        from flowtrain.ceiling import matmul_ceiling

        return matmul_ceiling(self.recipe.model.dtype, jax.devices()[:1])

    def memory(self, name: str) -> int:
        """Bytes at most so far, or where the device does not tell, those the compiler planned."""
        import jax

        statistic = jax.devices()[0].memory_stats()
        if statistic and "peak_bytes_in_use" in statistic:
            return statistic["peak_bytes_in_use"]
        plan = self.step.memory_analysis()
        resident = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return resident + plan.temp_size_in_bytes


def _random_parameters(abstract: Any) -> Any:
    """No weight at zero, as many are at initialisation: a wrong order of modulation terms would go unseen."""
    import jax

    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        fan_in = leaf.shape[-2] if len(leaf.shape) > 1 else leaf.shape[-1]
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(0.5 / math.sqrt(fan_in))

    return jax.tree.map(draw, abstract)


class Torch:
    """The same step in PyTorch."""

    label = "torch"
    names = ("torch, eager", "torch.compile")

    def check(self, settings: Settings, folder: str) -> dict[str, np.ndarray]:
        """Outputs in both dtypes for the parameters of the other side."""
        import torch

        device = _torch_device()
        torch.set_float32_matmul_precision("highest")
        model = _torch_dit(settings).to(device)
        with np.load(Path(folder, "parameters.npz")) as named, torch.no_grad():
            parameters = dict(model.named_parameters())
            if set(named) != {_jax_name(name) for name in parameters}:
                raise ValueError(f"other parameters: {set(named) ^ {_jax_name(name) for name in parameters}}")
            for name, parameter in parameters.items():
                value = torch.from_numpy(named[_jax_name(name)])
                parameter.copy_(value.T if value.ndim == 2 and name != "label_embed.weight" else value)
        inputs = [torch.from_numpy(array).to(device) for array in _check_inputs(settings)]
        outputs = {}
        for dtype in ("float32", "bfloat16"):
            with torch.no_grad(), _autocast(dtype):
                outputs[dtype] = model(*inputs).float().cpu().numpy()
        return outputs

    def prepare(self, settings: Settings) -> list[str]:
        """Parameters, averages, optimizer and batch on the device; names of what can be built."""
        import torch

        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")  # as XLA's default: TensorFloat-32 where there is such a thing
        self.device, self.settings = _torch_device(), settings
        self.model = _torch_dit(settings).to(self.device)
        self.parameters = list(self.model.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, RATE, (BETA1, BETA2), EPSILON, fused=True)
        batch = _batch(settings)
        self.batch = [torch.from_numpy(batch[name]).to(self.device) for name in ("mean", "logvar", "label")]
        self.losses: dict[str, Callable[..., Any]] = {}
        self.peak: dict[str, int] = {}
        return list(self.names)

    def build(self, name: str) -> dict[str, Any]:
        """Compile by running, where it is to be compiled; a few steps that do not count."""
        import torch

        eager, compiled = self.names
        self.losses[name] = {eager: lambda: self._loss, compiled: lambda: torch.compile(self._loss, dynamic=False)}[
            name
        ]()
        begin = time.perf_counter()
        self.time(name, 1)
        compiling = time.perf_counter() - begin - self.time(name, 2)[0]
        return {"compile_seconds": compiling if name == compiled else None}

    def _loss(self, mean: Any, logvar: Any, label: Any) -> Any:
        import torch

        data = (
            mean.float() + torch.exp(0.5 * logvar.float()) * torch.randn(mean.shape, device=mean.device)
        ) * VAE_SCALE
        noise = torch.randn_like(data)
        t = torch.sigmoid(torch.randn(len(data), device=data.device))
        drop = torch.rand(len(data), device=data.device) < LABEL_DROP
        part = t[:, None, None, None]
        with _autocast(self.settings.dtype):
            velocity = self.model((1 - part) * noise + part * data, t, torch.where(drop, CLASSES, label))
        return (velocity.float() - (data - noise)).square().mean()

    def _step(self, loss_of: Callable[..., Any]) -> Any:
        import torch

        total = 0
        for part in zip(*(array.chunk(self.settings.accumulate) for array in self.batch), strict=True):
            loss = loss_of(*part) / self.settings.accumulate
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - EMA_DECAY)
        return total

    def time(self, name: str, steps: int) -> tuple[float, float]:
        """Seconds a step, dispatched one after another and waited for at the end; and those of all the CPU's cores."""
        import torch

        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        watch = Watch()
        try:
            for _ in range(steps):
                loss = self._step(self.losses[name])
            finite = bool(torch.isfinite(loss))  # waits
        except torch.OutOfMemoryError:  # the next one may need less
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            raise
        seconds = watch.seconds(steps)
        if on_gpu:
            self.peak[name] = torch.cuda.max_memory_allocated()
        if not finite:
            raise ValueError(f"the loss is {float(loss)}")
        return seconds

    def ceiling(self) -> float:
        """FLOP/s of matrix products, measured as `flowtrain.ceiling` does."""
        import torch

        side, products = _square(self.device.type)
        factor = (torch.rand(side, side) - 0.5) * math.sqrt(12 / side)
        factor = factor.to(self.device, getattr(torch, self.settings.dtype))
        rounds: list[float] = []
        while len(rounds) < 9 and sum(rounds) < 0.3:
            begin, product = time.perf_counter(), factor
            for _ in range(products):
                product = product @ factor
            float(product[0, 0])  # waits
            rounds.append(time.perf_counter() - begin)
        return 2 * side**3 * products / min(rounds)

    def memory(self, name: str) -> int | None:
        """Bytes at most in the last round; a CPU does not tell."""
        return self.peak.get(name)


Kind = type[Ours] | type[Torch]


def _torch_device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _autocast(dtype: str) -> Any:
    import torch

    return torch.autocast(_torch_device().type, torch.bfloat16, enabled=dtype == "bfloat16")


def _jax_name(name: str) -> str:
    return name.replace("label_embed.weight", "label_embed.embedding").replace("weight", "kernel")


def _torch_dit(settings: Settings) -> Any:
    """The DiT, with the names of our parameters, initialised as ours."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    from flowtrain.model import FREQUENCIES, NORM_EPSILON, sincos_positions

    _, width, heads = SIZES[settings.size]
    height, breadth, channels = settings.latent
    patch = settings.patch
    rows, columns = height // patch, breadth // patch

    def modulate(x: Any, shift: Any, scale: Any) -> Any:
        return F.layer_norm(x, (width,), eps=NORM_EPSILON) * (1 + scale[:, None]) + shift[:, None]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width)
            self.attention_out = nn.Linear(width, width)
            self.mlp_in = nn.Linear(width, 4 * width)
            self.mlp_out = nn.Linear(4 * width, width)
            self.modulation = nn.Linear(width, 6 * width)

        def attention(self, x: Any) -> Any:
            n, tokens, _ = x.shape
            q, k, v = self.qkv(x).reshape(n, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v)
            return self.attention_out(out.transpose(1, 2).reshape(n, tokens, width))

        def forward(self, x: Any, condition: Any) -> Any:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)
            x = x + gate_a[:, None] * self.attention(modulate(x, shift_a, scale_a))
            hidden = F.gelu(self.mlp_in(modulate(x, shift_m, scale_m)), approximate="tanh")
            return x + gate_m[:, None] * self.mlp_out(hidden)

    class DiT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = nn.Linear(patch**2 * channels, width)
            self.time_in = nn.Linear(FREQUENCIES, width)
            self.time_out = nn.Linear(width, width)
            self.label_embed = nn.Embedding(CLASSES + 1, width)
            self.blocks = nn.ModuleList(Block() for _ in range(settings.depth))
            self.final_modulation = nn.Linear(width, 2 * width)
            self.final = nn.Linear(width, patch**2 * channels)
            half = FREQUENCIES // 2
            frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
            self.register_buffer("frequencies", frequencies, persistent=False)
            positions = torch.from_numpy(sincos_positions(rows, columns, width))
            self.register_buffer("positions", positions, persistent=False)
            for name, parameter in self.named_parameters():
                if "modulation" in name or "bias" in name or name.startswith("final"):
                    nn.init.zeros_(parameter)
                elif name.startswith(("time", "label")):
                    nn.init.normal_(parameter, std=0.02)
                else:
                    nn.init.xavier_uniform_(parameter)

        def forward(self, x: Any, t: Any, label: Any) -> Any:
            n = len(x)
            x = x.reshape(n, rows, patch, columns, patch, channels).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
            x = self.patch_embed(x)
            x = x + self.positions.to(x.dtype)
            angles = 1000.0 * t[:, None] * self.frequencies
            features = torch.cat([angles.cos(), angles.sin()], dim=-1)
            condition = F.silu(self.time_out(F.silu(self.time_in(features))) + self.label_embed(label))
            for block in self.blocks:
                x = checkpoint(block, x, condition, use_reentrant=False) if settings.remat else block(x, condition)
            shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
            x = self.final(modulate(x, shift, scale))
            x = x.reshape(n, rows, columns, patch, patch, channels).permute(0, 1, 3, 2, 4, 5)
            return x.reshape(n, height, breadth, channels)

    return DiT()


def _commit() -> str:
    """Of the working tree, with a plus where it has changes; a copy without git has none to tell."""
    with suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    cells = [tuple(map(str, row)) for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
