"""Our DiT beside two in PyTorch with the same random weights: diffusers' class, and one in the
layout of DiT and SiT.

Errors are relative to the largest output. Each side rounds the frequencies of the time embedding at
another place, so that features differ by up to 6e-5 at time 1000, and outputs by a tenth of that;
otherwise it is float32 rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.model import make_network, stack_blocks, unstack_blocks
from schemas.config import ModelConfig
from tests.parity.torch_dit import (
    TorchDiT,
    arrays,
    from_diffusers,
    from_sit,
    random_diffusers_dit,
    randomise,
    torch,
)
from tests.parity.torch_vae import relative_error

pytestmark = pytest.mark.parity

DEPTH, HEADS, WIDTH, CLASSES, SHAPE = 3, 3, 24, 10, (8, 8, 4)
TIMESTEPS = np.array([0, 1, 37, 500, 998, 999])
LABELS = np.array([0, 9, CLASSES, 3, CLASSES, 5], np.int32)  # the null class among them
X = np.random.default_rng(0).standard_normal((6, *SHAPE)).astype(np.float32)
DDPM = {
    "time_direction": "to_noise",
    "time_scale": 1000.0,
    "time_offset": -1.0,
    "time_integer": True,
}


def theirs(call: Callable[[Any], Any]) -> np.ndarray:
    """What a PyTorch network makes of X, NHWC."""
    with torch.no_grad():
        return call(torch.from_numpy(X.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)


def ours(params: Any, t: np.ndarray, **config: Any) -> jax.Array:
    """What our network makes of X, with parameters as without `scan`."""
    table = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, **config}
    network = make_network(ModelConfig.model_validate(table), SHAPE, CLASSES)
    params = stack_blocks(params) if config.get("scan") else params
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, network.abstract)
    return jax.jit(network.predict)(params, X, jnp.asarray(t, jnp.float32), LABELS)


def report(**errors: Any) -> None:
    print(errors)  # noqa: T201 (shown with `pytest -s`, and when the test fails)


def check(found: dict[str, jax.Array], expected: np.ndarray, time: np.ndarray) -> None:
    """1e-6, and what rounded frequencies add at the network's time (n,)."""
    for name, values in found.items():
        errors = np.abs(np.asarray(values) - expected).max(axis=(1, 2, 3)) / np.abs(expected).max()
        report(**{name: errors})
        assert (errors < 1e-6 + 2e-8 * np.abs(time)).all()


@pytest.mark.parametrize("patch", [2, 4])
def test_diffusers(patch: int) -> None:
    """Whole timesteps, frequencies by half - 1, one embedder for all blocks, last rows in order p,
    p, c.
    """
    model = random_diffusers_dit(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        num_layers=DEPTH,
        sample_size=SHAPE[0],
        patch_size=patch,
        in_channels=SHAPE[2],
        num_embeds_ada_norm=CLASSES,
    )
    expected = theirs(
        lambda x: model(x, torch.from_numpy(TIMESTEPS), torch.from_numpy(LABELS)).sample
    )
    params, t = from_diffusers(arrays(model.state_dict()), DEPTH), 1 - (TIMESTEPS + 1) / 1000
    convention = {"patch": patch, "time_frequencies": "half_minus_one", **DDPM}
    found = {
        "scanned" if scan else "unrolled": ours(params, t, **convention, scan=scan)
        for scan in (False, True)
    }
    check(found, expected, TIMESTEPS)
    other = relative_error(ours(params, t, **convention | {"time_frequencies": "half"}), expected)
    report(other_frequencies=other)
    assert other > 1e-2


def random_sit(patch: int, mlp_ratio: float = 4.0) -> Any:
    side, _, channels = SHAPE
    return randomise(
        TorchDiT(side, patch, channels, WIDTH, DEPTH, HEADS, mlp_ratio, CLASSES), seed=1
    )


# The time that each system hands to the network at our t, and how our config says so.
CONVENTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = {
    "sit": (lambda t: t, {"time_scale": 1.0}),
    "dit": (lambda t: np.rint(1000 * (1 - t) - 1), DDPM),
    "flow_1000": (lambda t: 1000 * t, {}),
    "to_noise": (lambda t: 1 - t, {"time_scale": 1.0, "time_direction": "to_noise"}),
}


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_layout_of_dit_and_sit(name: str, patch: int) -> None:
    """Frequencies by half; time as each system has it."""
    model, (their_time, convention) = random_sit(patch), CONVENTIONS[name]
    t = 1 - (TIMESTEPS + 1) / 1000
    time = their_time(t).astype(np.float32)
    expected = theirs(lambda x: model(x, torch.from_numpy(time), torch.from_numpy(LABELS)))
    params = from_sit(arrays(model.state_dict()), DEPTH)
    check({name: ours(params, t, patch=patch, scan=name == "sit", **convention)}, expected, time)


def test_gradients_of_every_parameter() -> None:
    """Those of torch's autograd, through the same transpositions; ours scanned and
    rematerialised.
    """
    model = random_sit(patch=2, mlp_ratio=3.0)
    weight = np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)
    t = np.linspace(0, 1, len(X), dtype=np.float32)
    out = model(
        torch.from_numpy(X.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(t),
        torch.from_numpy(LABELS),
    )
    (out * torch.from_numpy(weight.transpose(0, 3, 1, 2).copy())).sum().backward()
    expected = from_sit(arrays({name: each.grad for name, each in model.named_parameters()}), DEPTH)

    table = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "mlp_ratio": 3.0, "time_scale": 1.0}
    config = ModelConfig.model_validate({**table, "scan": True, "remat": True})
    network = make_network(config, SHAPE, CLASSES)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(weight * network.predict(params, *map(jnp.asarray, (X, t, LABELS))))

    params = stack_blocks(from_sit(arrays(model.state_dict()), DEPTH))
    found = unstack_blocks(jax.jit(jax.grad(loss))(params), DEPTH)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    errors = jax.tree.map(lambda a, b: relative_error(a, np.asarray(b)), found, expected)
    report(worst=max(jax.tree.leaves(errors)))
    assert max(jax.tree.leaves(errors)) < 1e-5
