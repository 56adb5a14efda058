import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.extractors.dinov2 import BATCH, DinoV2Extractor, load_dinov2
from evaluation.extractors.dinov2_weights import DinoV2Config, read_config, read_tensors
from schemas.errors import UserError
from tests.evaluation.dinov2_weights import DEPTH, GRID, PATCH, WIDTH, save, tiny_weights
from tests.evaluation.pictures import picture

# Of picture(224, 224), from the Dinov2Model of transformers 5.24 (torch 2.13, CPU) with these
# weights and with the positions that facebookresearch/dinov2 gives it (see
# tests/parity/test_dinov2.py).
FEATURES = {
    0: 1.1613028,
    1: -0.2623419,
    17: -0.9756517,
    42: -0.4783501,
    63: -0.0203484,
    100: -1.2132006,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_weights(), tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def extractor(file: Path) -> DinoV2Extractor:
    return load_dinov2(file)


def test_sizes_come_from_shapes(file, extractor):
    assert read_config(read_tensors(file), file) == DinoV2Config(
        WIDTH, DEPTH, 4 * WIDTH, PATCH, GRID, offset=0.1
    )
    assert (extractor.name, extractor.dim, extractor.spatial_dim) == (
        "dinov2-vit2x128-14",
        WIDTH,
        0,
    )
    assert extractor.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert extractor.class_names == ()


def test_numbers_of_the_pytorch_network(extractor):
    features, logits, spatial = extractor(picture(224, 224)[None])
    assert (features.shape, logits.shape, spatial) == ((1, WIDTH), (1, 0), None)
    assert features.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(features[0, list(FEATURES)], list(FEATURES.values()), atol=1e-5)


def test_cuts_and_sizes_do_not_matter(extractor):
    """The same rows from one call and from several, and for images that Pillow resized before."""
    images = np.stack([picture(40, 56, number) for number in range(BATCH + 2)])
    whole = extractor(images)
    parts = [extractor(images[:3]).features, extractor(images[3:]).features]
    np.testing.assert_array_equal(whole.features, np.concatenate(parts))
    resized = [
        Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images[:2]
    ]
    again = extractor(np.stack([np.asarray(image) for image in resized]))
    np.testing.assert_allclose(again.features, whole.features[:2], atol=1e-5)


def test_half_precision_is_read_and_bfloat16_refused(tmp_path, file):
    halves = {name: value.astype(np.float16) for name, value in tiny_weights().items()}
    save(halves, tmp_path / "half")
    rounded = {name: value.astype(np.float32) for name, value in halves.items()}
    save(rounded, tmp_path / "rounded")
    image = picture(224, 224)[None]
    half, whole = load_dinov2(tmp_path / "half")(image), load_dinov2(tmp_path / "rounded")(image)
    np.testing.assert_array_equal(half.features, whole.features)
    brain = tmp_path / "brain"
    brain.mkdir()
    data = file.read_bytes()
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    (brain / "model.safetensors").write_bytes(header.replace(b'"F32"', b'"BF16"'))
    with pytest.raises(UserError, match="float32"):
        load_dinov2(brain)
