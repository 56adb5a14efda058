"""Meshes of eight fake devices, and where the arrays of a run lie on them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from flowtrain.devices.sharding import (
    batch_sharding,
    check_batch,
    constrain_batch,
    make_mesh,
    replicated,
    state_shardings,
)
from flowtrain.model import make_network
from schemas.errors import UserError
from schemas.recipes import make_recipe


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8))])
def test_a_batch_is_cut_over_both_axes_in_the_order_of_the_devices(
    fsdp: int, shape: tuple[int, int]
):
    mesh = make_mesh(fsdp=fsdp)
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "fsdp"), shape)
    batch = jax.device_put(jnp.arange(16.0), batch_sharding(mesh))
    assert [(s.device, s.data.tolist()) for s in batch.addressable_shards] == [
        (device, [2 * i, 2 * i + 1]) for i, device in enumerate(jax.devices())
    ]
    params = jax.device_put(jnp.arange(16.0), replicated(mesh))
    assert [shard.data.shape for shard in params.addressable_shards] == [(16,)] * 8


def test_some_devices_or_one():
    assert make_mesh(jax.devices()[2:5], 3).devices.tolist() == [jax.devices()[2:5]]
    assert make_mesh(jax.devices()[:1]).devices.shape == (1, 1)


@pytest.mark.parametrize("fsdp", [0, -2, 3, 16])
def test_devices_that_cannot_be_cut_so(fsdp: int):
    with pytest.raises(
        UserError,
        match=(
            rf"--fsdp {fsdp}: the number of devices, 8, is not divisible by it; use one of 1, 2, "
            r"4, 8$"
        ),
    ):
        make_mesh(fsdp=fsdp)


def test_a_batch_that_cannot_be_cut_is_refused():
    mesh = make_mesh()
    check_batch(mesh, 16)
    check_batch(mesh, 16, accumulate=2)
    for size, accumulate, told in (
        (12, 1, r"12 is not divisible by 8 devices; try --set train.batch_size=16$"),
        (3, 1, r"3 is not divisible by 8 devices; try --set train.batch_size=8$"),
        (
            72,
            2,
            r"72 is not divisible by 8 devices x 2 parts \(train.accumulate\); try --set "
            r"train.batch_size=64$",
        ),
    ):
        with pytest.raises(UserError, match=told):
            check_batch(mesh, size, accumulate)


def test_activations_are_kept_as_the_batch_is():
    mesh = make_mesh(fsdp=2)
    out = jax.jit(constrain_batch(mesh), in_shardings=replicated(mesh))(jnp.zeros((16, 3)))
    assert out.sharding.is_equivalent_to(batch_sharding(mesh), 2)


# Of one block of width 32, hidden width 128: axis that is cut over fsdp, by name and shape.
LONGEST = {
    ("attention_out", (32, 32)): 1,
    ("mlp_in", (32, 128)): 1,
    ("mlp_out", (128, 32)): 0,
    ("modulation", (32, 192)): 1,
    ("qkv", (32, 96)): 1,
}


def _specs(mesh: Any, scan: bool) -> tuple[Any, Any]:
    """Abstract state and specs of parameters, an average and Adam's moments; no array is made."""
    model = make_recipe(
        {"model": {"size": "debug", "scan": scan}, "train": {"steps": 1, "batch_size": 1}}
    ).model
    params = make_network(model, (4, 4, 4), 3).abstract
    opt = jax.eval_shape(optax.chain(optax.clip(1.0), optax.scale_by_adam()).init, params)
    abstract = {"params": params, "ema": {"ema": params}, "opt": opt}
    return abstract, jax.tree.map(lambda sharding: sharding.spec, state_shardings(mesh, abstract))


@pytest.mark.parametrize("scan", [False, True])
def test_blocks_are_cut_along_their_longest_axis_and_all_else_is_copied(scan: bool):
    abstract, specs = _specs(make_mesh(fsdp=4), scan)
    opt = specs["opt"][1]
    assert opt.count == P()
    for tree in (specs["ema"]["ema"], opt.mu, opt.nu):
        assert tree == specs["params"]
    outside = {name: tree for name, tree in specs["params"].items() if name != "blocks"}
    assert set(jax.tree.leaves(outside)) == {P()}
    assert {"label_embed", "patch_embed", "time_in", "time_out", "final"} <= set(outside)

    stack = (None,) if scan else ()
    blocks = specs["params"]["blocks"]
    for block in [blocks] if scan else [blocks[0], blocks[1]]:
        assert set(block) == {name for name, _ in LONGEST}
        for (name, shape), axis in LONGEST.items():
            assert block[name]["kernel"] == P(
                *stack, *("fsdp" if i == axis else None for i in range(2))
            ), (name, shape)
            assert block[name]["bias"] == P()
    kernels = abstract["params"]["blocks"] if scan else abstract["params"]["blocks"][0]
    assert {(name, leaf["kernel"].shape[-2:]) for name, leaf in kernels.items()} == set(LONGEST)


def test_what_cannot_be_cut_evenly_is_cut_along_another_axis_or_copied():
    mesh = make_mesh(jax.devices()[:3], 3)
    shapes = {0: (4, 6), 1: (6, 7), 2: (4, 5), 3: (6, 6), 4: (6,), 5: (3, 3, 9)}
    tree = {
        "blocks": {
            name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
            for name, shape in shapes.items()
        }
    }
    got = [leaf["kernel"].spec for leaf in state_shardings(mesh, tree)["blocks"].values()]
    assert got == [
        P(None, "fsdp"),
        P("fsdp", None),
        P(),
        P(None, "fsdp"),
        P(),
        P(None, None, "fsdp"),
    ]
    stacked = {
        "blocks": {
            "kernel": jax.ShapeDtypeStruct((9, 3, 4), jnp.float32),
            "q_scale": tree["blocks"][3]["kernel"],
        }
    }
    assert [leaf.spec for leaf in jax.tree.leaves(state_shardings(mesh, stacked))] == [
        P(None, "fsdp", None),
        P(),
    ]


def test_without_fsdp_everything_is_copied():
    _, specs = _specs(make_mesh(), False)
    assert set(jax.tree.leaves(specs)) == {P()}
