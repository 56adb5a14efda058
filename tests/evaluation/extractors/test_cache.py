"""A network is loaded once a process, also when several threads ask for it at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from evaluation import extractors
from evaluation.extractors import Weights, cache
from schemas.errors import UserError
from tests.evaluation.tiny import TinyExtractor

THREADS = 8


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Weights]]:
    """How `counted`, an extractor of the table while the test lasts, was loaded."""
    found: list[tuple[str, Weights]] = []

    def load(prepare: str, weights: Weights) -> TinyExtractor:
        found.append((prepare, weights))
        time.sleep(0.05)  # time for other threads to come
        return TinyExtractor()

    entry = extractors.Entry(load, TinyExtractor.dim)
    monkeypatch.setitem(extractors.EXTRACTORS, "counted", entry)  # type: ignore[arg-type]
    cache._extractor.cache_clear()
    return found


def test_threads_that_ask_at_once_get_the_same_one(loaded: list[tuple[str, Weights]]) -> None:
    ready = threading.Barrier(THREADS)

    def ask(_: int) -> object:
        ready.wait(10)
        return cache.extractor("counted")

    with ThreadPoolExecutor(THREADS) as pool:
        got = list(pool.map(ask, range(THREADS)))
    assert len(loaded) == 1
    assert all(one is got[0] for one in got)


def test_another_way_or_other_weights_are_another_network(
    loaded: list[tuple[str, Weights]],
) -> None:
    asked = [("", Weights()), ("resized", Weights()), ("", Weights("a")), ("", Weights("a", "1"))]
    networks = [cache.extractor("counted", *each) for each in asked]
    assert loaded == asked
    assert [cache.extractor("counted", *each) for each in asked] == networks
    assert loaded == asked, "none was loaded twice"


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown extractor 'embeded'; did you mean 'embedded'"):
        cache.extractor("embeded")
