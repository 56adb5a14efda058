"""Fixtures of the evaluation tests: one tiny world a session, and the tiny protocol in the
tables.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from evaluation import evaluate, extractors, protocols
from evaluation.report import plots
from flowtrain.state.checkpoint import TrainedModel, load_for_sampling
from schemas.manifest import Manifest, VaeInfo
from schemas.run import Run
from tests.evaluation import tiny
from tests.evaluation.commands import succeed


@dataclass(frozen=True)
class World:
    """What `tiny` made, to be read only."""

    vae: VaeInfo
    dataset: Path
    manifest: Manifest
    workdir: Path
    run: Run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    vae = tiny.make_vae(root / "vae")
    manifest = tiny.make_dataset(root / "latents", vae)
    run = tiny.make_run(root / "run", root / "latents", manifest)
    return World(vae, root / "latents", manifest, root / "run", run)


@pytest.fixture(scope="session")
def trained(world: World) -> TrainedModel:
    return load_for_sampling(world.workdir)


@pytest.fixture
def workdir(world: World, tmp_path: Path) -> Path:
    """A copy of the run that a test may write into."""
    return Path(shutil.copytree(world.workdir, tmp_path / "run"))


def add_tiny_protocol(patch: pytest.MonkeyPatch) -> None:
    """Put the protocol `tiny` in the tables."""
    entry = extractors.Entry(lambda prepare, weights: tiny.TinyExtractor(), tiny.TinyExtractor.dim)
    patch.setitem(extractors.EXTRACTORS, "tiny", entry)  # type: ignore[arg-type]
    patch.setitem(protocols.PROTOCOLS, "tiny", tiny.RECIPE)  # type: ignore[arg-type]


@pytest.fixture
def tiny_protocol(monkeypatch: pytest.MonkeyPatch) -> protocols.Recipe:
    add_tiny_protocol(monkeypatch)
    return tiny.RECIPE


@pytest.fixture
def reference(world: World, tiny_protocol: protocols.Recipe, tmp_path: Path) -> Path:
    """Statistics of the dataset of the world, without feature rows."""
    out = tmp_path / "reference.npz"
    succeed("stats", world.dataset, out, "--extractor", "tiny")
    return out


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots beside results are painted, so that a fault shows, and not rendered, which takes longer
    than the numbers in them; tests of the report look at rendered ones.
    """

    def painted(
        paint: plots.Paint, size: tuple[float, float] = plots.WIDE, kind: str = "svg"
    ) -> bytes:
        paint(Figure(figsize=size).subplots())
        return kind.encode()

    monkeypatch.setattr(evaluate, "draw", painted)
