"""Trains the embedded VAE: AutoencoderKL, factor 4, four latent channels, on digits and any other
images.

    python examples/train_embedded_vae.py OUT --images cifar10_train.tar --title CIFAR-10

Loss: the root mean square error of each image plus a KL term. The square root stands between the
squared error, which would be spent on the colour images, and its logarithm (PSNR), which would be
spent on the digits. Writes the moving average of the weights in diffusers' format, with a card of
what was measured.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

from pipelines.encoders.kl import AutoencoderKL, VaeConfig
from pipelines.encoders.weights import WEIGHTS_FILE, save_vae

EVAL_BATCH = 250
MAX_SHIFT = 2  # pixels by which digits are moved; their margin is wider


@dataclass(frozen=True)
class Plan:
    """How long and with what weights the network is trained."""

    steps: int
    batch_size: int
    learning_rate: float
    kl_weight: float
    ema_decay: float
    seed: int


def to_signed(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def draw(key: jax.Array, images: jax.Array, count: int, mirrored: bool) -> jax.Array:
    """`count` images at random, half of them mirrored, or else moved by up to two pixels."""
    pick, change = jax.random.split(key)
    batch = images[jax.random.randint(pick, (count,), 0, len(images))]
    if mirrored:
        flip = jax.random.bernoulli(change, 0.5, (count, 1, 1, 1))
        return jnp.where(flip, batch[:, :, ::-1], batch)
    shifts = jax.random.randint(change, (count, 2), -MAX_SHIFT, MAX_SHIFT + 1)
    return jax.vmap(lambda image, shift: jnp.roll(image, shift, axis=(0, 1)))(batch, shifts)


def loss_terms(model: AutoencoderKL, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean over images of the root mean square error, and KL divergence to N(0, 1) per latent
    value, in nats.
    """
    mean, logvar = model.encode(x)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    squared = jnp.square(model.decode(z) - x).mean(axis=(1, 2, 3))
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    return jnp.sqrt(squared + 1e-6).mean(), kl


def make_step(
    graphdef: Any, optimizer: optax.GradientTransformation, sets: Sequence[ImageSet], plan: Plan
) -> Callable[..., Any]:
    """One compiled update: every set contributes the same number of images to a batch."""
    share = plan.batch_size // len(sets)

    def objective(
        params: Any, x: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        error, kl = loss_terms(nnx.merge(graphdef, params), x, key)
        return error + plan.kl_weight * kl, (error, kl)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, ema: Any, state: Any, data: list[jax.Array], index: jax.Array) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(plan.seed), index), len(sets) + 1)
        drawn = [
            draw(key, images, share, part.mirrored)
            for key, images, part in zip(keys, data, sets, strict=False)
        ]
        x = to_signed(jnp.concatenate(drawn))
        (_, terms), gradient = jax.value_and_grad(objective, has_aux=True)(params, x, keys[-1])
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(plan.ema_decay, (1 + index) / (10 + index))
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)
        return params, ema, state, terms

    return step


@partial(jax.jit, static_argnums=0)
def evaluate_batch(
    graphdef: Any, params: Any, images: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """PSNR of each image (dB, range 2, clipped to [-1, 1]) through mean and through a sample, and
    the latents.
    """
    model = nnx.merge(graphdef, params)
    x = to_signed(images)
    mean, logvar = model.encode(x)
    sample = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)

    def psnr(z: jax.Array) -> jax.Array:
        squared = jnp.square(jnp.clip(model.decode(z), -1, 1) - x).mean(axis=(1, 2, 3))
        return 10 * jnp.log10(4 / jnp.maximum(squared, 1e-12))

    return {
        "psnr": psnr(mean),
        "psnr_sample": psnr(sample),
        "latent": sample,
        "noise": jnp.exp(0.5 * logvar),
    }


def evaluate(
    graphdef: Any, params: Any, images: np.ndarray, limit: int | None = None
) -> dict[str, np.ndarray]:
    """`evaluate_batch` over images, or `limit` of them evenly spread; at least one."""
    if limit is not None:
        images = images[:: max(1, len(images) // limit)][:limit]
    parts = []
    for start in range(0, len(images), EVAL_BATCH):
        batch = images[start : start + EVAL_BATCH]
        padded = np.pad(batch, ((0, EVAL_BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        found = jax.device_get(evaluate_batch(graphdef, params, padded, jax.random.key(start)))
        parts.append({key: value[: len(batch)] for key, value in found.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def latent_std(graphdef: Any, params: Any, sets: Sequence[ImageSet]) -> float:
    """Standard deviation of latents over equally many training images of every set."""
    latents = [evaluate(graphdef, params, part.train[0], limit=4000)["latent"] for part in sets]
    count = min(len(part) for part in latents)
    return float(np.concatenate([part[:count] for part in latents]).std(dtype=np.float64))


def save(
    out: Path, config: VaeConfig, graphdef: Any, params: Any, sets: Sequence[ImageSet]
) -> VaeConfig:
    """Write the weights with the scaling factor that belongs to them."""
    config = replace(config, scaling_factor=round(1 / latent_std(graphdef, params, sets), 5))
    save_vae(nnx.merge(graphdef, params), config, out)
    return config


def train(
    config: VaeConfig, sets: Sequence[ImageSet], plan: Plan, checkpoints: Path | None
) -> tuple[Any, Any]:
    """Train from scratch and return the structure and the averaged parameters."""
    graphdef, params = nnx.split(AutoencoderKL(config, rngs=nnx.Rngs(plan.seed)), nnx.Param)
    rate = optax.warmup_cosine_decay_schedule(
        0,
        plan.learning_rate,
        min(200, plan.steps // 10),
        plan.steps,
        end_value=plan.learning_rate / 100,
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))
    state, ema = optimizer.init(params), jax.tree.map(jnp.copy, params)
    step, data = (
        make_step(graphdef, optimizer, sets, plan),
        [jnp.asarray(part.train[0]) for part in sets],
    )
    start = time.perf_counter()
    for index in range(plan.steps):
        params, ema, state, (error, kl) = step(params, ema, state, data, jnp.asarray(index))
        if (index + 1) % 100 == 0:
            speed = (index + 1) / (time.perf_counter() - start)
            click.echo(
                f"step {index + 1}/{plan.steps}  rmse {error:.4f}  kl {kl:.3f}  {speed:.2f} steps/s"
            )
        if (index + 1) % 1000 == 0:
            for part in sets:
                if len(part.held_out[0]):
                    found = evaluate(graphdef, ema, part.held_out[0], limit=500)
                    levels = (
                        f"{found['psnr'].mean():.2f} dB, {found['psnr_sample'].mean():.2f} dB "
                        "through a sample"
                    )
                    click.echo(f"held-out {part.title} after {index + 1} steps: {levels}")
            if checkpoints is not None:
                save(checkpoints, config, graphdef, ema, sets)
    return graphdef, ema


def measure(graphdef: Any, params: Any, sets: Sequence[ImageSet]) -> list[str]:
    """Rows of the card's table."""
    rows = []
    for part in sets:
        for split, (images, _) in (("held out", part.held_out), ("trained on", part.train)):
            if not len(images):
                continue
            found = evaluate(graphdef, params, images, limit=5000)
            rows.append(
                f"| {part.title}, {split} | {len(found['psnr'])} | {found['psnr'].mean():.2f} | "
                f"{found['psnr_sample'].mean():.2f} | {found['latent'].std():.3f} | "
                f"{found['noise'].mean():.3f} |"
            )
    return rows


CARD = """\
# Embedded VAE

AutoencoderKL of latent diffusion in diffusers' format (`diffusers.AutoencoderKL.from_pretrained`
reads it too): factor {factor}, {latent} latent channels, widths {widths}, {parameters:,}
parameters, {size:.2f} MB. For 32x32 digits, and so that colour images pass without a download; for
anything that matters on natural images take a large VAE.

## Measured

PSNR in dB, mean over images of each image's PSNR, in [-1, 1] (range 2), reconstruction clipped to
[-1, 1]; through the posterior mean and through one posterior sample. Then the standard deviation of
the raw latents, and the mean of the posterior's own.

| images | count | PSNR, mean | PSNR, sample | latent std | posterior std |
| --- | --- | --- | --- | --- | --- |
{rows}

`scaling_factor` {scaling} is 1 / standard deviation of the latents over equally many training
images of each set.

## Trained

On {data}.

{steps:,} steps of {batch} images, equally many of each set, Adam, peak rate {rate}, KL weight {kl},
averaged weights (decay {decay}), seed {seed}; {cpu:.0f} CPU seconds ({wall:.0f} s). Digits are
moved by up to {shift} pixels, other images mirrored half the time.

    {command}

Licence of the weights: Apache-2.0, as this repository.
"""


def write_card(
    out: Path, config: VaeConfig, plan: Plan, rows: list[str], data: str, spent: tuple[float, float]
) -> None:
    """Write README.md beside the weights, from what was measured."""
    weights = out / WEIGHTS_FILE
    _, params = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0))))
    text = CARD.format(
        factor=config.factor,
        latent=config.latent_channels,
        widths=list(config.block_out_channels),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        size=weights.stat().st_size / 1e6,
        rows="\n".join(rows),
        scaling=config.scaling_factor,
        data=data,
        steps=plan.steps,
        batch=plan.batch_size,
        rate=plan.learning_rate,
        kl=plan.kl_weight,
        decay=plan.ema_decay,
        seed=plan.seed,
        cpu=spent[0],
        wall=spent[1],
        shift=MAX_SHIFT,
        command=typed_command(),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True), help="Folder or tar of class folders."
)
@click.option("--title", default="images", help="Name of --images in the card.")
@click.option("--note", default="", help="What --images is and its licence, for the card.")
@click.option("--channels", default="8,24,64", help="Width of each block, three for factor 4.")
@click.option("--groups", default=8, help="Groups of the normalisation.")
@click.option("--steps", default=5000)
@click.option("--batch-size", default=16)
@click.option("--learning-rate", default=1.5e-3)
@click.option("--kl-weight", default=1e-3)
@click.option("--ema-decay", default=0.999)
@click.option("--seed", default=0)
@click.option(
    "--checkpoints", type=click.Path(path_type=Path), help="Keep the weights here every 1000 steps."
)
def main(
    out: Path,
    images: Path | None,
    title: str,
    note: str,
    channels: str,
    groups: int,
    checkpoints: Path | None,
    **plan: Any,
) -> None:
    """Train the embedded VAE and write it to OUT; without --images on the digits alone."""
    start = time.perf_counter(), time.process_time()
    sets = image_sets(images, title)
    config = VaeConfig.from_dict(
        {
            "block_out_channels": [int(width) for width in channels.split(",")],
            "norm_num_groups": groups,
            "mid_block_add_attention": False,
        }
    )
    settings = Plan(**plan)
    graphdef, params = train(config, sets, settings, checkpoints)
    config = save(out, config, graphdef, params, sets)
    rows = measure(graphdef, params, sets)
    spent = time.process_time() - start[1], time.perf_counter() - start[0]
    write_card(out, config, settings, rows, described(images, title, note), spent)
    click.echo("\n".join(rows))


if __name__ == "__main__":
    main()
