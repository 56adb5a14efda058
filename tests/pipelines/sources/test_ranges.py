import io
import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.ranges import LARGEST, RangeFile


def test_any_sequence_of_reads_equals_a_file(tmp_path: Path) -> None:
    data = os.urandom(3 * LARGEST)
    (tmp_path / "x").write_bytes(data)
    rng = np.random.default_rng(0)
    for start, stop in ((0, None), (1000, 2 * LARGEST), (5, 5), (len(data) - 10, len(data))):
        expected = io.BytesIO(data[start:stop])
        with RangeFile(str(tmp_path / "x"), start, stop) as file:
            assert file.size == len(expected.getvalue())
            for _ in range(300):
                if rng.random() < 0.6:
                    size = int(
                        rng.choice(
                            [0, 1, 512, 5000, 100_000, -1], p=[0.1, 0.2, 0.4, 0.2, 0.09, 0.01]
                        )
                    )
                    assert file.read(size) == expected.read(size)
                else:
                    whence = int(rng.integers(0, 3))
                    low = (0, -expected.tell(), -file.size)[whence]
                    offset = int(rng.integers(low, low + file.size + 2))
                    assert file.seek(offset, whence) == expected.seek(offset, whence)
                assert file.tell() == expected.tell()
        assert file.closed


def test_what_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RangeFile(str(tmp_path / "nothing"))


def test_readinto(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with RangeFile(str(tmp_path / "x"), 2, 9) as file:
        buffer = bytearray(5)
        assert (file.readinto(buffer), bytes(buffer)) == (5, b"23456")
        assert (file.readinto(buffer), bytes(buffer)) == (2, b"78456")
        assert file.readinto(buffer) == 0
