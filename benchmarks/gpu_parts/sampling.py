"""Samples a second of `flowtrain.flow.sampler`, with and without guidance, and of a loop in PyTorch
over the same network.

Weights are random and none of them is zero: what is drawn means nothing, and takes as long as what
would. That both networks are the same is checked by `train`, and that both loops are by
`benchmarks/evaluate.py --only sampling`.
"""

import time
from typing import Any

import numpy as np

from benchmarks.evaluate_ours import random_model
from benchmarks.gpu_parts.part import Context
from benchmarks.gpu_parts.train_step import choose_settings
from benchmarks.sides import CLASSES, Settings, Side, SideError
from benchmarks.torch_dit import _autocast, _torch_device, _torch_dit

ORDER = ("B", "XL")
STEPS, WEIGHT = 50, 4.0
_ROUNDS = 2
_BATCH = {"B": 256, "XL": 128}


class Ours:
    """`sample`, a batch at once."""

    label = "flowtrain"

    def prepare(self, settings: Settings, batch: int) -> str:
        """Weights on the device; its platform."""
        import jax

        self.batch, self.model = batch, random_model(settings, batch)
        return jax.default_backend()

    def draw(self, steps: int, cfg: float) -> float:
        """Seconds for one batch, from labels to NumPy."""
        from flowtrain.flow.sampler import sample
        from schemas.sampler import SamplerSettings

        begin = time.perf_counter()
        labels, indices = np.arange(self.batch) % CLASSES, np.arange(self.batch)
        settings = SamplerSettings("euler", steps, cfg)
        found = sample(self.model, labels, indices, settings, batch_size=self.batch)
        if not np.isfinite(found.x).all():
            raise ValueError("samples hold NaN or infinity")
        return time.perf_counter() - begin


class Torch:
    """Euler's steps in a Python loop, the network through torch.compile, both of a guided pair in
    one batch.
    """

    label = "torch.compile"

    def prepare(self, settings: Settings, batch: int) -> str:
        """Weights on the device; its platform."""
        import torch

        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.settings, self.device = settings, _torch_device()
        network = _torch_dit(settings).to(self.device).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.5 * parameter.shape[-1] ** -0.5)
        self.predict = torch.compile(network, dynamic=False)
        self.label_of = torch.arange(batch, device=self.device) % CLASSES
        self.noise = torch.randn((batch, *settings.latent), device=self.device)
        return self.device.type

    def draw(self, steps: int, cfg: float) -> float:
        """Seconds for one batch, from noise to NumPy."""
        import torch

        begin, x, label = time.perf_counter(), self.noise, self.label_of
        both = label if cfg == 1 else torch.cat([label, torch.full_like(label, CLASSES)])
        with torch.inference_mode(), _autocast(self.settings.dtype):
            for step in range(steps):
                t = torch.full((len(both),), step / steps, device=self.device)
                velocity = self.predict(x if cfg == 1 else torch.cat([x, x]), t, both).float()
                if cfg != 1:
                    conditional, unconditional = velocity.chunk(2)
                    velocity = unconditional + cfg * (conditional - unconditional)
                x = x + velocity / steps
        if not np.isfinite(x.cpu().numpy()).all():
            raise ValueError("samples hold NaN or infinity")
        return time.perf_counter() - begin


def run(context: Context) -> None:
    """All of ours first, then the loops."""
    ours: dict[tuple[str, float], float] = {}
    for kind in (Ours, Torch):
        for size in ORDER[:1] if context.tiny else ORDER:
            _measure(context, kind, size, ours)


def _measure(
    context: Context, kind: type[Any], size: str, ours: dict[tuple[str, float], float]
) -> None:
    settings = choose_settings(size, context.tiny)
    batch, steps = (2, 2) if context.tiny else (_BATCH[size], STEPS)
    row: dict[str, Any] = {"model": f"DiT-{size}/{settings.patch}", "sampler": kind.label}
    row |= {"steps": steps, "batch": batch, "dtype": settings.dtype}
    with Side(kind) as side:
        try:
            row["platform"] = side.ask("prepare", settings, batch)
        except SideError as reason:
            context.emit(**row, remark=str(reason))
            return
        for cfg in (1.0, WEIGHT):
            try:
                first = side.ask("draw", steps, cfg)
                seconds = min(side.ask("draw", steps, cfg) for _ in range(_ROUNDS))
            except SideError as reason:
                context.emit(**row, cfg=cfg, remark=str(reason))
                continue
            rate = batch / seconds
            if kind is Ours:
                ours[size, cfg] = rate
            our_rate = ours.get((size, cfg))
            ratio = None if our_rate is None else our_rate / rate
            times = {
                "images_per_second": rate,
                "ours_over_this": ratio,
                "first_batch_seconds": first,
            }
            context.emit(**row, cfg=cfg, **times, remark="")
