"""Sources by name: which descriptors open one, and what is no place for a dataset."""

import pytest

from pipelines.sources import check_is_no_source, open_source
from schemas.errors import UserError


@pytest.mark.parametrize(
    ("descriptor", "split", "message"),
    [
        ("no/such/folder", "train", "no such folder"),
        (
            "rar:x.rar",
            "train",
            "unknown kind of source 'rar:'; known are a folder of images, tar:FILE[,FILE], "
            "zip:FILE[,FILE], tfds:NAME[@DATA_DIR], wds:SHARDS, parquet:PATH, embedded:NAME",
        ),
        ("tar:no/such.tar", "train", "such.tar: no such file"),
        ("zip:no/such.zip", "train", "such.zip: no such file"),
        ("parquet:no/such", "train", "no such file or folder"),
        ("embedded:cats", "train", "no such embedded source; known: digits"),
        ("embedded:digits", "validation", "no split 'validation'; it has train and test"),
    ],
)
def test_what_is_not_there_is_named(descriptor: str, split: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(descriptor, split)
    assert message in str(caught.value)


@pytest.mark.parametrize("out", ["zip:set", "tar:/a/set.tar", "embedded:digits"])
def test_source_is_no_place_for_a_dataset(out: str) -> None:
    with pytest.raises(UserError, match=f"{out} names a source"):
        check_is_no_source(out)


@pytest.mark.parametrize("out", ["run:1", "./zip:set", "a/tar:x", "s3://bucket/set", "zip"])
def test_other_colons_are_part_of_a_name(out: str) -> None:
    check_is_no_source(out)
