"""`flowtrain train`."""

import json
import signal
import sys
from pathlib import Path

import click

PREEMPTED = 75  # EX_TEMPFAIL: saved; repeat the command to go on
INTERRUPTED = 130


@click.command()
@click.argument("data")
@click.option(
    "--workdir", required=True, type=click.Path(path_type=Path), help="Checkpoints, metrics and run.json go here."
)
@click.option("--recipe", required=True, help="Name of a recipe of the package, or a TOML file.")
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override one value of the recipe.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and plan, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as one JSON object.")
def train(data: str, workdir: Path, recipe: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Train a flow-matching DiT on the latent dataset DATA. The same command again resumes.

    On SIGTERM the state is saved and the exit status is 75; on Ctrl-C likewise, with 130.

    Example: flowtrain train latents/ --workdir run/ --recipe digits --set train.steps=500
    """
    from flowtrain.recipes import find_recipe
    from schemas.config import load_recipe
    from schemas.errors import UserError

    if "://" in data:
        raise UserError(
            f"{data}: training reads single records at random, from a local disk; copy the dataset to one first "
            "(aws s3 sync, gcloud storage rsync -r)"
        )

    resolved = load_recipe(find_recipe(recipe), overrides)

    from flowtrain import workdir as work
    from flowtrain.train import make_plan
    from flowtrain.train import train as run_training

    plan = make_plan(Path(data), resolved)
    if dry_run:
        work.check(workdir, plan.run)
        _print({"recipe": resolved.model_dump(mode="json"), "plan": plan.summary()}, as_json)
        return
    stop = _StopRequest()
    outcome = run_training(plan, workdir, should_stop=lambda: stop.signal is not None)
    if outcome.stopped:
        click.echo(f"{workdir}: stopped; saved step {outcome.step}, repeat the command to go on", err=True)
        sys.exit(INTERRUPTED if stop.signal == signal.SIGINT else PREEMPTED)
    _print({"workdir": str(workdir), "step": outcome.step}, as_json)


class _StopRequest:
    """Remembers the first SIGTERM or SIGINT; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {which: signal.signal(which, self._note) for which in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        for which, handler in self._before.items():
            signal.signal(which, handler)


def _print(content: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(content))
        return
    for name, value in content.items():
        if isinstance(value, dict):
            click.echo(f"[{name}]")
            _print(value, as_json)
        else:
            click.echo(f"  {name} = {value}")
