import pytest

from schemas.errors import UserError
from schemas.manifest import Normalization
from schemas.recipes import make_recipe
from schemas.run import DatasetRef, Run, read_run, write_run


def made() -> Run:
    return Run(
        recipe=make_recipe({"model": {"size": "debug"}, "train": {"steps": 1, "batch_size": 1}}),
        dataset=DatasetRef(
            path="d",
            digest="0",
            split="train",
            records=3,
            flips=False,
            source="embedded:digits",
            resolution=32,
        ),
        latent_shape=(8, 8, 4),
        classes=("a",),
        normalization=Normalization(offset=(0.0,) * 4, scale=(1.0,) * 4),
        vae=None,
        parameters=10,
        versions={},
    )


def test_round_trip_and_missing_or_damaged(tmp_path):
    run = made()
    with pytest.raises(UserError, match="no training run"):
        read_run(tmp_path)
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_run(tmp_path)


def test_any_flipped_bit_is_told(tmp_path):
    run, path = made(), tmp_path / "run.json"
    write_run(tmp_path, run)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 3, 6):
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
            )
            with pytest.raises(UserError, match="damaged"):
                read_run(tmp_path)


def test_a_run_of_an_earlier_commit_has_no_digest(tmp_path):
    run = made()
    (tmp_path / "run.json").write_text(run.model_dump_json(indent=2) + "\n")
    assert read_run(tmp_path) == run
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        read_run(tmp_path)
