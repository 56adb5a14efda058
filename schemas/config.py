"""Recipes: one TOML file with every number of a training run, validated, overridable, reloadable.

What a person types wins: a model size fills in only the fields that were left out.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import UserError


class DiTSize(NamedTuple):
    """Depth, width and attention heads of a named size (Peebles & Xie 2023, table 1)."""

    depth: int
    width: int
    heads: int


SIZES: dict[str, DiTSize] = {
    "debug": DiTSize(2, 32, 2),
    "S": DiTSize(12, 384, 6),
    "B": DiTSize(12, 768, 12),
    "L": DiTSize(24, 1024, 16),
    "XL": DiTSize(28, 1152, 16),
}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Table):
    """The Diffusion Transformer. Give a `size`, or depth, width and heads, or a size and what differs from it."""

    size: Literal["debug", "S", "B", "L", "XL"] | None = None
    depth: int = Field(ge=1)
    width: int = Field(ge=2)
    heads: int = Field(ge=1)
    patch: int = Field(default=2, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    # How t in [0, 1] enters the sin-cos embedding: cos(t * time_scale * f_k), f_k = 10000^(-k / half).
    time_scale: float = Field(default=1000.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("size") in SIZES:
            return {**SIZES[values["size"]]._asdict(), **values}
        return values

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} must be divisible by 4 for 2-D sin-cos positions")
        return self


class ObjectiveConfig(_Table):
    """Flow matching on the linear path, x_t = (1 - t) noise + t data, target data - noise."""

    kind: Literal["flow"] = "flow"
    time: Literal["logit_normal", "uniform"] = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)
    label_drop: float = Field(default=0.1, ge=0, lt=1)


class OptimizerConfig(_Table):
    """Adam (AdamW when `weight_decay` is set), with an optional linear warm-up and gradient clipping."""

    learning_rate: float = Field(default=1e-4, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = Field(default=None, gt=0)


class TrainConfig(_Table):
    """Length, batch and bookkeeping of a run."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)  # JAX keys are made of 32 bits
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    normalization: Literal["vae", "channel"] = "vae"
    flip: bool = True  # choose between a record and its mirror image, when the dataset has mirrored encodings
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=5000, ge=1)
    keep: int = Field(default=2, ge=1)


class SamplerConfig(_Table):
    """Defaults of `sample` and of previews."""

    solver: Literal["euler"] = "euler"
    steps: int = Field(default=50, ge=1)
    cfg: float = Field(default=4.0, ge=0)
    cfg_channels: int | None = Field(default=None, ge=1)  # None: guidance on all channels


class Recipe(_Table):
    """A whole run."""

    model: ModelConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    sampler: SamplerConfig = SamplerConfig()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply `table.key=value` overrides (values in TOML syntax; bare words are strings).

    Raises:
        UserError: unreadable file, unknown key (the nearest right name is given), or a bad value.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: cannot read the recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    return make_recipe(content, overrides, where=str(path))


def make_recipe(content: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Validate the content of a recipe after applying overrides. Raises `UserError` as `load_recipe`."""
    tables: dict[str, Any] = {
        name: dict(table) if isinstance(table, Mapping) else table for name, table in content.items()
    }
    parsed = [_parse_override(override) for override in overrides]
    typed = {key for table, key, _ in parsed if table == "model"}
    for table, key, value in parsed:
        if not isinstance(tables.setdefault(table, {}), dict):
            raise UserError(f"{where}: [{table}] must be a table")
        if (table, key) == ("model", "size"):  # what the file spells out of another size must not survive it
            for field in DiTSize._fields:
                if field not in typed:
                    tables[table].pop(field, None)
        tables[table][key] = value
    _check_names(tables, where)
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {name}: {first['msg']}") from None


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, separator, value = text.partition("=")
    table, dot, key = name.strip().partition(".")
    if not separator or not dot or not table or not key:
        raise UserError(f"--set {text!r}: write table.key=value, for example --set train.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return table, key, parsed


def _check_names(tables: Mapping[str, Any], where: str) -> None:
    for table, content in tables.items():
        field = Recipe.model_fields.get(table)
        if field is None:
            raise UserError(f"{where}: unknown table [{table}]{_nearest(table, Recipe.model_fields)}")
        if not isinstance(content, Mapping):
            raise UserError(f"{where}: [{table}] must be a table")
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key in content:
            if key not in model.model_fields:
                raise UserError(f"{where}: unknown key {table}.{key}{_nearest(key, model.model_fields)}")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(known)}"
