import logging

import pytest

from pipelines.quiet import quiet_log


def test_warnings_are_silent_inside_only(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_log():
        logging.getLogger("x").warning("inside")
        logging.getLogger("x").error("grave")
    logging.getLogger("x").warning("outside")
    assert [record.message for record in caplog.records] == ["grave", "outside"]
