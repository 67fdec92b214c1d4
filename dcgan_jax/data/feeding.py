"""Prepares the batches of the next steps in a thread while a step runs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 2  # items made ahead; the second one helps when a read takes longer than a step


class Feed(Generic[T]):
    """Makes a sequence of items in a thread, a few items ahead of the caller, and yields them in order.

    An error in the thread is raised when the caller asks for the item. At the end of the block the thread finishes its
    current item and stops.

    Args:
        ahead: number of items made before the caller asks for them, 1 or more. Memory also holds the caller's item.

    Example:
        >>> with Feed() as feed:
        ...     feed.start(lambda step: step**2, range(3))
        ...     list(feed)
        [0, 1, 4]
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._items: deque[Future[T]] = deque()
        self._rest: Iterator[tuple[Callable[[int], T], int]] = iter(())

    def __enter__(self) -> "Feed[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def start(self, make: Callable[[int], T], steps: Iterable[int]) -> None:
        """Begins a new sequence of items, and drops the rest of the previous sequence.

        Args:
            make: step -> item. The item must depend only on the step. The thread calls `make` for one step after the
                other. Do not change an item afterwards: JAX may use the memory of its arrays.
            steps: the steps whose items are made.
        """
        for item in self._items:
            item.cancel()
        self._items.clear()
        self._rest = ((make, step) for step in steps)
        self._make(self._ahead)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._make(self._ahead + 1)  # before waiting, so that the thread always has work
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
    except StopIteration as error:  # it would end the sequence silently in `__next__`
        raise RuntimeError(f"the item of step {step} could not be made: StopIteration") from error
