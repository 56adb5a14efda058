import logging
import threading

import grpc
import pytest

from pipelines.runners.beam_noise import quiet_log, quiet_threads


def test_warnings_are_silent_inside_only(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_log():
        logging.getLogger("x").warning("inside")
        logging.getLogger("x").error("grave")
    logging.getLogger("x").warning("outside")
    assert [record.message for record in caplog.records] == ["grave", "outside"]


def test_threads_that_lose_their_worker_are_silent_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda arguments: told.append(str(arguments.exc_value))
    )
    with quiet_threads():
        for error in (
            grpc.RpcError("lost"),
            RuntimeError("Worker subprocess exited with return code 137"),
            KeyError(1),
        ):
            thread = threading.Thread(target=lambda error=error: (_ for _ in ()).throw(error))
            thread.start()
            thread.join()
    assert told == ["1"]
