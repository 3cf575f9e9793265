import contextlib
import threading
import time

import numpy as np
import pytest

from lsm.data import Prefetcher


def square(step: int) -> dict[str, np.ndarray]:
    return {"x": np.array([step, step**2])}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("ahead", [1, 2, 8])
def test_batches_come_in_order(workers, ahead):
    with Prefetcher(square, range(5, 60), workers=workers, ahead=ahead) as prefetcher:
        assert [batch["x"][0] for batch in prefetcher] == list(range(5, 60))
        with pytest.raises(StopIteration):
            next(prefetcher)


def test_slow_first_batch_does_not_change_the_order():
    def batch_at(step):
        time.sleep(0.05 if step == 0 else 0)
        return square(step)

    with Prefetcher(batch_at, range(10), workers=3) as prefetcher:
        assert [batch["x"][0] for batch in prefetcher] == list(range(10))


def test_an_empty_range_ends_at_once():
    with Prefetcher(square, range(0)) as prefetcher:
        assert list(prefetcher) == []


def test_look_ahead_is_bounded():
    computed = []

    def batch_at(step):
        computed.append(step)
        return square(step)

    with Prefetcher(batch_at, range(1000), workers=2, ahead=4) as prefetcher:
        for taken in range(1, 20):
            next(prefetcher)
            time.sleep(0.002)
            assert len(computed) <= taken + 4


def test_an_exception_comes_at_its_step_and_ends_the_iteration():
    def batch_at(step):
        if step == 3:
            raise ValueError("step 3 is bad")
        return square(step)

    with Prefetcher(batch_at, range(10), workers=2) as prefetcher:
        assert [next(prefetcher)["x"][0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="step 3 is bad"):
            next(prefetcher)
        with pytest.raises(StopIteration):
            next(prefetcher)


@pytest.mark.parametrize("workers", [1, 4])
def test_closing_does_not_wait_for_a_read_that_hangs(workers):
    never = threading.Event()
    prefetcher = Prefetcher(lambda step: never.wait() and {}, range(10), workers=workers)
    start = time.perf_counter()
    prefetcher.close()
    assert time.perf_counter() - start < 3
    never.set()


def test_closing_early_ends_the_threads():
    before = set(threading.enumerate())
    with Prefetcher(square, range(10**9), workers=2) as prefetcher:
        next(prefetcher)
        assert len(set(threading.enumerate()) - before) == 2
    assert set(threading.enumerate()) <= before


def test_what_is_waited_is_told_and_only_that():
    seconds = []

    @contextlib.contextmanager
    def waiting():
        start = time.perf_counter()
        yield
        seconds.append(time.perf_counter() - start)

    def slow(step):
        time.sleep(0.03)
        return square(step)

    with Prefetcher(slow, range(5), waiting=waiting) as prefetcher:
        for _ in prefetcher:
            pass
    assert 0.1 < sum(seconds) < 1  # five times 0.03 s, less what passed in between

    seconds.clear()
    with Prefetcher(square, range(5), waiting=waiting) as prefetcher:
        for _ in prefetcher:
            time.sleep(0.03)
    assert sum(seconds) < 0.1  # not the 0.15 s between the batches
