import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.encoders import encode, weights
from pipelines.encoders.describe import describe_vae
from pipelines.encoders.encode import VaeEncoder, load_encoder, part_size
from pipelines.encoders.kl import AutoencoderKL
from pipelines.encoders.weight_files import CONFIG_FILE
from pipelines.encoders.weights import load_vae
from schemas.errors import UserError
from schemas.manifest import VaeInfo
from schemas.pixels import from_uint8


def info(vae: Path, dtype: str = "float32") -> VaeInfo:
    described = describe_vae(str(vae), None, dtype)
    assert described is not None
    return described


def test_moments_are_those_of_the_vae_in_float16(tiny_vae: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    encoder = VaeEncoder(info(tiny_vae))
    tensors = encoder.start(pixels)()
    for ours, theirs in zip(
        (tensors["mean"], tensors["logvar"]),
        load_vae(str(tiny_vae)).encode(jnp.asarray(from_uint8(pixels))),
        strict=True,
    ):
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16))
    decoded = encoder.reconstruct(tensors)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == np.uint8


def test_other_weights_than_planned_are_refused(tiny_vae: Path) -> None:
    with pytest.raises(UserError, match="give all workers the same weights"):
        VaeEncoder(info(tiny_vae).model_copy(update={"sha256": "0" * 64}))


def test_another_config_than_planned_is_refused(tiny_vae: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_vae, tmp_path / "copy"))
    planned = info(copy)
    config = json.loads((copy / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps({**config, "act_fn": "relu"}))
    with pytest.raises(UserError, match="says another network than it did to the command"):
        VaeEncoder(planned)


def test_pixels_pass_through() -> None:
    encoder = load_encoder(None)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(encoder.reconstruct(encoder.start(pixels)()), pixels)


def test_precision_is_that_of_the_settings(tiny_vae: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    wide, narrow = (
        VaeEncoder(info(tiny_vae, dtype)).start(pixels)()["mean"]
        for dtype in ("float32", "bfloat16")
    )
    error = np.abs(wide.astype(np.float32) - narrow).max() / np.abs(wide).max()
    assert 1e-3 < error < 5e-2


def test_on_a_cpu_parts_of_a_batch_give_what_the_batch_gives(
    tiny_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    encoder = VaeEncoder(info(tiny_vae))
    whole = encoder.start(pixels)()
    decoded = encoder.reconstruct(whole)
    monkeypatch.setattr(encoder, "_cpu_pixels", 2 * 16 * 16)
    seen = []
    encode = encoder._vae.encode_pixels
    monkeypatch.setattr(
        type(encoder._vae), "encode_pixels", lambda _, part: seen.append(part.shape) or encode(part)
    )
    parts = encoder.start(pixels)()
    assert seen == [(2, 16, 16, 3)] * 3
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=2e-3, atol=1e-4)  # one step of float16
    assert np.abs(encoder.reconstruct(parts).astype(int) - decoded).max() <= 1


@pytest.mark.parametrize(
    ("images", "side", "size"),
    [(32, 256, 4), (32, 16, 32), (10, 256, 2), (7, 256, 1), (4, 1024, 1)],
)
def test_parts_have_one_shape(images: int, side: int, size: int) -> None:
    assert part_size(images, side**2, encode.CPU_PIXELS["AutoencoderKL"]) == size


def test_batches_are_compiled_once(tiny_vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    encode = AutoencoderKL.encode
    monkeypatch.setattr(
        AutoencoderKL, "encode", lambda model, x: traced.append(x.shape) or encode(model, x)
    )
    weights._compiled.cache_clear()
    encoder = VaeEncoder(info(tiny_vae))
    batches = np.random.default_rng(0).integers(0, 256, (3, 8, 32, 32, 3), dtype=np.uint8)
    waits = [encoder.start(view) for batch in batches for view in (batch, batch[:, :, ::-1])]
    assert len({wait()["mean"].tobytes() for wait in waits}) == 6
    assert traced == [(8, 32, 32, 3)]


def test_devices_take_turns_and_do_not_show(
    tiny_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8)
    first, second = jax.local_devices()[:2]
    one, two = VaeEncoder(info(tiny_vae)), VaeEncoder(info(tiny_vae), [first, second])
    assert (one.devices, two.devices) == (1, 2)
    expected = [one.start(batch)() for batch in batches]
    used = []
    encode = weights.Vae.encode_pixels

    def watched(vae: weights.Vae, pixels: jax.Array) -> tuple[jax.Array, ...]:
        moments = encode(vae, pixels)
        used.append(moments[0].devices())
        return moments

    monkeypatch.setattr(weights.Vae, "encode_pixels", watched)
    for tensors, waiting in zip(expected, [two.start(batch) for batch in batches], strict=True):
        for name, values in waiting().items():
            np.testing.assert_array_equal(values, tensors[name])
    assert used == [{first}, {second}, {first}]
