import pytest

from schemas.errors import UserError
from schemas.manifest import Normalization
from schemas.recipes import make_recipe
from schemas.run import DatasetRef, Run, read_run, write_run


def test_round_trip_and_missing_or_damaged(tmp_path):
    run = Run(
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
    with pytest.raises(UserError, match="no training run"):
        read_run(tmp_path)
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_run(tmp_path)
