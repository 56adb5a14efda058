import jax
import jax.numpy as jnp
import pytest

from flowtrain.sharding import batch_sharding, data_mesh, replicated
from schemas.errors import UserError


def test_a_batch_is_cut_and_parameters_are_copied():
    mesh = data_mesh(16)
    batch = jax.device_put(jnp.arange(16.0), batch_sharding(mesh))
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2,)] * 8
    params = jax.device_put(jnp.arange(16.0), replicated(mesh))
    assert [shard.data.shape for shard in params.addressable_shards] == [(16,)] * 8


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(UserError, match=r"12 is not divisible by 8 devices; try --set train.batch_size=16"):
        data_mesh(12)
