"""Makes the batches of the next steps in a thread while a step runs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 2  # the second evens out reads that now and then take longer than a step


class Feed(Generic[T]):
    """Makes a row of items in one thread, a few ahead of the caller, and hands them over in order.

    An error of the thread is raised where its item is asked for. The end of the block stops the thread: it finishes
    the item that it is making, and the block waits for that.

    Args:
        ahead: how many items are made before they are asked for, 1 or more. Memory holds as many, and the caller's own.

    Example:
        >>> with Feed() as feed:
        ...     feed.start(lambda step: step**2, range(3))
        ...     list(feed)
        [0, 1, 4]
    """

    def __init__(self, ahead: int = AHEAD):
        self._ahead = ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._items: deque[Future[T]] = deque()
        self._rest: Iterator[tuple[Callable[[int], T], int]] = iter(())

    def __enter__(self) -> "Feed[T]":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)

    def start(self, make: Callable[[int], T], steps: Iterable[int]) -> None:
        """Begins a new row of items; what is left of the row before is dropped.

        Args:
            make: returns the item of a step, from the step alone. The thread calls it for one step after the other.
                An item must not be changed afterwards: JAX may use an array's memory as it is.
            steps: the steps of the row; no other is made.
        """
        for item in self._items:
            item.cancel()
        self._items.clear()
        self._rest = ((make, step) for step in steps)
        self._make(self._ahead)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._make(self._ahead + 1)  # before the wait, so that the thread always has work
        if not self._items:
            raise StopIteration
        item = self._items[0].result()
        self._items.popleft()
        return item

    def _make(self, count: int) -> None:
        while len(self._items) < count and (call := next(self._rest, None)):
            self._items.append(self._thread.submit(_call, *call))


def _call(make: Callable[[int], T], step: int) -> T:
    try:
        return make(step)
    except StopIteration as error:  # in `__next__` it would end the row without a word
        raise RuntimeError(f"the item of step {step} could not be made: StopIteration") from error
