"""Previews: the right samples, reconstructions of what is known, and the distance that `eval` would
give.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluation.features.imagesets import batch_images, dataset_images
from evaluation.features.measure import Measured, measure_images, protocol_of
from evaluation.preview import preview
from evaluation.preview.preview import Preview, make_preview, noise_times, write_previews
from evaluation.preview.sheet import Panel
from evaluation.protocols import Recipe
from evaluation.score.compare import compare
from flowtrain.flow.objective import make_objective
from flowtrain.flow.path import Ends, LinearPath, VariancePreservingPath
from flowtrain.flow.sampler import initial_noise, sample
from flowtrain.state.checkpoint import TrainedModel
from pipelines.encoders.decode import decode_samples
from schemas.errors import UserError
from schemas.layout import Layout
from schemas.manifest import Normalization, VaeInfo, read_manifest
from schemas.pixels import to_uint8
from schemas.run import Run
from schemas.sampler import SamplerSettings
from tests.evaluation import scenes, tiny
from tests.evaluation.conftest import add_tiny_protocol

SMALL = {"steps": [1, 4], "cfg": [1.0, 3.0], "classes": 2, "columns": 4}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> VaeInfo:
    return tiny.make_vae(tmp_path_factory.mktemp("vae") / "vae")


@pytest.fixture(scope="module")
def datasets(vae: VaeInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, to be read only."""
    root = tmp_path_factory.mktemp("datasets")
    scale = Normalization(offset=(0.1,) * 4, scale=(2.0,) * 4)
    scenes.make_dataset(root / "moments", Layout.MOMENTS, vae)
    scenes.make_dataset(root / "pixels", Layout.IMAGE, None)
    scenes.make_dataset(root / "unconditional", Layout.IMAGE, None, classes=("all",))
    scenes.make_dataset(root / "samples", Layout.LATENT, vae, normalization=scale)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def reference(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the pixels, under the tiny protocol."""
    out = tmp_path_factory.mktemp("reference") / "tiny.npz"
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_protocol(patch)
        measure_images(dataset_images(datasets["pixels"]), protocol_of(tiny.RECIPE, tiny.SIDE), out)
    return out


def _run(directory: Path, **tables: dict[str, Any]) -> Run:
    return scenes.make_run(directory, read_manifest(directory), **{"preview": SMALL, **tables})


def _silent(message: str) -> None:
    raise AssertionError(message)


def _make(directory: Path, **tables: dict[str, Any]) -> tuple[Preview, TrainedModel]:
    run = _run(directory, **tables)
    return make_preview(run, directory, None, _silent), scenes.trained_model(run)


def _measured(**more: Any) -> dict[str, Any]:
    return {**SMALL, "protocol": "tiny", "distance_samples": 10, **more}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Panel], Sequence[str]]]:
    """The blocks and names of every picture drawn."""
    seen: list[tuple[Sequence[Panel], Sequence[str]]] = []
    draw = preview.sheet

    def remember(blocks: Sequence[Panel], names: Sequence[str] = ()) -> Any:
        seen.append((blocks, names))
        return draw(blocks, names)

    monkeypatch.setattr(preview, "sheet", remember)
    return seen


@pytest.mark.parametrize("kind", ["moments", "pixels", "samples", "unconditional"])
def test_everything_is_drawn_for_every_kind_of_data(datasets: dict[str, Path], kind: str) -> None:
    shown, trained = _make(datasets[kind])
    result = shown(trained)
    assert list(result.images) == ["samples-1steps", "samples-4steps", "reconstructions"]
    for picture in result.images.values():
        assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    assert list(result.scalars) == [
        f"reconstruction_mse/t{(2 * i + 1) / 16:.3f}" for i in range(7, -1, -1)
    ]


@pytest.mark.parametrize(
    ("kind", "objective", "solver"),
    [("moments", "flow", "euler"), ("pixels", "flow", "ddpm"), ("moments", "diffusion", "ddim")],
)
def test_samples_are_those_of_the_sampler(
    datasets: dict[str, Path], drawn: list[Any], kind: str, objective: str, solver: str
) -> None:
    tables = {"objective": {"kind": objective}, "sampler": {"cfg_channels": 2, "solver": solver}}
    shown, trained = _make(datasets[kind], **tables)
    run = trained.run
    shown.samples(trained, 4)
    [(blocks, names)] = drawn
    assert list(names) == ["zero", "one"]
    assert [block.caption for block in blocks] == ["4 steps, guidance 1", "4 steps, guidance 3"]
    # as `flowtrain sample` numbers them
    numbers = [label + 3 * column for label in range(2) for column in range(4)]
    for block, cfg in zip(blocks, (1.0, 3.0), strict=True):
        settings = SamplerSettings(solver, 4, cfg, cfg_channels=2)
        latents = sample(trained, [0] * 4 + [1] * 4, numbers, settings, batch_size=8).x
        expected = decode_samples(latents.astype(np.float16), run.normalization, run.vae, tiny.SIDE)
        np.testing.assert_allclose(
            np.concatenate(block.rows).astype(int), expected.astype(int), atol=1
        )
        assert expected.std() > 5, "samples that are all the same prove nothing"


def test_a_solver_that_chooses_its_steps_draws_once(
    datasets: dict[str, Path], drawn: list[Any]
) -> None:
    shown, trained = _make(datasets["pixels"], sampler={"solver": "dopri5"})
    assert list(shown(trained).images) == ["samples-adaptive", "reconstructions"]
    assert [block.caption for block in drawn[0][0]] == [
        "adaptive steps, guidance 1",
        "adaptive steps, guidance 3",
    ]


def test_one_class_fills_all_rows(datasets: dict[str, Path], drawn: list[Any]) -> None:
    shown, trained = _make(datasets["unconditional"])
    shown.samples(trained, 1)
    [(blocks, names)] = drawn
    settings = SamplerSettings("euler", 1, 1.0)
    latents = sample(trained, [0] * 8, range(8), settings, batch_size=8).x
    np.testing.assert_allclose(
        np.concatenate(blocks[0].rows).astype(int), to_uint8(latents).astype(int), atol=1
    )
    assert [len(row) for row in blocks[0].rows] == [4, 4]
    assert not names
    assert blocks[0].caption == "1 step, guidance 1"


def test_every_preview_starts_from_the_same_noise(datasets: dict[str, Path]) -> None:
    shown, trained = _make(datasets["moments"])
    first, later = shown(trained), shown(replace(trained, step=700))
    assert first.scalars == later.scalars
    for name, picture in first.images.items():
        np.testing.assert_array_equal(picture, later.images[name])
    learned = shown(replace(trained, step=700, params=jnp.float32(1.5)))
    assert all((picture != learned.images[name]).any() for name, picture in first.images.items())


def test_the_network_is_traced_once_with_and_once_without_guidance(
    datasets: dict[str, Path], reference: Path, tiny_protocol: Recipe
) -> None:
    run = _run(
        datasets["pixels"], preview=_measured(distance_samples=23), sampler={"steps": 3, "cfg": 2.0}
    )
    shown = make_preview(run, datasets["pixels"], reference, _silent)
    traced = []

    def predict(params: jax.Array, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        traced.append(x.shape[0])
        return params * x

    trained = scenes.with_predict(scenes.trained_model(run), predict)
    shown.samples(trained, 1)
    shown.reconstructions(trained)
    assert len(set(traced)) == 3, "guided, not guided, reconstruction"
    before = len(traced)
    assert len(shown(replace(trained, params=jnp.float32(0.1))).scalars) == 8 + 2
    assert len(traced) == before


PREDICTIONS = [("flow", "velocity"), ("flow", "negative_velocity"), ("flow", "data")]
PREDICTIONS += [("diffusion", "epsilon"), ("diffusion", "data")]


@pytest.mark.parametrize(("kind", "output"), PREDICTIONS)
def test_who_knows_the_truth_reconstructs_it_at_every_level(
    datasets: dict[str, Path], drawn: list[Any], kind: str, output: str
) -> None:
    shown, trained = _make(
        datasets["moments"], objective={"kind": kind}, model={"size": "debug", "output": output}
    )
    truth, path = (
        jnp.asarray(shown.examples.latents),
        make_objective(trained.run.recipe.objective).path,
    )

    def predict(params: jax.Array, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        alpha, sigma = (value[:, None, None, None] for value in path.coefficients(t))
        return path.view(output, Ends((x - alpha * truth) / sigma, truth), t)

    _, errors = shown.reconstructions(scenes.with_predict(trained, predict))
    assert len(errors) == 8
    assert max(errors.values()) < 1e-8
    [((seen, found), names)] = drawn
    assert len(names) == len(seen.rows) == len(found.rows) == 9
    original = decode_samples(
        shown.examples.latents, trained.run.normalization, trained.run.vae, tiny.SIDE
    )
    for row in (seen.rows[0], *found.rows):
        np.testing.assert_allclose(row.astype(int), original.astype(int), atol=1)
    distances = [np.abs(row.astype(float) - original).mean() for row in seen.rows]
    assert 0 < distances[1] < distances[4] < distances[8]


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_noise_and_errors_are_those_of_the_path(
    datasets: dict[str, Path], drawn: list[Any], kind: str
) -> None:
    shown, trained = _make(
        datasets["pixels"], objective={"kind": kind}, model={"size": "debug", "output": "data"},
        preview={**SMALL, "noise_levels": 2},
    )  # fmt: skip
    data, labels = shown.examples.latents.astype(np.float64), shown.examples.labels

    def predict(params: jax.Array, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        return 0.5 * x + label[:, None, None, None].astype(jnp.float32)

    _, errors = shown.reconstructions(scenes.with_predict(trained, predict))
    noise = np.asarray(
        initial_noise(jax.random.key(0), jnp.arange(len(data)), trained.run.latent_shape),
        np.float64,
    )
    log_alpha = np.cumsum(np.log(np.sqrt(1 - np.linspace(1e-4, 0.02, 1000))))
    at = {
        "flow": lambda t: (t, 1 - t),
        "diffusion": lambda t: _preserving(float(np.exp(log_alpha[round(1000 * (1 - t)) - 1]))),
    }
    [((seen, _), names)] = drawn
    assert list(names) == ["data", "t = 0.75", "t = 0.25"]
    for row, (name, error), t in zip(seen.rows[1:], errors.items(), (0.75, 0.25), strict=True):
        alpha, sigma = at[kind](t)
        x = alpha * data + sigma * noise
        np.testing.assert_allclose(
            row.astype(int), to_uint8(x.astype(np.float32)).astype(int), atol=1
        )
        expected = np.mean((0.5 * x + labels[:, None, None, None] - data) ** 2)
        assert name == f"reconstruction_mse/t{t:.3f}"
        assert error == pytest.approx(expected, rel=1e-4)


def _preserving(alpha: float) -> tuple[float, float]:
    return alpha, np.sqrt(1 - alpha**2)


def test_times_lie_strictly_inside() -> None:
    assert noise_times(LinearPath(), 4) == (0.875, 0.625, 0.375, 0.125)
    assert noise_times(LinearPath(), 1) == (0.5,)
    levels = 1000 * (1 - np.array(noise_times(VariancePreservingPath(), 8)))
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    for few in range(2, 9):
        for count in range(1, 9):
            times = noise_times(VariancePreservingPath(levels=few), count)
            assert times
            assert all(0 < t < 1 for t in times)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_distance_is_that_of_evaluation(
    datasets: dict[str, Path], reference: Path, tiny_protocol: Recipe, tmp_path: Path, cfg: float
) -> None:
    tables = {"preview": _measured(distance_samples=600), "sampler": {"steps": 2, "cfg": cfg}}
    run = _run(datasets["moments"], **tables, train={"steps": 9, "batch_size": 100})
    trained = scenes.trained_model(run)
    shown = make_preview(run, datasets["moments"], reference, _silent)
    numbers = np.arange(600)
    settings = SamplerSettings("euler", 2, cfg)
    drawn = sample(trained, numbers % 3, numbers, settings, batch_size=60)
    latents = drawn.x.astype(np.float16)
    images = decode_samples(latents, run.normalization, run.vae, tiny.SIDE)
    np.savez(tmp_path / "batch.npz", images)
    protocol = protocol_of(tiny.RECIPE, tiny.SIDE)
    statistics = measure_images(
        batch_images(tmp_path / "batch.npz"), protocol, tmp_path / "statistics.npz"
    )
    assert shown.comparison is not None
    expected = compare(
        statistics, Measured(shown.comparison.reference, reference), protocol
    ).distance
    values = shown.distances(trained, shown.comparison)
    assert set(values) == {"fd_tiny/cfg1", f"fd_tiny/cfg{cfg:g}"}
    # a pixel may round the other way
    assert values[f"fd_tiny/cfg{cfg:g}"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3


def test_a_dataset_as_reference_is_measured_once_the_run_has_a_directory(
    datasets: dict[str, Path], tiny_protocol: Recipe, tmp_path: Path
) -> None:
    run, told = _run(datasets["moments"], preview=_measured()), []
    directory = tmp_path / "run" / "previews"
    shown = make_preview(
        run, datasets["moments"], datasets["moments"], told.append, directory=directory
    )
    assert not (tmp_path / "run").exists(), "a work directory must stay empty until the run begins"
    assert ["decoded latents" in message for message in told] == [True]
    shown(scenes.trained_model(run))
    for _ in range(2):
        again = make_preview(
            run, datasets["moments"], datasets["moments"], told.append, directory=directory
        )
        assert again.comparison is not None
        assert shown.comparison is not None
        np.testing.assert_array_equal(
            again.comparison.reference.sigma, shown.comparison.reference.sigma
        )
        assert [path.suffix for path in directory.glob("reference-*")] == [".npz"]


def test_pictures_are_written(datasets: dict[str, Path], tmp_path: Path) -> None:
    run = _run(datasets["pixels"])
    shown = make_preview(
        run, datasets["pixels"], None, _silent, directory=tmp_path / "run" / "previews"
    )
    result = shown(scenes.trained_model(run, step=1000))
    written = {path.name: path for path in (tmp_path / "run" / "previews").iterdir()}
    assert set(written) == {f"step00001000-{name}.png" for name in result.images}
    for name, picture in result.images.items():
        np.testing.assert_array_equal(
            np.asarray(Image.open(written[f"step00001000-{name}.png"])), picture
        )


def test_pictures_that_cannot_be_written_do_not_end_a_run(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "previews").write_text("a file")
    with pytest.raises(UserError, match="the previews of step 7 cannot be written"):
        write_previews(tmp_path / "previews", 7, {})
    run, told = _run(datasets["pixels"]), []
    shown = make_preview(
        run, datasets["pixels"], None, told.append, directory=tmp_path / "previews"
    )
    assert shown(scenes.trained_model(run, step=7)).images
    assert ["step 7 cannot be written" in message for message in told] == [True]


def test_what_is_not_finite_is_told_and_shown_and_ends_nothing(
    datasets: dict[str, Path], reference: Path, tiny_protocol: Recipe, drawn: list[Any]
) -> None:
    run, told = _run(datasets["moments"], preview=_measured()), []
    shown = make_preview(run, datasets["moments"], reference, told.append)

    def predict(params: jax.Array, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        return jnp.where(label[:, None, None, None] == 1, jnp.inf, 1e30 * x)

    result = shown(scenes.with_predict(scenes.trained_model(run, step=5), predict))
    assert not result.scalars
    # float16 ends at 65504
    assert "preview of step 5: 16 of 16 samples of 1 step are not finite" in told
    assert "preview of step 5: 16 of 108 reconstructions are not finite" in told
    assert any("for the distance are not finite" in message for message in told)
    assert all((image == preview.BROKEN).all() for image in drawn[0][0][0].rows)


def _fails(
    datasets: dict[str, Path],
    match: str,
    kind: str = "pixels",
    reference: Path | None = None,
    **tables: Any,
) -> None:
    with pytest.raises(UserError, match=match) as caught:
        make_preview(_run(datasets[kind], **tables), datasets[kind], reference, _silent)
    assert "\n" not in str(caught.value)


def test_bad_recipes_are_told_before_training(
    datasets: dict[str, Path], reference: Path, tiny_protocol: Recipe
) -> None:
    _fails(
        datasets,
        "unknown protocol 'tinny'; did you mean 'tiny'",
        preview={**SMALL, "protocol": "tinny"},
    )
    _fails(
        datasets,
        "distance_samples 1: a distance needs at least 2",
        preview=_measured(distance_samples=1),
    )


def test_bad_references_are_told_before_training(
    datasets: dict[str, Path], reference: Path, tiny_protocol: Recipe, tmp_path: Path
) -> None:
    _fails(datasets, "preview.distance_samples needs --reference", preview=_measured())
    _fails(datasets, "no such reference", reference=tmp_path / "gone.npz", preview=_measured())
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    _fails(datasets, "not a readable .npz", reference=tmp_path / "broken.npz", preview=_measured())
    _fails(
        datasets,
        "measured with extractor tiny",
        reference=reference,
        preview=_measured(protocol="embedded"),
    )


def test_a_vae_that_is_gone_is_told_before_training(vae: VaeInfo, tmp_path: Path) -> None:
    shutil.copytree(vae.id, tmp_path / "vae")
    scenes.make_dataset(
        tmp_path / "data", Layout.MOMENTS, vae.model_copy(update={"id": str(tmp_path / "vae")})
    )
    shutil.rmtree(tmp_path / "vae")
    _fails({"data": tmp_path / "data"}, str(tmp_path / "vae"), kind="data")


def test_warnings_are_told_once_and_early(
    datasets: dict[str, Path], reference: Path, tiny_protocol: Recipe
) -> None:
    told: list[str] = []
    run = _run(
        datasets["pixels"], preview=_measured(distance_samples=5), objective={"label_drop": 0.0}
    )
    shown = make_preview(run, datasets["pixels"], reference, told.append)
    assert [message.split(":")[0] for message in told] == [
        "previews with guidance",
        "5 preview samples (preview.distance_samples) give a covariance of rank 4 in 5 dimensions; "
        "use more than 5 for a distance that can be compared",
    ]
    shown(scenes.trained_model(run))
    assert len(told) == 2
    make_preview(_run(datasets["pixels"]), datasets["pixels"], reference, told.append)
    assert "--reference is not used" in told[2]


def test_a_batch_is_one_that_training_has_memory_for(datasets: dict[str, Path]) -> None:
    def size(batch: int, accumulate: int, grid: int, distance: int = 0) -> int:
        train = {"steps": 9, "batch_size": batch, "accumulate": accumulate}
        run = _run(datasets["pixels"], train=train, preview={**SMALL, "distance_samples": distance})
        return preview.batch_size(run.recipe, grid)

    assert size(256, 1, grid=80) == 40, "80 in two batches of one size"
    assert size(256, 1, grid=80, distance=5000) == 64
    assert size(256, 8, grid=80) == 27
    assert size(4, 1, grid=3) == 3
