import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.encoders.describe import default_dtype, describe_vae
from pipelines.encoders.locate import read_vae_config, vae_digest
from pipelines.encoders.weight_files import CONFIG_FILE, WEIGHTS_FILE
from schemas.errors import UserError


def test_everything_that_a_manifest_says_of_a_vae(
    tiny_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_vae.parent)
    info = describe_vae("tiny", None, "bfloat16")
    assert info is not None
    assert info.model_dump() == {
        "id": str(tiny_vae),
        "revision": None,
        "sha256": vae_digest(tiny_vae),
        "config_sha256": read_vae_config(tiny_vae).digest(),
        "factor": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "shift_factor": 0.0,
        "dtype": "bfloat16",
    }
    assert describe_vae("none", None, None) is None


@pytest.mark.parametrize(("field", "value"), [("act_fn", "relu"), ("norm_num_groups", 2)])
def test_what_no_shape_of_the_weights_tells_makes_another_vae(
    tiny_vae: Path, tmp_path: Path, field: str, value: object
) -> None:
    copy = Path(shutil.copytree(tiny_vae, tmp_path / "copy"))
    before = describe_vae(str(copy), None, "float32")
    config = json.loads((copy / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps({"sample_size": 7, **config}))
    assert describe_vae(str(copy), None, "float32") == before
    (copy / CONFIG_FILE).write_text(json.dumps({**config, field: value}))
    after = describe_vae(str(copy), None, "float32")
    assert before is not None
    assert after is not None
    assert after.sha256 == before.sha256
    assert after.config_sha256 != before.config_sha256


def test_the_shipped_vae_goes_by_its_name() -> None:
    info = describe_vae("embedded", None, "float32")
    assert info is not None
    assert (info.id, info.factor, info.latent_channels, info.dtype) == ("embedded", 4, 4, "float32")


def test_precision_suits_the_machine(tiny_vae: Path) -> None:
    info = describe_vae(str(tiny_vae))
    assert info is not None
    assert info.dtype == default_dtype() == "float32"  # the tests run on CPUs


def test_without_weights_that_can_be_read_there_is_no_description(
    tiny_vae: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_vae, tmp_path / "broken"))
    weights = (broken / WEIGHTS_FILE).read_bytes()
    (broken / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        describe_vae(str(broken), None, "float32")


def test_a_given_precision_needs_no_jax(tiny_vae: Path) -> None:
    """So that repeating the command of a finished dataset is quick."""
    program = """
import sys
from pipelines.encoders.describe import describe_vae
print(describe_vae(sys.argv[1], None, "float32").model_dump_json())
assert not {"jax", "jaxlib", "flax", "torch"} & sys.modules.keys()
assert describe_vae(sys.argv[1], None, None).dtype == "float32"
assert "jax" in sys.modules
"""
    command = [sys.executable, "-c", program, str(tiny_vae)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sha256"] == vae_digest(tiny_vae)
