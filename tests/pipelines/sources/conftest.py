"""Sources that several modules of tests read."""

from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.sources.miniature import Miniature, jpeg, make_miniature
from tests.pipelines.sources.prepared import COUNT, make_labelled_builder


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("ilsvrc"))


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """JPEG files."""
    rng = np.random.default_rng(0)
    return [jpeg(rng) for _ in range(COUNT)]


@pytest.fixture
def labelled(tmp_path: Path, pictures: list[bytes]) -> Path:
    """A builder of them with classes."""
    return make_labelled_builder(tmp_path / "data", pictures)
