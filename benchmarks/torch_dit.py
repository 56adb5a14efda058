"""The same training step in PyTorch, for `benchmarks/train.py`, which says what it does and what it
leaves out.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import (
    BETA1,
    BETA2,
    CLASSES,
    EMA_DECAY,
    EPSILON,
    LABEL_DROP,
    RATE,
    SIZES,
    VAE_SCALE,
    Settings,
    Watch,
    check_inputs,
    make_batch,
    square,
)


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
                raise ValueError(
                    f"other parameters: {set(named) ^ {_jax_name(name) for name in parameters}}"
                )
            for name, parameter in parameters.items():
                value = torch.from_numpy(named[_jax_name(name)])
                parameter.copy_(
                    value.T if value.ndim == 2 and name != "label_embed.weight" else value
                )
        inputs = [torch.from_numpy(array).to(device) for array in check_inputs(settings)]
        outputs = {}
        for dtype in ("float32", "bfloat16"):
            with torch.no_grad(), _autocast(dtype):
                outputs[dtype] = model(*inputs).float().cpu().numpy()
        return outputs

    def prepare(self, settings: Settings) -> list[str]:
        """Parameters, averages, optimizer and batch on the device; names of what can be built."""
        import torch

        torch.manual_seed(0)
        # as XLA's default: TensorFloat-32 where there is such a thing
        torch.set_float32_matmul_precision("high")
        self.device, self.settings = _torch_device(), settings
        self.model = _torch_dit(settings).to(self.device)
        self.parameters = list(self.model.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.Adam(
            self.parameters, RATE, (BETA1, BETA2), EPSILON, fused=True
        )
        batch = make_batch(settings)
        self.batch = [
            torch.from_numpy(batch[name]).to(self.device) for name in ("mean", "logvar", "label")
        ]
        self.losses: dict[str, Callable[..., Any]] = {}
        self.peak: dict[str, int] = {}
        return list(self.names)

    def build(self, name: str) -> dict[str, Any]:
        """Compile by running, where it is to be compiled; a few steps that do not count."""
        import torch

        eager, compiled = self.names
        self.losses[name] = {
            eager: lambda: self._loss,
            compiled: lambda: torch.compile(self._loss, dynamic=False),
        }[name]()
        begin = time.perf_counter()
        self.time(name, 1)
        compiling = time.perf_counter() - begin - self.time(name, 2)[0]
        return {"compile_seconds": compiling if name == compiled else None}

    def _loss(self, mean: Any, logvar: Any, label: Any) -> Any:
        import torch

        data = (
            mean.float()
            + torch.exp(0.5 * logvar.float()) * torch.randn(mean.shape, device=mean.device)
        ) * VAE_SCALE
        noise = torch.randn_like(data)
        t = torch.sigmoid(torch.randn(len(data), device=data.device))
        drop = torch.rand(len(data), device=data.device) < LABEL_DROP
        part = t[:, None, None, None]
        with _autocast(self.settings.dtype):
            velocity = self.model(
                (1 - part) * noise + part * data, t, torch.where(drop, CLASSES, label)
            )
        return (velocity.float() - (data - noise)).square().mean()

    def _step(self, loss_of: Callable[..., Any]) -> Any:
        import torch

        total = 0
        for part in zip(
            *(array.chunk(self.settings.accumulate) for array in self.batch), strict=True
        ):
            loss = loss_of(*part) / self.settings.accumulate
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - EMA_DECAY)
        return total

    def time(self, name: str, steps: int) -> tuple[float, float]:
        """Seconds a step, dispatched one after another and waited for at the end; and those of all
        the CPU's cores.
        """
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
        """FLOP/s of matrix products, measured as `flowtrain.devices.ceiling` does."""
        import torch

        side, products = square(self.device.type)
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
            q, k, v = (
                self.qkv(x).reshape(n, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            )
            out = F.scaled_dot_product_attention(q, k, v)
            return self.attention_out(out.transpose(1, 2).reshape(n, tokens, width))

        def forward(self, x: Any, condition: Any) -> Any:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(
                6, dim=-1
            )
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
            x = (
                x.reshape(n, rows, patch, columns, patch, channels)
                .permute(0, 1, 3, 2, 4, 5)
                .flatten(3)
                .flatten(1, 2)
            )
            x = self.patch_embed(x)
            x = x + self.positions.to(x.dtype)
            angles = 1000.0 * t[:, None] * self.frequencies
            features = torch.cat([angles.cos(), angles.sin()], dim=-1)
            condition = F.silu(
                self.time_out(F.silu(self.time_in(features))) + self.label_embed(label)
            )
            for block in self.blocks:
                x = (
                    checkpoint(block, x, condition, use_reentrant=False)
                    if settings.remat
                    else block(x, condition)
                )
            shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
            x = self.final(modulate(x, shift, scale))
            x = x.reshape(n, rows, columns, patch, patch, channels).permute(0, 1, 3, 2, 4, 5)
            return x.reshape(n, height, breadth, channels)

    return DiT()
