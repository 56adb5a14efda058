"""Our training step as `flowtrain train` runs it, for `benchmarks/train.py`."""

import math
import os
import platform
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.sides import (
    BETA1,
    BETA2,
    CLASSES,
    EMA_DECAY,
    EPSILON,
    LABEL_DROP,
    RATE,
    SIZES,
    VAE_SCALE,
    Settings,
    Watch,
    check_inputs,
    make_batch,
)


class _Table(SimpleNamespace):
    """One is equal to itself alone, so that it may be the key of what is made once."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def plain_recipe(settings: Settings) -> Any:
    """What `flowtrain` reads of a recipe, at its defaults, without the validation that needs
    pydantic.
    """
    _, width, heads = SIZES[settings.size]
    model = _Table(
        depth=settings.depth,
        width=width,
        heads=heads,
        patch=settings.patch,
        mlp_ratio=4.0,
        dtype=settings.dtype,
        qk_norm=False,
        scan=settings.scan,
        remat=settings.remat,
        time_conditioning=True,
        time_direction="to_data",
        time_scale=1000.0,
        time_offset=0.0,
        time_integer=False,
        time_frequencies="half",
        output="velocity",
    )
    objective = _Table(
        kind="flow",
        time="logit_normal",
        logit_mean=0.0,
        logit_std=1.0,
        uniform_share=0.0,
        label_drop=LABEL_DROP,
    )
    optimizer = _Table(
        learning_rate=RATE,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPSILON,
        weight_decay=0.0,
        warmup_steps=0,
        schedule="constant",
        rsqrt_steps=70_000,
        clip_norm=None,
    )
    train = _Table(
        steps=1_000_000,
        accumulate=settings.accumulate,
        ema_decay=EMA_DECAY,
        ema_extra=(),
        ema_power=(),
    )
    return _Table(model=model, objective=objective, optimizer=optimizer, train=train)


class Ours:
    """The step of `flowtrain.step`, as `flowtrain train` runs it."""

    label = "flowtrain"

    def facts(self) -> dict[str, Any]:
        """Device and versions."""
        import jax

        device, found = jax.devices()[0], {}
        for name in ("jax", "flax", "optax", "torch"):
            with suppress(PackageNotFoundError):
                found[name] = version(name)
        name = device.device_kind
        if device.platform == "cpu":
            name = (
                f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} "
                "cores"
            )
        return {"platform": device.platform, "device": name, "versions": found}

    def check(self, settings: Settings, folder: str) -> dict[str, np.ndarray]:
        """Outputs in both dtypes for random weights, which are left in `folder` for the other
        side.
        """
        import jax

        from flowtrain.model import make_network, unstack_blocks

        inputs, outputs = check_inputs(settings), {}
        for dtype in ("float32", "bfloat16"):
            config = plain_recipe(replace(settings, dtype=dtype)).model
            network = make_network(config, settings.latent, CLASSES)
            params = _random_parameters(network.abstract)
            with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
                outputs[dtype] = np.asarray(jax.jit(network.predict)(params, *inputs))
        plain = unstack_blocks(params, config.depth) if settings.scan else params
        leaves = jax.tree_util.tree_leaves_with_path(plain)
        named = {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}
        np.savez(Path(folder, "parameters.npz"), **named)
        return outputs

    def prepare(self, settings: Settings) -> list[str]:
        """State and batch on the device; names of what can be built."""
        import jax

        from flowtrain.model import make_network
        from flowtrain.step import Setup, init_state

        self.recipe = plain_recipe(settings)
        channels = settings.latent[-1]
        self.setup = Setup(
            recipe=self.recipe,
            network=make_network(self.recipe.model, settings.latent, CLASSES),
            latent_shape=settings.latent,
            null_class=CLASSES,
            layout="moments",
            offset=(0.0,) * channels,
            scale=(VAE_SCALE,) * channels,
        )
        self.key = jax.random.key(0)
        self.state = jax.jit(partial(init_state, self.setup))(self.key)
        self.batch = jax.device_put(make_batch(settings))
        return [self.label]

    def build(self, name: str) -> dict[str, Any]:
        """Lower and compile, then a few steps that do not count."""
        from flowtrain.step import make_train_step

        begin = time.perf_counter()
        self.step = make_train_step(self.setup).lower(self.state, self.batch, self.key).compile()
        seconds = time.perf_counter() - begin
        self.time(name, 2)
        return {"compile_seconds": seconds}

    def time(self, name: str, steps: int) -> tuple[float, float]:
        """Seconds a step, dispatched one after another and waited for at the end; and those of all
        the CPU's cores.
        """
        import jax

        watch = Watch()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))
        seconds = watch.seconds(steps)
        if not np.isfinite(float(metrics["loss"])) or int(metrics["skipped"]):
            raise ValueError(f"the loss is {float(metrics['loss'])}")
        return seconds

    def ceiling(self) -> float:
        """FLOP/s of matrix products."""
        import jax

        from flowtrain.devices.ceiling import matmul_ceiling

        return matmul_ceiling(self.recipe.model.dtype, jax.devices()[:1])

    def memory(self, name: str) -> int:
        """Bytes at most so far, or where the device does not tell, those the compiler planned."""
        import jax

        statistic = jax.devices()[0].memory_stats()
        if statistic and "peak_bytes_in_use" in statistic:
            return statistic["peak_bytes_in_use"]
        plan = self.step.memory_analysis()
        resident = (
            plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        )
        return resident + plan.temp_size_in_bytes


def _random_parameters(abstract: Any) -> Any:
    """No weight at zero, as many are at initialisation: a wrong order of modulation terms would go
    unseen.
    """
    import jax

    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        fan_in = leaf.shape[-2] if len(leaf.shape) > 1 else leaf.shape[-1]
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(0.5 / math.sqrt(fan_in))

    return jax.tree.map(draw, abstract)
