"""Sample sets: the same bytes after any kill, for any batch, anywhere; never mixed up."""

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.draw.generate import draw, generate
from evaluation.draw.sample import images_and_labels
from evaluation.draw.setting import (
    Setting,
    sampling_facts,
)
from flowtrain.flow.sampler import Samples, sample
from flowtrain.state.checkpoint import TrainedModel, load_for_sampling
from pipelines.curate.verify import verify
from pipelines.dataset.finished import LatentDataset
from schemas.errors import UserError
from schemas.manifest import MANIFEST_NAME, SAMPLING_NAME
from schemas.run import read_run, write_run
from schemas.sampler import SamplerSettings
from tests.evaluation.conftest import World
from tests.evaluation.tiny import CLASSES
from tests.flags import with_devices

SETTING = Setting(20, SamplerSettings("euler", 3, 2.0, seed=5))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "whole"
    generate(trained, SETTING, out, batch_size=8, shard_size=8)
    return out


def test_a_sample_set_is_a_dataset_with_its_facts(trained: TrainedModel, undisturbed: Path) -> None:
    dataset = LatentDataset(undisturbed)
    records = list(dataset.records())
    assert [record.label for record in records] == [i % len(CLASSES) for i in range(20)]
    assert records[19].key == "00000019"
    drawn = np.concatenate([part.latents for part in draw(trained, SETTING, 0, 20, 8)])
    stored = np.stack([record.tensors["latent"] for record in records])
    np.testing.assert_array_equal(stored, drawn)
    manifest = dataset.manifest
    np.testing.assert_allclose(
        manifest.channels.mean, stored.astype(np.float64).mean(axis=(0, 1, 2))
    )
    np.testing.assert_allclose(manifest.channels.std, stored.astype(np.float64).std(axis=(0, 1, 2)))
    assert manifest.normalization == trained.run.normalization
    assert manifest.sampling == sampling_facts(trained, SETTING).model_dump(mode="json")
    assert manifest.sampling is not None
    assert manifest.sampling["nfe"] == 6


def test_a_sample_set_is_verified_and_mended_like_any_dataset(
    trained: TrainedModel, undisturbed: Path, tmp_path: Path
) -> None:
    assert not verify(str(undisturbed)).damaged
    whole = contents(undisturbed)
    assert {"README.md", "features.json", SAMPLING_NAME} < whole.keys()
    for name in whole:
        if name == MANIFEST_NAME:
            continue
        out = Path(shutil.copytree(undisturbed, tmp_path / name))
        data = bytearray(whole[name])
        data[len(data) // 2] ^= 4
        (out / name).write_bytes(data)
        report = verify(str(out))
        assert [damage.file for damage in report.damaged] == [name]
        delete, repeat = report.commands
        assert delete == f"rm -- {out / name}"
        assert repeat.startswith(f"flowtrain sample WORKDIR {out} --num 20 ")
        assert report.note == "WORKDIR is the run that the samples were drawn from"
        (out / name).unlink()
        generate(trained, SETTING, out, batch_size=8, shard_size=8)
        assert contents(out) == whole, name


def test_a_damaged_plan_is_one_line(
    trained: TrainedModel, undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    (out / SAMPLING_NAME).write_text("{")
    with pytest.raises(UserError, match="is damaged; delete it and repeat"):
        generate(trained, SETTING, out, batch_size=8, shard_size=8)


def test_sample_i_depends_on_the_seed_and_i_alone(trained: TrainedModel) -> None:
    def latents(setting: Setting, start: int, stop: int, batch: int) -> np.ndarray:
        return np.concatenate(
            [part.latents for part in draw(trained, setting, start, stop, batch)]
        ).astype(float)

    whole = latents(SETTING, 0, 20, 8)
    np.testing.assert_allclose(latents(SETTING, 11, 14, 3), whole[11:14], rtol=2e-3, atol=1e-4)
    other = latents(Setting(20, SamplerSettings("euler", 3, 2.0, seed=6)), 0, 8, 8)
    assert np.abs(other - whole[:8]).max(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(whole[0] - whole[3]).max() > 0.1, "same class, other noise"


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_a_solver_reaches_the_samples_and_keeps_them_a_function_of_seed_and_i(
    trained: TrainedModel, undisturbed: Path, tmp_path: Path, solver: str
) -> None:
    settings = dataclasses.replace(SETTING.sampler, solver=solver)
    setting = dataclasses.replace(SETTING, sampler=settings)
    generate(trained, setting, tmp_path / "whole", batch_size=8, shard_size=8)
    others = LatentDataset(undisturbed).records()
    pairs = [
        (a.tensors["latent"], b.tensors["latent"])
        for a, b in zip(LatentDataset(tmp_path / "whole").records(), others, strict=True)
    ]
    differing = max(np.abs(a.astype(float) - b).max() for a, b in pairs)
    # of a flow, DDIM's step is Euler's
    assert differing < 0.01 if solver == "ddim" else differing > 0.1
    parts = [
        part.latents
        for start in (0, 8, 16)
        for part in draw(trained, setting, start, min(start + 8, 20), 8)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), np.stack([a for a, _ in pairs]))
    assert f"--solver {solver} " in LatentDataset(tmp_path / "whole").manifest.command


def test_missing_pieces_are_made_again_byte_for_byte(
    trained: TrainedModel, undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "again"))
    shards = sorted(out.glob("*.array_record*"))
    assert len(shards) == 3
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:100])
    kept = shards[0].stat().st_mtime_ns
    seen: list[int] = []
    generate(trained, SETTING, out, batch_size=8, shard_size=8, progress=seen.append)
    assert contents(out) == contents(undisturbed)
    assert shards[0].stat().st_mtime_ns == kept
    assert sum(seen) == 20


@pytest.mark.parametrize("after", ["shard", "batch"])
def test_kill_and_repeat(world: World, undisturbed: Path, tmp_path: Path, after: str) -> None:
    out = tmp_path / "killed"
    # A pause after each batch, so that the kill falls between two of them or between two shards.
    script = f"""
import time
from pathlib import Path
from evaluation.draw.generate import generate
from evaluation.draw.setting import Setting
from flowtrain.state.checkpoint import load_for_sampling
from schemas.sampler import SamplerSettings
trained = load_for_sampling(Path({str(world.workdir)!r}))
def pause(count):
    print(count, flush=True)
    time.sleep(0.5)
generate(trained, Setting(20, SamplerSettings("euler", 3, 2.0, seed=5)), Path({str(out)!r}),
         batch_size=8, shard_size=8, progress=pause)
"""
    # as here: bit for bit
    environment = {
        **os.environ,
        "XLA_FLAGS": with_devices(8),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first batch, whose shard is not closed yet
    if after == "shard":
        deadline = time.monotonic() + 60
        while not list(out.glob("latents*")) and time.monotonic() < deadline:
            time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (out / MANIFEST_NAME).exists()
    assert len(list(out.glob("latents*"))) == (1 if after == "shard" else 0)
    generate(load_for_sampling(world.workdir), SETTING, out, batch_size=8, shard_size=8)
    assert contents(out) == contents(undisturbed)


def test_the_bytes_do_not_depend_on_where_the_run_lies(
    workdir: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = read_run(workdir)
    moved = run.model_copy(
        update={"dataset": run.dataset.model_copy(update={"path": "/elsewhere"})}
    )
    write_run(workdir, moved)
    generate(load_for_sampling(workdir), SETTING, tmp_path / "moved", batch_size=8, shard_size=8)
    assert contents(tmp_path / "moved") == contents(undisturbed)


def test_a_directory_belongs_to_one_setting(
    trained: TrainedModel, undisturbed: Path, tmp_path: Path
) -> None:
    before = contents(undisturbed)
    other = Setting(20, SamplerSettings("euler", 4, 2.0, seed=5))
    with pytest.raises(UserError, match="made with steps 3, not 4"):
        generate(trained, other, undisturbed, batch_size=8, shard_size=8)
    assert contents(undisturbed) == before
    with (undisturbed / SAMPLING_NAME).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            generate(trained, SETTING, undisturbed, batch_size=8, shard_size=8)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="other than samples"):
        generate(trained, SETTING, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_kill_before_the_first_file_stands_is_gone_on_from(
    trained: TrainedModel, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / f".{SAMPLING_NAME}.17.tmp").write_text('{"half')
    generate(trained, SETTING, tmp_path, batch_size=8, shard_size=8)
    assert contents(tmp_path) == contents(undisturbed)


def test_another_batch_size_does_not_mix_its_rounding_in(
    trained: TrainedModel, undisturbed: Path
) -> None:
    before = contents(undisturbed)
    with pytest.raises(UserError, match="made with batch_size 8, not 4; repeat with the same"):
        generate(trained, SETTING, undisturbed, batch_size=4, shard_size=8)
    # a shard at once, as before
    generate(trained, SETTING, undisturbed, batch_size=100, shard_size=8)
    assert contents(undisturbed) == before


def test_no_more_is_computed_than_asked_for(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(*arguments: Any, batch_size: int, **others: Any) -> Samples:
        sizes.append(batch_size)
        return sample(*arguments, batch_size=batch_size, **others)

    monkeypatch.setattr("flowtrain.flow.sampler.sample", noted)
    four = Setting(4, SamplerSettings("euler", 1, 1.0))
    generate(trained, four, tmp_path / "few")
    images_and_labels(trained, four, 250, lambda count: None)
    generate(
        trained,
        Setting(10, SamplerSettings("euler", 1, 1.0)),
        tmp_path / "more",
        batch_size=1000,
        shard_size=4,
    )
    assert sizes == [4, 4, 4, 4, 4], (
        "the last shard is padded: another shape would be compiled once more"
    )


def test_samples_that_are_not_finite_are_told(trained: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights of step 3 give samples that are not finite"):
        generate(
            trained, Setting(3, SamplerSettings("euler", 2, 1e30)), tmp_path / "out", batch_size=8
        )
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
