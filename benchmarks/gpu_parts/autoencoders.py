"""Images a second through SD's VAE and TAEF2, encoded and decoded, and the memory that it takes.

Weights are random and the same on both sides; outputs in float32 are compared first. Images go in
as uint8 and latents as float32, both on the device already. Batches of growing size are planned for
the decoder of SD's VAE in float32 last: on an H200 XLA once planned 134 GiB for 16 images of 256
pixels, and may take long to choose its convolutions.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_parts.part import Context
from benchmarks.sides import Side, SideError
from pipelines.encoders.kl_config import VaeConfig
from pipelines.encoders.tiny_config import TinyConfig

# of float32 outputs, of the largest; deep networks of random weights amplify rounding
TOLERANCE = 1e-3
WEIGHTS = "tensors.npz"
_CALLS, _ROUNDS = 4, 3
_LEAST_SECONDS = 20.0  # left to a part, under which no further batch is compiled


class Case(NamedTuple):
    """One thing to time: "encode" or "decode", by compute type, in a batch, at so many pixels a
    side.
    """

    name: str
    what: str
    dtype: str
    batch: int
    pixels: int


# By network, those that take more memory later: JAX tells the most that a process has used, and not
# when.
CASES = (
    Case("sd-vae", "encode", "bfloat16", 64, 256),
    Case("sd-vae", "decode", "bfloat16", 32, 256),
    Case("sd-vae", "decode", "float32", 4, 256),
    Case("taef2", "encode", "bfloat16", 256, 256),
    Case("taef2", "decode", "bfloat16", 256, 256),
    Case("taef2", "decode", "float32", 64, 256),
)
LARGER = tuple(Case("sd-vae", "decode", "float32", batch, 256) for batch in (16, 64))
TINY_CASES = tuple(CASES[number]._replace(batch=2, pixels=16) for number in (0, 2, 4))
TINY_LARGER = (LARGER[0]._replace(batch=4, pixels=16),)


def choose_config(name: str, tiny: bool) -> VaeConfig | TinyConfig:
    """Stable Diffusion's, TAEF2's, or miniatures of both."""
    sd = VaeConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    small = VaeConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    taef2 = TinyConfig(latent_channels=32, pool=True)
    width = (16, 16)
    smaller = TinyConfig(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        latent_channels=8,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        pool=True,
    )
    choices = {
        ("sd-vae", False): sd,
        ("sd-vae", True): small,
        ("taef2", False): taef2,
        ("taef2", True): smaller,
    }
    return choices[name, tiny]


def random_tensors(config: VaeConfig | TinyConfig) -> dict[str, NDArray[np.float32]]:
    """By PyTorch's names and order of axes. Norm scales and biases are random too: equal ones could
    change places.
    """
    from flax import nnx

    from pipelines.encoders.weights import _flatten, abstract_network, tensor_name, to_torch_layout

    _, state = abstract_network(config)
    rng, tensors = np.random.default_rng(0), {}
    for path, leaf in _flatten(nnx.to_pure_dict(state)).items():
        if path[-1] == "kernel":
            spread = np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
            value = to_torch_layout(rng.standard_normal(leaf.shape, np.float32) * spread)
        else:
            centre = 1.0 if path[-1] == "scale" else 0.0
            value = rng.uniform(centre - 0.3, centre + 0.3, leaf.shape).astype(np.float32)
        tensors[tensor_name(path)] = np.ascontiguousarray(value)
    return tensors


def draw_input(case: Case, config: VaeConfig | TinyConfig) -> NDArray[Any]:
    """uint8 images, or latents of unit deviation."""
    rng, cells = np.random.default_rng(1), case.pixels // config.factor
    if case.what == "encode":
        return rng.integers(0, 256, (case.batch, case.pixels, case.pixels, 3), np.uint8)
    return rng.standard_normal((case.batch, cells, cells, config.latent_channels), np.float32)


class Ours:
    """`pipelines.encoders.weights.Vae`, each shape compiled ahead so that its plan of memory can be
    read.
    """

    label = "flowtrain"

    def prepare(self, name: str, tiny: bool, folder: str) -> tuple[str, int | None]:
        """Platform, and the bytes that the device has, where it tells; leaves the weights for the
        peer.
        """
        import jax

        self.config, path = choose_config(name, tiny), Path(folder, f"{name}-{WEIGHTS}")
        if not path.exists():
            named: dict[str, Any] = dict(random_tensors(self.config))
            np.savez(path, **named)
        with np.load(path) as tensors:
            self.tensors = dict(tensors)
        self.highest = 0
        return jax.default_backend(), (jax.devices()[0].memory_stats() or {}).get("bytes_limit")

    def _load(self, dtype: str) -> Any:
        from pipelines.encoders.weights import Vae, _fill, abstract_network

        graphdef, state = abstract_network(self.config, dtype)
        params = _fill(state, self.tensors, Path(WEIGHTS))
        return Vae("random", self.config, "random", dtype, graphdef, params)

    def outputs(self, case: Case) -> NDArray[np.float32]:
        """To be compared: moments or latents side by side, or images."""
        vae, given = self._load(case.dtype), draw_input(case, self.config)
        found = vae.encode_pixels(given) if case.what == "encode" else (vae.decode(given),)
        return np.concatenate([np.asarray(value) for value in found], axis=-1)

    def plan(self, case: Case) -> dict[str, float]:
        """Compile; seconds that took, and bytes that XLA plans, weights and batch included."""
        import jax

        method = "encode_pixels" if case.what == "encode" else "decode"
        self.vae = self._load(case.dtype)
        self.given = jax.device_put(draw_input(case, self.config))
        begin = time.perf_counter()
        self.compiled = self.vae._compiled(method).lower(self.vae.params, self.given).compile()
        seconds, found = time.perf_counter() - begin, self.compiled.memory_analysis()
        planned = (
            found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        )
        return {
            "compile_seconds": seconds,
            "planned": planned,
            "temporary": found.temp_size_in_bytes,
        }

    def time(self, calls: int) -> float:
        """Seconds of one batch."""
        import jax

        begin = time.perf_counter()
        for _ in range(calls):
            found = self.compiled(self.vae.params, self.given)
        jax.block_until_ready(found)
        return (time.perf_counter() - begin) / calls

    def peak(self) -> int | None:
        """Bytes at most so far, where that is more than before; a CPU does not tell."""
        import jax

        before = self.highest
        self.highest = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return self.highest if self.highest > before else None


class Torch:
    """The same networks in PyTorch, through `torch.compile`; in bfloat16 the weights are, too."""

    label = "torch.compile"

    def prepare(self, name: str, tiny: bool, folder: str) -> tuple[str, int | None]:
        """Platform; the second is ours to tell."""
        import torch

        from benchmarks.torch_autoencoders import autoencoder
        from benchmarks.torch_dit import _torch_device

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.device, self.config = _torch_device(), choose_config(name, tiny)
        with np.load(Path(folder, f"{name}-{WEIGHTS}")) as tensors:
            self.model = autoencoder(self.config, dict(tensors), self.device)
        return self.device.type, None

    def outputs(self, case: Case) -> NDArray[np.float32]:
        """To be compared."""
        import torch

        given = torch.from_numpy(draw_input(case, self.config)).to(self.device)
        with torch.inference_mode():
            return self._through(case.what, given, torch.float32).permute(0, 2, 3, 1).cpu().numpy()

    def _through(self, what: str, given: Any, dtype: Any) -> Any:
        x = given.permute(0, 3, 1, 2).to(dtype)
        return (
            self.model.encode(x / 127.5 - 1) if what == "encode" else self.model.decode(x)
        ).float()

    def plan(self, case: Case) -> dict[str, float]:
        """Compile by running once; seconds that took."""
        import torch

        dtype = getattr(torch, case.dtype)
        self.model.to(dtype)
        self.given = torch.from_numpy(draw_input(case, self.config)).to(self.device)
        self.compiled = torch.compile(
            lambda given: self._through(case.what, given, dtype), dynamic=False
        )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return {"compile_seconds": self.time(1)}

    def time(self, calls: int) -> float:
        """Seconds of one batch."""
        import torch

        begin = time.perf_counter()
        with torch.inference_mode():
            for _ in range(calls):
                found = self.compiled(self.given)
        float(found.flatten()[0])  # waits
        return (time.perf_counter() - begin) / calls

    def peak(self) -> int | None:
        """Bytes at most since it was compiled, which a CPU does not tell."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


@dataclass
class Found:
    """Of ours, for the peer's rows: images a second by case, outputs by what was done; empty where
    ours failed.
    """

    rates: dict[Case, float] = field(default_factory=dict)
    outputs: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def run(context: Context) -> None:
    """Network by network, ours and then PyTorch's; last the larger batches in float32, ours
    alone.
    """
    cases, larger = (TINY_CASES, TINY_LARGER) if context.tiny else (CASES, LARGER)
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(case.name for case in cases):
            found = Found()
            for kind in (Ours, Torch):
                _measure(
                    context, kind, [case for case in cases if case.name == name], folder, found
                )
        _measure(context, Ours, list(larger), folder, Found(), check=False)


def _measure(
    context: Context,
    kind: type[Any],
    cases: list[Case],
    folder: str,
    found: Found,
    *,
    check: bool = True,
) -> None:
    """Rows of one network by one framework."""
    name = cases[0].name
    with Side(kind) as side:
        try:
            platform, limit = side.ask("prepare", name, context.tiny, folder)
            differ = _compare(side, name, context.tiny, found) if check else {}
        except SideError as reason:
            context.emit(name=name, by=kind.label, remark=str(reason))
            return
        for case in cases:
            row: dict[str, Any] = {**case._asdict(), "by": kind.label, "platform": platform}
            row["differ"] = differ.get(case.what)
            if context.left < _LEAST_SECONDS:
                context.emit(**row, remark="not begun: the time of this part is nearly over")
                continue
            try:
                row |= _time(side, case, limit, found)
            except SideError as reason:
                row["remark"] = str(reason)
            context.emit(**row)


def _compare(side: Side, name: str, tiny: bool, found: Found) -> dict[str, float]:
    """Largest differences from our outputs in float32, by what was done; empty for ours, and where
    ours failed.
    """
    differ = {}
    for what in ("encode", "decode"):
        outputs = side.ask("outputs", Case(name, what, "float32", 2, 16 if tiny else 64))
        if side.kind is Ours:
            found.outputs[what] = outputs
        elif what in found.outputs:
            off = float(
                np.abs(outputs - found.outputs[what]).max() / np.abs(found.outputs[what]).max()
            )
            if not off < TOLERANCE:
                raise SideError(
                    f"{what}: outputs differ by {off:.1e} of the largest: not the same computation"
                )
            differ[what] = off
    return differ


def _time(side: Side, case: Case, limit: int | None, found: Found) -> dict[str, Any]:
    """Columns of a row; what is not to fit into the memory of the device is not run."""
    plan = side.ask("plan", case)
    row: dict[str, Any] = {"compile_seconds": plan["compile_seconds"]}
    if "planned" in plan:
        row |= {f"{name}_gib": plan[name] / 2**30 for name in ("planned", "temporary")}
        if limit is not None and plan["planned"] > limit:
            return row | {"remark": f"not run: the device has {limit / 2**30:.0f} GiB"}
    rate = case.batch / min(side.ask("time", _CALLS) for _ in range(_ROUNDS))
    if side.kind is Ours:
        found.rates[case] = rate
    our_rate = found.rates.get(case)
    row |= {
        "images_per_second": rate,
        "ours_over_this": None if our_rate is None else our_rate / rate,
    }
    peak = side.ask("peak")
    return row | {"peak_gib": peak / 2**30 if peak else None, "remark": ""}
