"""What to draw of a model: the setting of a set of samples, its facts, its name and the command
that draws it.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation.results import Sampling
from schemas.config import BOOKKEEPING, ENDLESS_SCHEDULES, UNLEARNED, Recipe
from schemas.run import Run
from schemas.sampler import SamplerSettings

if TYPE_CHECKING:
    from flowtrain.state.checkpoint import TrainedModel

CYCLIC, UNIFORM = "cyclic", "uniform"


@dataclass(frozen=True)
class Setting:
    """How many samples to draw, how, and of which classes.

    Classes: `label` for all, or by `rule`: the classes in turn, sample i has number i modulo their
    count ("cyclic"), or one that follows from (seed, i) alone, "uniform" or with `frequencies` (one
    a class, any scale).
    """

    num: int
    sampler: SamplerSettings
    label: int | None = None
    rule: str = CYCLIC
    frequencies: tuple[float, ...] | None = None

    def labels(self, indices: NDArray[np.int64], classes: Sequence[int]) -> NDArray[np.int32]:
        """(n,) classes of samples `indices` (n,), by a rule among `classes`:
        `Run.sampled_classes`.
        """
        if self.label is not None:
            return np.full(indices.shape, self.label, np.int32)
        numbers = np.asarray(classes, np.int32)
        if self.rule == CYCLIC:
            return numbers[indices % len(numbers)]
        from flowtrain.records.counter import Purpose, host_bits

        bits = host_bits(self.sampler.seed, Purpose.SAMPLE_LABEL, 0, indices)
        chance = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        weights = np.ones(len(numbers))
        if self.frequencies is not None:
            weights = np.array(self.frequencies, np.float64)[numbers]
        edges = np.cumsum(weights) / weights.sum()
        places = np.searchsorted(edges, chance, side="right")
        return numbers[np.minimum(places, len(numbers) - 1)]

    def labels_fact(self, classes: tuple[str, ...]) -> str:
        """The rule of the classes, for JSON."""
        if self.label is not None:
            return classes[self.label]
        if self.frequencies is None:
            return self.rule
        return (
            f"frequencies {hashlib.sha256(json.dumps(self.frequencies).encode()).hexdigest()[:12]}"
        )


def run_digest(run: Run) -> str:
    """SHA-256 of everything in run.json that the weights of a step depend on, and nothing of where
    and how it ran.
    """
    train = set(BOOKKEEPING)
    if run.recipe.optimizer.schedule in ENDLESS_SCHEDULES:
        train.add("steps")  # a run that was made longer is the same run
    recipe = {"sampler": True, "preview": True, "train": train, "model": set(UNLEARNED)}
    content = run.model_dump(
        mode="json", exclude={"dataset": {"path"}, "versions": True, "recipe": recipe}
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sampling_facts(trained: "TrainedModel", setting: Setting) -> Sampling:
    """What the samples of a setting depend on."""
    return Sampling.of(
        setting.sampler,
        run=run_digest(trained.run),
        step=trained.step,
        weights=trained.weights,
        labels=setting.labels_fact(trained.run.classes),
        num_samples=setting.num,
    )


def setting_name(sampling: Sampling) -> str:
    """A directory name for a sample set; one name a setting."""
    parts = [f"step{sampling.step}", sampling.weights, sampling.settings.name]
    if sampling.labels == UNIFORM:
        parts.append(UNIFORM)
    elif sampling.labels != CYCLIC:
        parts.append("class" + hashlib.sha256(sampling.labels.encode()).hexdigest()[:6])
    return "-".join([*parts, f"seed{sampling.seed}", f"n{sampling.num_samples}"])


def sampling_words(sampling: Sampling, recipe: Recipe, reference: str) -> dict[str, str]:
    """Values by option of `sample` and `eval` with which a run of the recipe gives these samples,
    but for their number.

    `reference` stands for the statistics whose counts of classes the samples follow.
    """
    settings = sampling.settings
    return {
        **settings.words(),
        "--step": f"{sampling.step}",
        "--weights": sampling.weights,
        **settings.further_words(recipe.sampler),
        **_class_words(sampling.labels, reference),
    }


def default_words(recipe: Recipe) -> dict[str, str]:
    """Values by option that `sample` and `eval` have without being told, of a finished run."""
    settings = recipe.sampler.settings()
    words = {
        **settings.words(),
        "--step": f"{recipe.train.steps}",
        "--weights": "ema",
    }
    if settings.cfg_channels is not None:
        words["--cfg-channels"] = f"{settings.cfg_channels}"
    return words


def _class_words(labels: str, reference: str) -> dict[str, str]:
    """The option that asks for a rule of classes, as `Sampling.labels` has it."""
    if labels.startswith("frequencies "):
        return {"--labels": reference}
    if labels == UNIFORM:
        return {"--labels": UNIFORM}
    if labels == CYCLIC:
        return {}
    return {"--class": labels}


def command_line(*words: str, options: Mapping[str, str]) -> str:
    """A command ready to be typed: `flowtrain`, words, and options with their values."""
    told = [word for option in options.items() for word in option]
    return shlex.join(["flowtrain", *words, *told])


def equivalent_command(sampling: Sampling, recipe: Recipe) -> str:
    """The command that makes these samples anywhere; WORKDIR stands for the run, which has the
    recipe.
    """
    words = sampling_words(sampling, recipe, reference="REFERENCE")
    number = {"--num": f"{sampling.num_samples}"}
    return command_line("sample", "WORKDIR", "OUT", options={**number, **words})
