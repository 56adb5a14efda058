"""`train --replay STEP`: the records of a step, with every number drawn for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowtrain.flow.objective import draw
from flowtrain.plan import Plan
from flowtrain.records.data import BatchReader
from flowtrain.records.reader import LatentReader
from flowtrain.state.rollback import batch_of, read_rollbacks
from schemas.errors import UserError


def replay(plan: Plan, workdir: Path, step: int) -> Iterator[dict[str, Any]]:
    """One dictionary a record of `step`, in order of the batch.

    `row` in the batch, `key` and `index` in the dataset, `epoch`, `mirrored`, `label` and its
    `name`, `dropped` (whether the network saw the null class), `t`.

    Raises:
        UserError: no such step in the recipe.
    """
    recipe = plan.recipe.train
    if not 1 <= step <= recipe.steps:
        raise UserError(f"--replay {step}: the run has steps 1 to {recipe.steps}")
    reader = BatchReader(
        plan.reader,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        flip=recipe.flip,
        selection=plan.selection,
        on_corrupt=recipe.on_corrupt,
    )
    number = batch_of(step, read_rollbacks(workdir))
    batch = reader(number)
    mirrored = reader.mirrored(batch["epoch"].astype(np.int64), batch["index"].astype(np.int64))
    null = len(plan.run.classes)
    on_device = {name: jnp.asarray(batch[name]) for name in ("epoch", "index", "label")}
    draws = draw(
        jax.random.key(recipe.seed), on_device, plan.run.latent_shape, plan.recipe.objective, null
    )
    time, seen = np.asarray(draws.time), np.asarray(draws.label)
    keys = [record.key for record in LatentReader(plan.reader.directory).read(batch["index"])]
    for row in range(recipe.batch_size):
        label = int(batch["label"][row])
        yield {
            "row": row,
            "key": keys[row],
            "index": int(batch["index"][row]),
            "epoch": int(batch["epoch"][row]),
            "mirrored": bool(mirrored[row]),
            "label": label,
            "name": plan.run.classes[label],
            "dropped": bool(seen[row] == null),
            "t": float(time[row]),
        }
