"""A tiny VAE, a small folder of images, object stores and warm processes, made once a session."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from pipelines import beam_storage
from pipelines.encoders.kl import AutoencoderKL, VaeConfig
from pipelines.encoders.weights import save_vae
from schemas.storage.objects import connect_by_environment
from tests.pipelines.servers import SERVERS, Store

IMAGES = 60
CLASSES = ("ant", "bee", "cat")
SUFFIXES = ("png", "jpg", "webp", "bmp", "gif", "JPEG")
_PLACES = itertools.count()


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained VAE of factor 2 with 4 latent channels."""
    config = VaeConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    directory = tmp_path_factory.mktemp("vae") / "tiny"
    save_vae(AutoencoderKL(config, rngs=nnx.Rngs(1)), config, directory)
    return directory


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 coloured images of several formats and sizes in three class folders."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        picture = coarse.resize((20 + number % 7, 18 + number % 5), Image.Resampling.BICUBIC)
        path = folder / CLASSES[number % 3] / f"{number:03d}.{SUFFIXES[number % 6]}"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return folder


def _reach(kind: str) -> Iterator[Store]:
    with SERVERS[kind]() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        beam_storage._connect.cache_clear()
        connect_by_environment.cache_clear()
        yield store
    beam_storage._connect.cache_clear()
    connect_by_environment.cache_clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Store]:
    """An S3 server, reachable from this process and its children."""
    yield from _reach("s3")


@pytest.fixture(scope="session")
def google_server() -> Iterator[Store]:
    """A server for Google Cloud Storage, likewise."""
    yield from _reach("gs")


def _own_place(server: Store) -> Store:
    """A store of a test's own on a server that all tests share, well-behaved."""
    server.proxy.reset()
    return replace(server, place=f"test-{next(_PLACES)}")


@pytest.fixture
def s3_store(s3_server: Store) -> Store:
    """An empty place on the S3 server."""
    return _own_place(s3_server)


@pytest.fixture
def google_store(google_server: Store) -> Store:
    """An empty place on the server for Google Cloud Storage."""
    return _own_place(google_server)


@pytest.fixture(params=["s3_store", "google_store"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each kind of store."""
    store: Store = request.getfixturevalue(request.param)
    return store
