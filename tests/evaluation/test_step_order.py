"""When more steps are told to be worse."""

import pytest

from evaluation.step_order import worse_with_more_steps
from tests.evaluation.test_results import result


def test_the_clearest_case_is_told_in_one_line():
    told = worse_with_more_steps(
        [result(5, distance=158.0), result(20, distance=168.0), result(100, distance=198.0), result(1, distance=368.0)]
    )
    assert told is not None
    assert told.startswith("100 steps are worse than 20 (FD(tiny) 198 and 168, cfg 1)")
    assert "velocities near the data" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "results",
    [
        [],
        [result(20, distance=10.0)],
        [result(100, distance=10.0), result(20, distance=11.0), result(5, distance=30.0)],
        [result(100, distance=10.3), result(20, distance=10.0)],  # within what another seed would do
        [result(100, cfg=4.0, distance=30.0), result(20, cfg=1.0, distance=10.0)],  # other guidance
    ],
    ids=["nothing", "one", "better", "as good", "other guidance"],
)
def test_nothing_is_told_where_more_steps_do_no_harm(results):
    assert worse_with_more_steps(results) is None
