import pytest

from tests.pipelines.sources.miniature import Miniature, make_miniature


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("ilsvrc"))
