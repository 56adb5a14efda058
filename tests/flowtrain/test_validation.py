"""The validation loss against one computed record by record."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.devices.sharding import constrain_batch, make_mesh
from flowtrain.flow.objective import draw, make_objective, record_losses
from flowtrain.records.counter import Purpose
from flowtrain.records.data import BatchReader
from flowtrain.records.latents import model_latents
from flowtrain.records.order import Selection, holdout_records
from flowtrain.step import init_state
from flowtrain.validation import Validation
from schemas.errors import UserError
from tests.flowtrain.damage import flip_byte
from tests.flowtrain.datasets import write_dataset
from tests.flowtrain.runs import debug_plan

RECORDS, HELD = 20, 7


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "latents"
    write_dataset(path, records=RECORDS, flips=True)
    return path


def test_it_is_the_mean_over_exactly_the_held_out_records(latents: Path):
    plan = debug_plan(latents, f"train.holdout={HELD}")
    train, held = holdout_records(RECORDS, HELD)
    assert sorted([*train, *held]) == list(range(RECORDS))
    key, setup = jax.random.key(0), plan.setup()
    params = jax.jit(lambda k: init_state(setup, k))(key).params
    # a network that starts at zero would hide much
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)

    whole = Selection(held)
    reader = BatchReader(plan.reader, batch_size=HELD, seed=0, flip="never", selection=whole)
    read = {**reader(0), "epoch": np.zeros(HELD, np.int32)}
    batch = {name: jnp.asarray(value) for name, value in read.items()}
    inner = jax.random.fold_in(key, Purpose.VALIDATION)
    data = model_latents(inner, batch, setup.layout, setup.offset, setup.scale)
    objective = plan.recipe.objective.model_copy(update={"label_drop": 0.0})
    draws = draw(inner, batch, setup.latent_shape, objective, setup.null_class)
    np.testing.assert_array_equal(draws.label, batch["label"])
    losses = record_losses(
        plan.network.predict, params, data, draws, make_objective(objective).path, "velocity"
    )

    mesh = make_mesh(jax.local_devices()[:1])
    alone = Validation(setup, plan.reader, held, 4, mesh)(params, key)  # batches of 4 and 3
    assert alone["loss"] == pytest.approx(float(jnp.mean(losses)), rel=1e-5)
    tenth = int(np.floor(float(draws.time[0]) * 10))
    same = np.floor(np.asarray(draws.time) * 10) == tenth
    assert alone[f"loss_t0.{tenth}"] == pytest.approx(
        float(np.mean(np.asarray(losses)[same])), rel=1e-5
    )

    many = make_mesh(jax.local_devices())
    spread = Validation(plan.setup(constrain_batch(many)), plan.reader, held, 4, many)(params, key)
    assert spread["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert Validation(setup, plan.reader, held, 4, mesh)(params, key) == alone


def test_damaged_records_are_left_out_where_that_is_asked_for(tmp_path: Path):
    write_dataset(tmp_path, records=RECORDS)
    _, held = holdout_records(RECORDS, HELD)
    mesh, key = make_mesh(jax.local_devices()[:1]), jax.random.key(0)
    plan = debug_plan(tmp_path, "train.on_corrupt=skip")
    setup = plan.setup()
    params = jax.jit(lambda k: init_state(setup, k))(key).params
    without = Validation(setup, plan.reader, held[1:], 4, mesh)(params, key)
    flip_byte(tmp_path, int(held[0]))
    damaged = debug_plan(tmp_path, "train.on_corrupt=skip")
    found = Validation(damaged.setup(), damaged.reader, held, 4, mesh)(params, key)
    assert found["loss"] == pytest.approx(without["loss"], rel=1e-6)
    stops = debug_plan(tmp_path)
    with pytest.raises(UserError, match=f"record {held[0]} .* is damaged"):
        Validation(stops.setup(), stops.reader, held, 4, mesh)(params, key)
    for index in held[1:4]:
        flip_byte(tmp_path, int(index))
    nothing_left = debug_plan(tmp_path, "train.on_corrupt=skip")
    with pytest.raises(UserError, match=f"record {held[0]} .* is damaged"):
        Validation(setup, nothing_left.reader, held, 4, mesh)(params, key)
