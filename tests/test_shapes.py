"""The checks of shapes, promotion and ranks are on while tests run."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.dtypes import TypePromotionError
from jaxtyping import Float32, TypeCheckError, jaxtyped

from evaluation.metrics.frechet import factor
from flowtrain.flow.path import LinearPath
from flowtrain.model import time_features
from pipelines.images import adm_crop
from schemas.config import ModelConfig
from tests.shapes import checked


def test_another_shape_is_refused():
    x, t = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2)
    with pytest.raises(TypeCheckError, match="parameter 'data'"):
        LinearPath().interpolate(x, jnp.zeros((3, 4, 4, 3)), t)


def test_another_dtype_is_refused():
    with pytest.raises(TypeCheckError, match="parameter 'image'"):
        adm_crop(np.zeros((8, 8, 3), np.float32), 4)  # pyright: ignore[reportArgumentType]


def test_arguments_agree_with_each_other():
    with pytest.raises(TypeCheckError, match="parameter 'sigma'"):
        factor(np.zeros((3, 2)))


def test_a_result_is_checked_against_arguments():
    @jaxtyped(typechecker=checked)
    def doubled(x: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " 2*n"]:
        return np.repeat(x, 3)

    with pytest.raises(TypeCheckError, match="return value"):
        doubled(np.zeros(2, np.float32))


def test_modules_whose_configs_only_type_checkers_import_are_checked():
    with pytest.raises(TypeCheckError, match="parameter 't'"):
        time_features(jnp.zeros((2, 1)), ModelConfig(depth=1, width=8, heads=2, patch=2))


def test_dtypes_are_not_promoted():
    with pytest.raises(TypePromotionError):
        _ = jnp.ones(2, jnp.int32) + jnp.ones(2, jnp.float32)


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank"):
        _ = jnp.ones(2) + jnp.ones((2, 2))
