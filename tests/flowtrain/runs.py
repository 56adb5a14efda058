"""Small runs of the debug recipe, in this process or as commands, and what they left behind."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from flowtrain.devices.sharding import make_mesh, replicated
from flowtrain.plan import Plan, make_plan
from flowtrain.recipes import find_recipe
from flowtrain.state.checkpoint import Checkpoints, with_sharding
from flowtrain.state.train_state import TrainState
from flowtrain.step import abstract_state
from flowtrain.train import Options, Outcome, train
from schemas.recipes import load_recipe
from schemas.run import METRICS_NAME
from tests.forked import Command, template

ONE = Options(devices=jax.local_devices()[:1])


def debug_plan(latents: Path, *overrides: str) -> Plan:
    """The debug recipe on a dataset."""
    return make_plan(latents, load_recipe(find_recipe("debug"), overrides))


def run_debug(latents: Path, workdir: Path, *overrides: str, options: Options = ONE) -> Outcome:
    """Train it."""
    return train(debug_plan(latents, *overrides), workdir, options)


def command(
    latents: Path, workdir: Path, *arguments: str, overrides: Sequence[str] = ()
) -> list[str]:
    """The same as a command line, without the `flowtrain`."""
    return [
        "train",
        str(latents),
        "--workdir",
        str(workdir),
        "--recipe",
        "debug",
        *(word for one in overrides for word in ("--set", one)),
        *arguments,
    ]


def start(words: Sequence[str]) -> Command:
    """Begin a command."""
    return template().start(*words)


def finish(process: Command) -> str:
    """Wait for a command that must succeed; what it printed."""
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


def send_when(process: Command, ready: Callable[[], bool], number: signal.Signals) -> int:
    """Signal the process as soon as `ready()`; the exit status, negative for a signal."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(number)
    return process.wait()


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Metrics of the training steps, those of a line that is being written left out."""
    path = workdir / METRICS_NAME
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in found if "loss" in line]


def curve(workdir: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm)."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(workdir)]


def last_step(workdir: Path) -> int:
    """The last one that was logged, or 0."""
    return max((line["step"] for line in lines(workdir)), default=0)


def saved(
    plan: Plan, workdir: Path, step: int
) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
    """A checkpoint on one device: state, loader, meta."""
    mesh, setup = make_mesh(jax.local_devices()[:1]), plan.setup()
    like = with_sharding(abstract_state(setup), replicated(mesh))
    with Checkpoints(workdir, plan.recipe.train) as checkpoints:
        return checkpoints.restore(step, like)
