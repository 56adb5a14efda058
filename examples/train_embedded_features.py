"""Trains the embedded feature network: one classifier of digits and, when given, the classes of
another image set.

    python examples/train_embedded_features.py OUT --images cifar10_train.tar --title CIFAR-10

Writes the moving average of the weights, with a card of what was measured.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from labelled_images import ImageSet, described, image_sets, typed_command

from evaluation.extractors.embedded import (
    WEIGHTS_FILE,
    FeatureConfig,
    FeatureNetwork,
    load_embedded,
    prepare,
    save_embedded,
)

LABEL_SMOOTHING = 0.05
EMA_DECAY = 0.998
# Largest turn (radians), change of scale, shift (pixels), change of width and slant, by
# `ImageSet.mirrored`.
DISTORTIONS = {False: (0.25, 0.15, 2.5, 0.15, 0.25), True: (0.1, 0.1, 3.0, 0.0, 0.0)}


def distort(key: jax.Array, images: jax.Array, mirrored: bool) -> jax.Array:
    """Random affine map of every image, sampled bilinearly, and for mirrored sets a mirror image
    half the time.

    Args:
        key: randomness.
        images: (n, h, w, 3) float32.
        mirrored: whether mirroring leaves the class as it is.
    """
    turn, grow, move, stretch, lean = DISTORTIONS[mirrored]
    n, h, w, _ = images.shape
    keys = jax.random.split(key, 6)

    def within(key: jax.Array, limit: float, *shape: int) -> jax.Array:
        return jax.random.uniform(key, (n, *shape), minval=-limit, maxval=limit)

    angle, scale, shift = within(keys[0], turn), 1 + within(keys[1], grow), within(keys[2], move, 2)
    side = jnp.where(jax.random.bernoulli(keys[3], 0.5 if mirrored else 0.0, (n,)), -1.0, 1.0)
    cos, sin, wider = jnp.cos(angle) / scale, jnp.sin(angle) / scale, 1 + within(keys[4], stretch)
    across = (sin + within(keys[5], lean)) * side
    matrix = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([across, cos * wider * side], -1)], 1)
    centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1) - centre
    where = jnp.einsum("nij,hwj->nihw", matrix, grid) + (centre + shift)[:, :, None, None]

    def sample(plane: jax.Array, at: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(plane, [at[0], at[1]], order=1, mode="nearest")

    over_channels = jax.vmap(sample, in_axes=(2, None), out_axes=2)
    return jax.vmap(over_channels)(images, where)


def train(
    config: FeatureConfig,
    sets: Sequence[ImageSet],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> FeatureNetwork:
    """Train from scratch; every set contributes the same number of images to a batch."""
    graphdef, params = nnx.split(FeatureNetwork(config, rngs=nnx.Rngs(seed)), nnx.Param)
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, min(100, steps // 10), steps)
    optimizer = optax.adamw(rate, weight_decay=0.01)
    share = batch_size // len(sets)
    offsets = np.cumsum([0] + [len(part.names) for part in sets])

    def objective(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        _, logits = nnx.merge(graphdef, params)(x)
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, len(config.class_names)), LABEL_SMOOTHING
        )
        return optax.softmax_cross_entropy(logits, targets).mean()

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, ema: Any, state: Any, data: list[Any], index: jax.Array) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), (len(sets), 2))
        images, labels = [], []
        for key, (pixels, classes), offset, part in zip(keys, data, offsets, sets, strict=False):
            pick = jax.random.randint(key[0], (share,), 0, len(pixels))
            images.append(distort(key[1], prepare(pixels[pick]), part.mirrored))
            labels.append(classes[pick] + int(offset))
        loss, gradient = jax.value_and_grad(objective)(
            params, jnp.concatenate(images), jnp.concatenate(labels)
        )
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(EMA_DECAY, (1 + index) / (10 + index))
        return (
            params,
            jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params),
            state,
            loss,
        )

    ema, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    data = [
        (jnp.asarray(pixels), jnp.asarray(classes, jnp.int32))
        for pixels, classes in (p.train for p in sets)
    ]
    start = time.perf_counter()
    for index in range(steps):
        params, ema, state, loss = step(params, ema, state, data, jnp.asarray(index))
        if (index + 1) % 100 == 0:
            speed = (index + 1) / (time.perf_counter() - start)
            click.echo(f"step {index + 1}/{steps}  loss {loss:.4f}  {speed:.2f} steps/s")
    return nnx.merge(graphdef, ema)


def measure(out: Path, sets: Sequence[ImageSet]) -> list[str]:
    """Rows of the card's table: accuracy of the written network, with the largest of all logits."""
    extractor, offset, rows = load_embedded(out), 0, []
    for part in sets:
        for split, (images, labels) in (("held out", part.held_out), ("trained on", part.train)):
            if not len(images):
                continue
            every = max(1, len(images) // 5000)
            images, labels = images[::every], labels[::every]
            logits = extractor(images).logits
            right = (logits.argmax(axis=1) == labels + offset).mean()
            rows.append(f"| {part.title}, {split} | {len(images)} | {100 * right:.2f} |")
        offset += len(part.names)
    return rows


CARD = """\
# Embedded feature network

A classifier of {classes} classes on 32x32 images; its {dim} features, the mean over positions after
the last stage, are what FD(embedded) is measured on. That is no FID. {parameters:,} parameters,
{size:.2f} MB; widths {widths}.

## Measured

Accuracy in percent; the largest of all {classes} logits has to be right.

| images | count | accuracy |
| --- | --- | --- |
{rows}

## Trained

On {data}.

{steps:,} steps of {batch} images, equally many of each set, AdamW, peak rate {rate}, label
smoothing {smoothing}, averaged weights (decay {decay}), seed {seed}, images turned, scaled and
moved a little; {cpu:.0f} CPU seconds ({wall:.0f} s).

    {command}

Licence of the weights: Apache-2.0, as this repository.
"""


def card(out: Path, config: FeatureConfig, **measured: Any) -> str:
    """Text of the card, from what was measured."""
    abstract = nnx.eval_shape(lambda: FeatureNetwork(config, rngs=nnx.Rngs(0)))
    return CARD.format(
        classes=len(config.class_names),
        dim=config.widths[-1],
        widths=list(config.widths),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param))),
        size=(out / WEIGHTS_FILE).stat().st_size / 1e6,
        smoothing=LABEL_SMOOTHING,
        decay=EMA_DECAY,
        command=typed_command(),
        **measured,
    )


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True), help="Folder or tar of class folders."
)
@click.option("--title", default="images", help="Name of --images in the card.")
@click.option("--note", default="", help="What --images is and its licence, for the card.")
@click.option("--steps", default=5000)
@click.option("--batch-size", default=64)
@click.option("--learning-rate", default=3e-3)
@click.option("--seed", default=0)
def main(
    out: Path,
    images: Path | None,
    title: str,
    note: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train the embedded feature network and write it to OUT; without --images on the digits
    alone.
    """
    start = time.perf_counter(), time.process_time()
    sets = image_sets(images, title)
    config = FeatureConfig(class_names=tuple(name for part in sets for name in part.names))
    save_embedded(train(config, sets, steps, batch_size, learning_rate, seed), config, out)
    rows = measure(out, sets)
    text = card(
        out,
        config,
        rows="\n".join(rows),
        data=described(images, title, note),
        steps=steps,
        batch=batch_size,
        rate=learning_rate,
        seed=seed,
        cpu=time.process_time() - start[1],
        wall=time.perf_counter() - start[0],
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    click.echo("\n".join(rows))


if __name__ == "__main__":
    main()
