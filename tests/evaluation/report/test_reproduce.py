"""The commands on the page: each is one that the command line takes, and names all that is not a
default.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from click import Command, Context

from evaluation.features.imagesets import DECODED
from evaluation.report.reproduce import commands, preprocess
from evaluation.results import Result
from flowtrain.cli import main
from tests.evaluation.conftest import World
from tests.evaluation.results import result


def changed(sampling: dict[str, Any] | None = None, images: dict[str, Any] | None = None) -> Result:
    """A result with other facts of its samples or of its reference."""
    plain = result()
    assert plain.sampling is not None
    reference = (
        plain.reference if images is None else plain.reference.model_copy(update={"images": images})
    )
    return plain.model_copy(
        update={
            "sampling": plain.sampling.model_copy(update=sampling or {}),
            "reference": reference,
        }
    )


def lines_of(world: World, one: Result) -> list[str]:
    return commands(Path("run"), world.run, world.manifest, [one])


def parsed(line: str) -> dict[str, Any]:
    """What the command line makes of a line."""
    program, name, *arguments = shlex.split(line)
    assert program == "flowtrain"
    command = main.get_command(Context(main), name)
    assert isinstance(command, Command)
    return command.make_context(name, arguments).params


def test_every_line_can_be_typed(world: World, tmp_path: Path) -> None:
    lines = commands(tmp_path / "my run", world.run, world.manifest, [result(20, 1), result(5, 4)])
    assert lines[0] == f"flowtrain preprocess none {world.dataset}"
    assert lines[2] == (
        "flowtrain stats embedded:digits reference.npz --split train --resolution 8 "
        "--extractor tiny"
    )
    assert lines[3].endswith("--steps 20,5 --cfg 1,4 --num-samples 10 --protocol tiny")
    options = [parsed(line) for line in lines[1:]]
    assert options[-1]["workdirs"] == (tmp_path / "my run",)


def test_only_the_word_out_is_filled_in() -> None:
    assert preprocess("flowtrain preprocess 'my OUT OUT' OUT --split OUT", "a b") == (
        "flowtrain preprocess 'my OUT OUT' 'a b' --split OUT"
    )
    assert (
        preprocess("flowtrain preprocess OUT OUT --seed 0", "x")
        == "flowtrain preprocess OUT x --seed 0"
    )


def test_what_is_not_a_default_is_named(world: World) -> None:
    facts = {"seed": 7, "step": 2, "weights": "params", "labels": "red fox", "cfg_channels": 3}
    options = parsed(lines_of(world, changed(facts))[3])
    assert options["class_name"] == "red fox"
    assert {name: options[name] for name in ("seed", "step", "weights", "cfg_channels")} == {
        "seed": 7,
        "step": 2,
        "weights": "params",
        "cfg_channels": 3,
    }


def test_the_solver_is_named_where_it_is_not_the_recipes(world: World) -> None:
    def solver(world: World, sampler: str) -> str | None:
        return parsed(lines_of(world, changed({"sampler": sampler}))[3])["solver"]

    assert solver(world, "euler") is None
    assert solver(world, "ddpm") == "ddpm"
    recipe = world.run.recipe.model_copy(
        update={"sampler": world.run.recipe.sampler.model_copy(update={"solver": "ddpm"})}
    )
    other = replace(world, run=world.run.model_copy(update={"recipe": recipe}))
    assert solver(other, "ddpm") is None
    assert solver(other, "euler") == "euler"


def test_further_averages_are_named(world: World) -> None:
    assert (
        parsed(lines_of(world, changed({"weights": "posthoc0.13"}))[3])["weights"] == "posthoc0.13"
    )


def test_a_reference_is_made_by_its_line(world: World) -> None:
    digits = {
        "kind": "source",
        "descriptor": "embedded:digits",
        "split": "test",
        "num": 50,
        "crop": "none",
    }
    options = parsed(lines_of(world, changed(images=digits))[2])
    assert (options["source"], options["split"], options["num"], options["crop"]) == (
        "embedded:digits",
        "test",
        50,
        "none",
    )
    own = {"kind": DECODED, "split": "train", "digest": world.run.dataset.digest, "num": 30}
    options = parsed(lines_of(world, changed(images=own))[2])
    assert (options["source"], str(options["out"])) == (str(world.dataset), "reference.npz")
    elsewhere = lines_of(world, changed(images={**own, "digest": "e" * 64}))[2]
    assert (
        elsewhere
        == f"# reference.npz: images of digest {'e' * 12}, digest of mu and sigma {'d' * 12}"
    )
    assert lines_of(world, changed(images={}))[2].startswith("# reference.npz: given statistics")


def test_how_samples_were_drawn_is_named(world: World) -> None:
    facts = {"sampler": "dopri5", "steps": 0, "nfe": None, "tolerance": 0.001, "labels": "uniform"}
    line = lines_of(world, changed({**facts, "cfg_interval": (0.1, 0.8)}))[3]
    assert "--steps" not in line
    options = parsed(line)
    assert (options["solver"], options["tolerance"], options["labels"]) == (
        "dopri5",
        0.001,
        "uniform",
    )
    assert options["cfg_interval"] == (0.1, 0.8)
    shifted = lines_of(world, changed({"shift": 3.0, "labels": "frequencies 0123456789ab"}))[3]
    assert parsed(shifted)["shift"] == 3
    assert "--labels reference.npz" in shifted


def test_metrics_that_need_rows_are_asked_for(world: World) -> None:
    some = changed().model_copy(update={"metrics": {"precision": 0.5, "recall": 0.5, "sfid": 3.0}})
    stats, evaluated = lines_of(world, some)[2:4]
    assert parsed(evaluated)["metrics"] == ("pr",)
    assert parsed(stats)["features"]
    assert not parsed(lines_of(world, changed())[2])["features"]
