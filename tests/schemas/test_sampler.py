"""Names, counts and command lines of sampler settings, which directories and manifests hold."""

from dataclasses import FrozenInstanceError, replace

import pytest

from schemas.sampler import TOLERANCE, SamplerConfig, SamplerSettings

PLAIN = SamplerSettings("euler", 20, 1.5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (PLAIN, "euler20-cfg1.5"),
        (SamplerSettings("sde-sbdm", 3, 1.0, seed=7), "sde-sbdm3-cfg1"),
        (SamplerSettings("dopri5", 3, 4.0), "dopri5-tol1e-05-cfg4"),
        (
            SamplerSettings("heun", 9, 2.0, 3, (0.125, 0.9), 2.5),
            "heun9-cfg2-from0.125to0.9-shift2.5-ch3",
        ),
    ],
)
def test_names_of_sample_sets_stay(settings: SamplerSettings, name: str):
    """Directories are found again by them."""
    assert settings.name == name


@pytest.mark.parametrize(
    ("solver", "cfg", "nfe"),
    [("euler", 1.0, 20), ("euler", 1.5, 40), ("heun", 1.0, 40), ("rk4", 0.0, 160)],
)
def test_guidance_doubles_the_evaluations_of_every_step(solver: str, cfg: float, nfe: int):
    assert replace(PLAIN, solver=solver, cfg=cfg).nfe == nfe


def test_a_solver_that_chooses_its_steps_has_one_form():
    given = SamplerSettings("dopri5", 50, 2.0, shift=3.0)
    assert given == SamplerSettings("dopri5", 0, 2.0, tolerance=TOLERANCE)
    assert (given.steps, given.shift, given.tolerance) == (0, 1.0, 1e-5)
    assert given.nfe is None
    assert given.effort == "tolerance 1e-05"
    with pytest.raises(ValueError, match="a tolerance is for dopri5; euler takes steps"):
        replace(PLAIN, tolerance=0.1)
    with pytest.raises(FrozenInstanceError):
        given.steps = 3  # type: ignore[misc]


def test_a_recipe_says_all_but_tolerance_and_seed():
    config = SamplerConfig(
        solver="heun", steps=9, cfg=2.0, cfg_channels=3, cfg_interval=(0.1, 0.9), shift=2.0
    )
    assert config.settings() == SamplerSettings("heun", 9, 2.0, 3, (0.1, 0.9), 2.0)
    assert config.settings(solver="dopri5", tolerance=0.1, seed=4) == SamplerSettings(
        "dopri5", 0, 2.0, 3, (0.1, 0.9), tolerance=0.1, seed=4
    )


def test_words_tell_where_a_recipe_differs():
    settings = SamplerSettings("heun", 9, 2.0, 3, (0.1, 0.9), 2.5, seed=4)
    assert settings.words() == {
        "--steps": "9",
        "--solver": "heun",
        "--cfg": "2",
        "--seed": "4",
    }
    assert settings.further_words(SamplerConfig()) == {
        "--cfg-channels": "3",
        "--cfg-interval": "0.1,0.9",
        "--shift": "2.5",
    }
    same = SamplerConfig(cfg_channels=3, cfg_interval=(0.1, 0.9), shift=2.5)
    assert settings.further_words(same) == {"--cfg-channels": "3"}
    adaptive = replace(settings, solver="dopri5", tolerance=0.001)
    assert adaptive.words()["--tolerance"] == "0.001"
    assert "--steps" not in adaptive.words()
    assert "--shift" not in adaptive.further_words(same), "it has none"


def test_remarks_say_what_is_not_as_usual():
    assert PLAIN.remarks == []
    assert SamplerSettings("heun", 9, 2.0, 3, (0.1, 0.9), 2.5).remarks == [
        "shift 2.5",
        "guidance on the first 3 channels",
        "guidance from t = 0.1 to 0.9",
    ]
    assert SamplerSettings("dopri5", 0, 1.0, tolerance=0.01).remarks == ["tolerance 0.01"]
