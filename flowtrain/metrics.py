"""The numbers of a run: steps gathered into intervals, each the numbers of one line."""

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

from flowtrain.flow.objective import TIME_BINS

_AVERAGED = ("loss", "grad_norm", "update_norm")
_LATEST = ("param_norm", "learning_rate")


def loss_by_time(
    sums: Iterable[SupportsFloat], counts: Iterable[SupportsFloat]
) -> dict[str, float]:
    """`loss_t0.0` ... `loss_t0.9`: the mean loss of the records whose t fell into [k/10, (k+1)/10).

    Args:
        sums: (10,) summed losses of the records of each tenth.
        counts: (10,) numbers of those records. A tenth without any is left out.
    """
    tenths = zip(range(TIME_BINS), sums, counts, strict=True)
    return {
        f"loss_t0.{k}": float(total) / float(count)
        for k, total, count in tenths
        if float(count) > 0
    }


class Interval:
    """The steps since the last line, and what they say about loss, norms and speed.

    A step that was skipped counts for the time and not for the averages: its loss may be no number.

    Args:
        batch_size: images of a step, over all devices.
        flops_per_image: FLOPs that the model needs to train on one image: three forward passes,
            6 x `flowtrain.model.forward_macs`.
        ceiling: FLOP/s that the devices reach together, from
            `flowtrain.devices.ceiling.matmul_ceiling`; None: no `mfu`.
    """

    def __init__(self, batch_size: int, flops_per_image: float, ceiling: float | None):
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._ceiling = ceiling
        self.clear()

    def clear(self) -> None:
        """Begin the next interval."""
        self._made, self._timed, self._seconds, self._waited = 0, 0, 0.0, 0.0
        self._sums = dict.fromkeys(_AVERAGED, 0.0)
        self._latest: dict[str, float] = {}
        self._time_loss, self._time_count = [0.0] * TIME_BINS, [0.0] * TIME_BINS

    def state(self) -> dict[str, Any]:
        """What JSON keeps of the steps so far, without the seconds, which are this machine's."""
        return {
            "made": self._made,
            "sums": dict(self._sums),
            "time_loss": list(self._time_loss),
            "time_count": list(self._time_count),
        }

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Begin an interval that has the steps of a `state`; None: none of them is known."""
        self.clear()
        if state is not None:
            self._made, self._sums = state["made"], dict(state["sums"])
            self._time_loss, self._time_count = list(state["time_loss"]), list(state["time_count"])

    def add(self, values: Mapping[str, Any], seconds: float | None, waited: float) -> None:
        """Add one step.

        Args:
            values: what the train step returned, read from the device.
            seconds: since the step before was done, without pauses; None: not known (it held the
                compilation).
            waited: seconds of those that the loop stood waiting for a batch.
        """
        if seconds is not None:
            self._timed += 1
            self._seconds += seconds
            self._waited += waited
        self._latest = {name: float(values[name]) for name in _LATEST}
        self._latest["skipped"] = int(values["skipped"])
        if not values["finite"]:
            return
        self._made += 1
        for name in _AVERAGED:
            self._sums[name] += float(values[name])
        for k in range(TIME_BINS):
            self._time_loss[k] += float(values["time_loss"][k])
            self._time_count[k] += float(values["time_count"][k])

    def line(self) -> dict[str, float]:
        """The numbers of the interval so far.

        `loss`, `grad_norm`, `update_norm`: means over the steps made, left out when all were
        skipped. `param_norm`, `learning_rate`: of the last step. `skipped`: steps of the run so
        far. `images_per_s`; `step_s`: seconds a step; `wait_s`: those that the loop stood waiting
        for its batch, while the device may have been busy with the step before; `compute_s`: the
        others; `data_wait`: wait_s / step_s. `mfu`: the model's FLOP/s as a share of the measured
        ceiling of the devices (not of a data sheet). `loss_t0.0` ...: see `loss_by_time`.
        """
        means = {}
        if self._made:
            means = {name: total / self._made for name, total in self._sums.items()}
        by_time = loss_by_time(self._time_loss, self._time_count)
        return means | self._latest | self._speed() | by_time

    def _speed(self) -> dict[str, float]:
        if not self._timed or self._seconds <= 0:
            return {}
        step, wait = self._seconds / self._timed, self._waited / self._timed
        rate = self._batch_size / step
        speed = {"images_per_s": rate, "step_s": step, "wait_s": wait, "compute_s": step - wait}
        speed["data_wait"] = wait / step
        if self._ceiling:
            speed["mfu"] = self._flops_per_image * rate / self._ceiling
        return speed
