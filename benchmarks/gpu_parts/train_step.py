"""The train step of `flowtrain.step` against `torch.compile`: `benchmarks/train.py` with a row as
soon as it is known.

Each size is measured in a process for each framework, ours first, three rounds of ten steps. First
both networks are given the same weights and their outputs are compared; if these differ, the part
fails.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.part import Context
from benchmarks.jax_dit import Ours
from benchmarks.sides import GPU_BATCH, SCAN_FROM_DEPTH, SIZES, Settings, Side
from benchmarks.torch_dit import Torch
from benchmarks.train import Figures, _prepare, _round, _summary

ORDER = ("B", "XL", "S")
_ROUNDS, _STEPS = 3, 10


class CompiledTorch(Torch):
    """PyTorch through `torch.compile` alone: its eager step is known to be slower, and time is
    short.
    """

    def prepare(self, settings: Settings) -> list[str]:
        return super().prepare(settings)[1:]


def choose_settings(size: str, tiny: bool) -> Settings:
    """As `benchmarks/train.py` has them on a GPU; miniature ones for a CPU."""
    if tiny:
        return Settings(
            "debug", 2, 2, 2, (4, 4, 4), "bfloat16", SIZES[size][0] >= SCAN_FROM_DEPTH, False, 1
        )
    depth = SIZES[size][0]
    return Settings(
        size, depth, 2, GPU_BATCH[size], (32, 32, 4), "bfloat16", depth >= SCAN_FROM_DEPTH, False, 1
    )


def run(context: Context) -> None:
    """B/2, XL/2 and S/2."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    # else it is no compilation that is timed
    fresh = not cache.is_dir() or not any(cache.iterdir())
    for size in ORDER[:1] if context.tiny else ORDER:
        _measure(context, size, choose_settings(size, context.tiny), fresh)


def _measure(context: Context, size: str, settings: Settings, fresh: bool) -> None:
    figures = Figures()
    rounds, steps = (1, 1) if context.tiny else (_ROUNDS, _STEPS)
    with tempfile.TemporaryDirectory() as folder:
        for kind in (Ours, CompiledTorch):
            with Side(kind) as side:
                platform = side.ask("facts")["platform"] if kind is Ours else None
                _prepare(side, settings, folder, figures, both=True)
                for _ in range(rounds):
                    _round(side, steps, figures)
                for name in side.steps:
                    figures.notes[name]["memory"] = side.ask("memory", name)
            summary = _summary(settings, figures)  # ends the part if outputs differ
            _tell(
                context, size, settings, summary["rows"][-1], summary.get("check"), fresh, platform
            )


def _tell(
    context: Context,
    size: str,
    settings: Settings,
    row: dict[str, Any],
    check: dict[str, float] | None,
    fresh: bool,
    platform: str | None,
) -> None:
    memory = row.get("memory")
    context.emit(
        model=f"DiT-{size}/{settings.patch}",
        step=row["step"],
        platform=platform,
        batch=settings.batch_size,
        dtype=settings.dtype,
        images_per_second=row.get("images_per_second"),
        ours_over_this=row.get("ours_over_this"),
        tflops=row["flops"] / 1e12 if "flops" in row else None,
        share_of_products=row.get("share"),
        spread=row.get("spread"),
        compile_seconds=row.get("compile_seconds") if fresh else None,
        peak_gib=memory / 2**30 if memory else None,
        outputs_differ=check["float32"] if check else None,
        remark=row.get("remark", ""),
    )
