"""Items that a thread prepares ahead: their order, their number, errors, and the end of the thread."""

import signal
import threading
import weakref

import jax
import numpy as np
import pytest

from dcgan_jax.data import batch_indices, open_prepared
from dcgan_jax.data.feeding import Feed
from dcgan_jax.parallel import sharding


def feeding():
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not feeding()


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 5), range(20)])
def test_items_are_the_ones_a_loop_makes(steps, ahead):
    made = []
    with Feed(ahead) as feed:
        feed.start(lambda step: (made.append(step), -step)[1], steps)
        assert list(feed) == [-step for step in steps]
        assert next(feed, None) is None
    assert made == list(steps)


def test_batches_are_the_ones_a_loop_makes_and_do_not_change(digits):
    """All batches are kept, because on a CPU they may share memory with their source arrays."""
    images, mesh = open_prepared(digits).split("train"), sharding.data_mesh()
    indices = [batch_indices(t, 64, len(images), seed=1) for t in range(50)]
    with Feed() as feed:
        feed.start(lambda t: sharding.put_batch(mesh, images, indices[t]), range(50))
        batches = list(feed)
    for batch, which in zip(batches, indices, strict=True):
        assert isinstance(batch, jax.Array) and batch.sharding == sharding.along_batch(mesh)
        np.testing.assert_array_equal(batch, images[which])


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_items_exist_than_allowed(ahead):
    """After each item the thread makes as many items as it may, and never more."""

    class Item:
        pass

    made, alive, last = threading.Semaphore(0), weakref.WeakSet(), 20
    count = 0

    def make(step):
        item = Item()
        alive.add(item)
        made.release()
        return item

    with Feed(ahead) as feed:
        feed.start(make, range(last))
        for step in range(last):
            item = next(feed)
            while count < min(step + 1 + ahead, last):
                assert made.acquire(timeout=60)
                count += 1
            assert len(alive) <= ahead + 1 and not made.acquire(blocking=False)
            del item


def test_an_item_is_made_while_the_one_before_is_used():
    begun = [threading.Event() for _ in range(5)]
    with Feed() as feed:
        feed.start(lambda step: (begun[step].set(), step)[1], range(5))
        for step in feed:
            assert all(event.wait(60) for event in begun[step : step + 2])


class BadFile(Exception):
    pass


def test_an_error_is_raised_each_time_its_item_is_needed():
    def make(step):
        if step == 3:
            raise BadFile("3")
        return step

    with Feed() as feed:
        feed.start(make, range(9))
        assert [next(feed) for _ in range(3)] == [0, 1, 2]
        for _ in range(5):  # a later item never takes its place
            with pytest.raises(BadFile, match="3") as caught:
                next(feed)
            assert "make" in {entry.name for entry in caught.traceback}
        feed.start(make, range(4, 6))
        assert list(feed) == [4, 5]


def test_a_source_that_ends_early_is_an_error():
    source = iter(range(2))
    with Feed() as feed:
        feed.start(lambda step: next(source), range(5))
        assert [next(feed), next(feed)] == [0, 1]
        with pytest.raises(RuntimeError, match="the item of step 2 could not be made: StopIteration"):
            next(feed)


def test_a_new_start_drops_the_items_of_the_old_one():
    """Even while an old item is being made and others are queued."""
    begun, go_on = threading.Event(), threading.Event()
    made = []

    def old(step):
        made.append(("old", step))
        begun.set()
        assert go_on.wait(60)
        return "old", step

    def new(step):
        made.append(("new", step))
        return "new", step

    with Feed() as feed:
        feed.start(old, range(5, 20))
        assert begun.wait(60)
        feed.start(new, range(4, 7))
        go_on.set()
        assert list(feed) == [("new", step) for step in range(4, 7)]
    assert made == [("old", 5), *(("new", step) for step in range(4, 7))]


@pytest.mark.parametrize("error", [None, BadFile, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_leaving_the_block_ends_the_thread(taken, error):
    """Whatever the thread is doing: it finishes the item it has begun and starts no other."""
    made = []
    with pytest.raises(error or StopIteration):
        with Feed() as feed:
            feed.start(made.append, range(1_000_000))
            for _ in range(taken):
                next(feed)
            assert len(feeding()) == 1 and not feeding()[0].daemon
            raise error or StopIteration
    assert not feeding() and made == list(range(len(made))) and len(made) <= taken + 2


def test_ctrl_c_interrupts_the_wait_for_an_item():
    """The signal comes while the next item is still being made."""
    main, taken, interrupted, found = threading.get_ident(), threading.Event(), threading.Event(), []

    def handle(number, frame):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def make(step):
        if step == 3:
            assert taken.wait(60)
            for _ in range(1000):  # Python misses a signal that comes just before it starts to wait
                signal.pthread_kill(main, signal.SIGINT)
                if interrupted.wait(0.05):
                    break
        return step

    before = signal.signal(signal.SIGINT, handle)
    try:
        with pytest.raises(KeyboardInterrupt), Feed() as feed:
            feed.start(make, range(10))
            found += [next(feed) for _ in range(3)]
            taken.set()
            next(feed)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [0, 1, 2]
