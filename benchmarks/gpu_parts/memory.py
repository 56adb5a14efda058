"""Memory that XLA plans for the train step beside memory that was used, in a fresh process for each
size.
"""

from typing import Any

from benchmarks.gpu_parts.part import Context
from benchmarks.gpu_parts.train_step import ORDER, choose_settings
from benchmarks.jax_dit import Ours
from benchmarks.sides import Settings, Side, SideError

_STEPS = 3
_PARTS = ("argument", "output", "alias", "temp")


class Planned(Ours):
    """The step with its plan."""

    def plan(self, settings: Settings) -> dict[str, Any]:
        """Bytes by kind; the total is of all that the step holds at once, buffers that it reuses
        counted once.
        """
        self.prepare(settings)
        name = self.label
        self.build(name)
        found = self.step.memory_analysis()
        plan = {part: getattr(found, f"{part}_size_in_bytes") for part in _PARTS}
        return plan | {"total": plan["argument"] + plan["output"] - plan["alias"] + plan["temp"]}

    def used(self) -> tuple[str, int | None]:
        """Platform, and bytes at most so far, which a CPU does not tell."""
        import jax

        self.time(self.label, _STEPS)
        device = jax.devices()[0]
        statistics = device.memory_stats() or {}
        return device.platform, statistics.get("peak_bytes_in_use")


def run(context: Context) -> None:
    """B/2, XL/2 and S/2, the step of `train`, whose compiled programs are found again."""
    for size in ORDER[:1] if context.tiny else ORDER:
        settings = choose_settings(size, context.tiny)
        model = {
            "model": f"DiT-{size}/{settings.patch}",
            "batch": settings.batch_size,
            "dtype": settings.dtype,
        }
        try:
            with Side(Planned) as side:
                plan = side.ask("plan", settings)
                platform, used = side.ask("used")
        except SideError as reason:
            context.emit(**model, remark=str(reason))
            continue
        context.emit(
            **model,
            platform=platform,
            planned_gib=plan["total"] / 2**30,
            temporary_gib=plan["temp"] / 2**30,
            state_and_batch_gib=plan["argument"] / 2**30,
            used_gib=used / 2**30 if used else None,
            used_over_planned=used / plan["total"] if used and plan["total"] else None,
            remark="" if used else "this device does not tell what was used",
        )
