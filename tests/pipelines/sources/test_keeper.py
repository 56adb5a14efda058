"""A few large things for many threads: made once, the last used are kept, failures are not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.sources.keeper import Keeper

THREADS = 8


class Maker:
    """Makes things, and knows how many of each."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def of(self, keeper: Keeper, name: str) -> object:
        def make() -> object:
            self.made.append(name)
            return object()

        return keeper.get(name, make)


def test_one_thread_makes_what_all_get() -> None:
    keeper, made = Keeper(2), []
    ready = threading.Barrier(THREADS)
    others_wait = threading.Event()

    def make() -> object:
        others_wait.wait(0.2)  # nobody sets it: time for the others to come
        made.append(object())
        return made[-1]

    def get(_: int) -> object:
        ready.wait(10)
        return keeper.get("x", make)

    with ThreadPoolExecutor(THREADS) as pool:
        got = list(pool.map(get, range(THREADS)))
    assert len(made) == 1
    assert all(one is made[0] for one in got)


def test_a_thing_in_the_making_holds_up_no_other() -> None:
    keeper, slow = Keeper(2), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(keeper.get, "slow", lambda: slow.wait(10))
        assert keeper.get("quick", lambda: "made") == "made"
        assert not waiting.done()
        slow.set()
        assert waiting.result(10) is True


def test_what_was_used_last_is_kept() -> None:
    keeper, maker = Keeper(2), Maker()
    first = maker.of(keeper, "a")
    for name in ("b", "a", "c"):
        maker.of(keeper, name)
    assert maker.of(keeper, "a") is first
    assert maker.made == ["a", "b", "c"]
    maker.of(keeper, "b")
    assert maker.made == ["a", "b", "c", "b"], "made longest ago, and not used since"


def test_what_could_not_be_made_is_tried_again() -> None:
    keeper, maker = Keeper(2), Maker()

    def fail() -> object:
        raise OSError("not there")

    for _ in range(2):
        with pytest.raises(OSError, match="not there"):
            keeper.get("a", fail)
    maker.of(keeper, "a")
    assert maker.made == ["a"]
