"""When more steps are told to be worse."""

import pytest

from evaluation.report.step_order import worse_with_more_steps
from schemas.config import ObjectiveConfig
from tests.evaluation.results import result


def test_the_clearest_case_is_told_in_one_line():
    told = worse_with_more_steps(
        [
            result(5, distance=158.0),
            result(20, distance=168.0),
            result(100, distance=198.0),
            result(1, distance=368.0),
        ],
        ObjectiveConfig(),
    )
    assert told is not None
    assert told.startswith("100 steps are worse than 20 (FD(tiny) 198 and 168, cfg 1)")
    assert told.endswith("train longer, or with objective.time=uniform (docs/training.md)")
    assert "\n" not in told


def test_a_run_with_uniform_t_is_not_told_to_take_it_and_a_diffusion_nothing():
    worse = [result(20, distance=10.0), result(100, distance=20.0)]
    told = worse_with_more_steps(worse, ObjectiveConfig(time="uniform"))
    assert told is not None
    assert told.endswith("undertrained; train longer")
    assert worse_with_more_steps(worse, ObjectiveConfig(kind="diffusion", time="uniform")) is None


@pytest.mark.parametrize(
    "results",
    [
        [],
        [result(20, distance=10.0)],
        [result(100, distance=10.0), result(20, distance=11.0), result(5, distance=30.0)],
        [
            result(100, distance=10.3),
            result(20, distance=10.0),
        ],  # within what another seed would do
        [result(100, cfg=4.0, distance=30.0), result(20, cfg=1.0, distance=10.0)],  # other guidance
    ],
    ids=["nothing", "one", "better", "as good", "other guidance"],
)
def test_nothing_is_told_where_more_steps_do_no_harm(results):
    assert worse_with_more_steps(results, ObjectiveConfig()) is None
