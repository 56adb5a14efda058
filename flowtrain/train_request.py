"""What `flowtrain train` is asked for, typed, and the rules of which options go together."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.rules import Rule, check
from schemas.storage.url import is_url

if TYPE_CHECKING:
    from flowtrain.records.cache import Cache
    from schemas.config import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The options of `flowtrain train`, by their names; None where one was left out.

    Attributes:
        data: the dataset, a directory or a URL.
        workdir: where the run is.
        recipe: a recipe's name or file.
        overrides: TABLE.KEY=VALUE of the recipe.
        overfit: train on so many records only.
        validation: a dataset for the validation loss.
        reference: statistics or a dataset for the distances of previews.
        cache: where records are staged, and `cache_dir` the directory for it.
        fsdp: over how many devices parameters are cut.
        distributed: whether to join other processes, as the environment says, or `coordinator`,
            which needs the number of `processes` and the number of this `process`.
        wandb: a project to report to.
        replay: a step whose records are printed, in the place of training.
        dry_run: whether the plan is all that is asked for.
        as_json: whether JSON is printed.
    """

    data: str
    workdir: Path
    recipe: str
    overrides: tuple[str, ...] = ()
    overfit: int | None = None
    validation: str | None = None
    reference: Path | None = None
    cache: "Cache" = "none"
    cache_dir: Path | None = None
    fsdp: int = 1
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    wandb: str | None = None
    replay: int | None = None
    dry_run: bool = False
    as_json: bool = False

    @property
    def all_overrides(self) -> tuple[str, ...]:
        """`overrides`, and what other options say of the recipe."""
        if self.overfit is None:
            return self.overrides
        return (*self.overrides, f"train.overfit={self.overfit}")

    @property
    def joins(self) -> bool:
        """Whether this is one of several processes."""
        return self.distributed or bool(self.coordinator)

    @property
    def counted(self) -> tuple[bool, bool]:
        """Whether the number of processes is told, and whether that of this one is."""
        return self.processes is not None, self.process is not None

    @property
    def stages(self) -> bool:
        """Whether anything is brought to a directory of its own."""
        urls = (self.data, self.validation or "")
        return self.cache == "disk" or any(map(is_url, urls))


@dataclass(frozen=True)
class _Asked:
    """A request beside its recipe, overrides applied."""

    request: TrainRequest
    recipe: "Recipe"

    @property
    def measures_previews(self) -> bool:
        preview = self.recipe.preview
        return bool(preview.every and preview.distance_samples)

    @property
    def validates(self) -> bool:
        return bool(self.recipe.train.holdout) or self.request.validation is not None

    @property
    def beyond(self) -> bool:
        """Whether the number of this process is one that there is not."""
        processes, process = self.request.processes, self.request.process
        return processes is not None and process is not None and process >= processes


_RULES: tuple[Rule[_Asked], ...] = (
    Rule(
        lambda asked: bool(asked.request.coordinator) and not all(asked.request.counted),
        "--coordinator needs --processes N and --process I",
    ),
    Rule(
        lambda asked: not asked.request.joins and any(asked.request.counted),
        "--processes and --process need --coordinator HOST:PORT, or --distributed",
    ),
    Rule(
        lambda asked: asked.beyond,
        lambda asked: (
            f"--process {asked.request.process}: of {asked.request.processes} processes the last "
            f"is number {(asked.request.processes or 0) - 1}"
        ),
    ),
    Rule(
        lambda asked: asked.request.reference is not None and not asked.measures_previews,
        "--reference is for the distances of previews, and there are none; set preview.every and "
        "preview.distance_samples, or leave it out",
    ),
    Rule(
        lambda asked: bool(asked.recipe.train.keep_best) and not asked.validates,
        "train.keep_best needs a validation loss; give --validation DATA or --set train.holdout=N",
    ),
    Rule(
        lambda asked: asked.request.cache_dir is not None and not asked.request.stages,
        "--cache-dir says where to stage, and nothing is staged; add --cache disk, or leave it out",
    ),
)


def check_request(request: TrainRequest, recipe: "Recipe") -> None:
    """What can be told before anything is opened.

    Raises:
        UserError: options that need each other, or that the recipe leaves without effect.
    """
    check(_RULES, _Asked(request, recipe))
