"""Inpainting of any number of images in constant memory.

A slot is a place in a batch. A slot whose search has stopped takes the next image. Results come in order.
"""

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped, UInt32

from dcgan_jax.images.inputs import check_hole_fits, check_images, check_known_values, single_key
from dcgan_jax.inpainting import kept
from dcgan_jax.inpainting.config import InpaintConfig, default_config
from dcgan_jax.inpainting.inpaint import check_config, inpaint_batch
from dcgan_jax.inpainting.objective import Problem
from dcgan_jax.inpainting.result import InpaintResult, assemble
from dcgan_jax.inpainting.search import Found, Optimizer, Search, finish, init, step
from dcgan_jax.inpainting.starts import set_up
from dcgan_jax.parallel.sharding import spread
from dcgan_jax.priors.labels import check_labels
from dcgan_jax.priors.prior import Prior


def inpaint_stream(
    prior: Prior,
    pairs: Iterable[tuple],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    batch_size: int = 64,
    optimizer: Optimizer = None,
    programs: Path | None = None,
) -> Iterator[InpaintResult]:
    """Completes any number of images, `batch_size` at a time, and yields one result for each, in order.

    Without `config.tolerance`, whole batches are searched. With it, a search that stops early makes room for the next
    image, and `config.patience` steps are done at a time. The device searches while the caller works on earlier
    results. The result of an image equals, bit for bit, the result of `inpaint` with a batch of this many images.

    Args:
        prior: see `inpaint`.
        pairs: tuples (image [h, w, c], hole [h, w]), (image, hole, key) or (image, hole, key, label). Key and label may
            be None. The images are all float in [−1, 1], or all uint8. One batch is read ahead. At most four batches of
            results wait for an earlier image whose search takes longer.
        key: random key. Image i uses fold_in(key, i) if its tuple has no key.
        config: see `inpaint`.
        batch_size: number of slots. It is rounded up to a multiple of the number of local devices. Fewer images take
            fewer slots.
        optimizer: see `inpaint`.
        programs: a folder that keeps compiled programs for later processes, on this kind of processor alone. Whoever
            can write to it can run code in them. It is used for DCGANs on one device, without tolerance or optimiser.

    Yields:
        The `InpaintResult` of one image: NumPy arrays without the batch axis.

    Raises:
        ValueError: an image, hole, key or label is wrong; the message gives its position. The results of earlier images
            are yielded first. Errors of `pairs` itself are raised in the same way.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> for item in dj.inpaint_stream(prior, pairs, jax.random.key(0)):  # doctest: +SKIP
        ...     save(item.images)
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it takes 1 or more")
    config, key = default_config(prior) if config is None else config, single_key(key)
    check_config(prior, config)
    ahead = _Ahead(pairs, prior, key)
    devices = len(jax.local_devices())
    ahead.read(_multiple(batch_size, devices))
    count = _multiple(len(ahead.waiting), devices)
    if ahead.waiting and config.tolerance:
        yield from _search_slots(prior, config, optimizer, key, ahead, count)
    elif ahead.waiting:
        folder = programs if optimizer is None else None
        yield from _search_batches(prior, config, optimizer, key, ahead, count, folder)
    if ahead.failure is not None:
        raise ahead.failure


_EMPTY = -1
_WAITING = 4  # batches of results that may wait for an earlier image


class _Item(NamedTuple):
    """An image to complete. The slots of a batch are one `_Item` with a leading axis."""

    number: Int[Array | np.ndarray, ""]  # position in `pairs`; `_EMPTY` in an empty slot
    image: Shaped[Array | np.ndarray, "h w c"]
    hole: Bool[Array | np.ndarray, "h w"]
    own_key: UInt32[Array | np.ndarray, " k"]  # data of the image's own key; zeros if it has none
    has_key: Bool[Array | np.ndarray, ""]  # whether the image has its own key
    label: Int[Array | np.ndarray, ""]  # −1 for none


class _Ahead:
    """Reads and checks items ahead. An error waits in `failure` until the earlier items are done."""

    def __init__(self, pairs: Iterable[tuple], prior: Prior, key: PRNGKeyArray) -> None:
        self.waiting: deque[_Item] = deque()
        self.failure: Exception | None = None
        self._rest, self._shape, self._key, self._type = enumerate(pairs), prior.image_shape, key, None
        self._prior = prior
        self._no_key = np.zeros_like(jax.random.key_data(key))

    def read(self, count: int) -> None:
        """Reads items until `count` items are waiting or none is left."""
        try:
            while self.failure is None and len(self.waiting) < count:
                self.waiting.append(self._check(*next(self._rest)))
        except StopIteration:
            pass
        except Exception as failure:
            self.failure = failure

    def _check(self, i: int, pair: Sequence[Any]) -> _Item:
        if len(pair) not in (2, 3, 4):
            raise ValueError(
                f"item {i} of `pairs` has {len(pair)} parts; it takes (image, hole), (image, hole, key) or "
                "(image, hole, key, label)"
            )
        image, hole = np.asarray(pair[0]), np.asarray(pair[1])
        name = f"image {i} of `pairs`"
        check_images(image, self._shape, name=name, taker="this prior")
        self._type = self._type or image.dtype
        if image.dtype != self._type:
            raise ValueError(f"{name} is {image.dtype}, but the first is {self._type}: give all images one type")
        check_hole_fits(hole, self._shape[:2], name=f"hole {i} of `pairs`")
        check_known_values(image, hole, name=name)
        own = pair[2] if len(pair) > 2 else None
        data, has_key = self._no_key, own is not None
        if own is not None:
            own = single_key(own, self._key, name=f"key {i} of `pairs`")
            data = np.asarray(jax.random.key_data(own))
        label = -1
        if len(pair) > 3 and pair[3] is not None:
            try:
                label = check_labels(self._prior.num_classes, pair[3], 1)[0]
            except ValueError as error:
                raise ValueError(f"label {i} of `pairs`: {error}") from None
        return _Item(np.asarray(i, np.int32), image, hole, data, np.asarray(has_key), np.asarray(label, np.int32))


class _Stopped(NamedTuple):
    """An image whose search has stopped, before its refinement and blend."""

    item: _Item
    searches: Search  # with a leading axis for the restarts


def _search_batches(
    prior: Prior,
    config: InpaintConfig,
    optimizer: Optimizer,
    key: PRNGKeyArray,
    ahead: _Ahead,
    count: int,
    programs: Path | None,
) -> Iterator[InpaintResult]:
    """Searches one batch after the other. All searches take the same number of steps."""
    last: list[InpaintResult] = []
    while ahead.waiting:
        images = min(count, len(ahead.waiting))
        slots = _stack([ahead.waiting.popleft() for _ in range(images)], count)
        prior, slots = spread(prior, slots)
        labels = slots.label if prior.num_classes else None
        arguments = prior, slots.image, slots.hole, _slot_keys(key, slots), config
        if programs is None:
            output = inpaint_batch(*arguments, optimizer, labels)
        else:
            output = kept.call(programs, *arguments, labels)
        yield from last  # while the device is at work
        ahead.read(count)
        last = _rows(output, images)
    yield from last


def _search_slots(
    prior: Prior, config: InpaintConfig, optimizer: Optimizer, key: PRNGKeyArray, ahead: _Ahead, count: int
) -> Iterator[InpaintResult]:
    """Searches in `count` slots. A search that stops makes room for the next image.

    Stopped searches are refined and blended together, as many at a time as there are slots.
    """
    slots = _empty_slots(ahead.waiting[0], count)
    _, started = jax.eval_shape(lambda: _start(prior, config, optimizer, key, slots))
    searches = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), started)
    slots, fresh = _fill(slots, ahead.waiting)
    stopped: deque[_Stopped] = deque()
    finishing: tuple[InpaintResult, list[int]] | None = None
    finished: dict[int, InpaintResult] = {}
    following = 0
    while True:
        busy, running = slots.number != _EMPTY, None
        if busy.any():
            prior, (on_device, fresh, searches) = spread(prior, (slots, fresh, searches))
            steps = min(config.patience, max(config.num_steps, 1))
            searches, running = _advance(prior, config, optimizer, key, on_device, fresh, searches, steps)
        if finishing is not None:  # while the device is at work
            output, numbers = finishing
            finished |= zip(numbers, _rows(output, len(numbers)), strict=True)
            finishing = None
            while following in finished:
                yield finished.pop(following)
                following += 1
        if running is not None:
            ahead.read(count)
            gone = busy & ~np.asarray(running)
            for place in np.flatnonzero(gone):
                stopped.append(_Stopped(jax.tree.map(lambda x, i=place: x[i], slots), _row(searches, place)))
            slots = slots._replace(number=np.where(gone, _EMPTY, slots.number))
            full = len(finished) + len(stopped) >= _WAITING * count and (slots.number != _EMPTY).any()
            slots, fresh = _fill(slots, deque() if full else ahead.waiting)
        elif not stopped:
            return
        if len(stopped) >= count or (stopped and not (slots.number != _EMPTY).any()):
            several = [stopped.popleft() for _ in range(min(count, len(stopped)))]
            done = _stack([one.item for one in several], count)
            rows = [one.searches for one in several]
            ended = _stack_on_device([*rows, *rows[:1] * (count - len(rows))])
            prior, (done, ended) = spread(prior, (done, ended))
            finishing = _finish(prior, config, key, done, ended), [int(one.item.number) for one in several]


def _empty_slots(item: _Item, count: int) -> _Item:
    slots = jax.tree.map(lambda x: np.zeros((count, *x.shape), x.dtype), item)
    return slots._replace(number=np.full(count, _EMPTY, np.int32))


def _stack(items: list[_Item], count: int) -> _Item:
    """Puts items into the first of `count` slots. The other slots are empty."""
    slots, _ = _fill(_empty_slots(items[0], count), deque(items))
    return slots


def _fill(slots: _Item, waiting: deque[_Item]) -> tuple[_Item, Bool[np.ndarray, " b"]]:
    """Puts waiting images into empty slots. Works on a copy, because the device may still read the arrays.

    Returns:
        The slots, and for each slot whether its image is new.
    """
    slots, fresh = jax.tree.map(np.copy, slots), np.zeros(len(slots.number), bool)
    for place in np.flatnonzero(slots.number == _EMPTY)[: len(waiting)]:
        for field, value in zip(slots, waiting.popleft(), strict=True):
            field[place] = value
        fresh[place] = True
    return slots, fresh


def _rows(result: InpaintResult, count: int) -> list[InpaintResult]:
    """Returns the first results of a batch as separate results on the host."""
    rows = jax.device_get(result)
    return [jax.tree.map(lambda x, i=i: np.array(x[i]), rows) for i in range(count)]


@jax.jit
def _row(tree: Any, place: Int[Array | np.ndarray, ""]) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False), tree)


@jax.jit
def _stack_on_device(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *rows: jnp.stack(rows), *trees)


def _start(
    prior: Prior, config: InpaintConfig, optimizer: Optimizer, key: PRNGKeyArray, slots: _Item
) -> tuple[Problem, Search]:
    """Returns the problems of the slots, and the initial states of their searches."""
    labels = jnp.asarray(slots.label)
    problems, starts = set_up(prior, config, slots.image, slots.hole, _slot_keys(key, slots), labels)
    return problems, jax.vmap(jax.vmap(lambda start: init(config, start, optimizer)))(starts)


@jax.jit
def _slot_keys(key: PRNGKeyArray, slots: _Item) -> PRNGKeyArray:
    def one(slot: _Item) -> PRNGKeyArray:
        own = jax.random.wrap_key_data(jnp.asarray(slot.own_key), impl=jax.random.key_impl(key))
        return jnp.where(slot.has_key, own, jax.random.fold_in(key, slot.number))

    return jax.vmap(one)(slots)


@functools.partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnames="searches")
def _advance(
    prior: Prior,
    config: InpaintConfig,
    optimizer: Optimizer,
    key: PRNGKeyArray,
    slots: _Item,
    fresh: Bool[Array | np.ndarray, " b"],
    searches: Search,
    steps: int,
) -> tuple[Search, Bool[Array, " b"]]:
    """Starts the searches of fresh slots, and does `steps` steps in all slots.

    `steps` is not static, because XLA compiles a loop of one static step differently. It would round differently from
    `inpaint`.

    Returns:
        The searches, and for each slot whether a search is still running.
    """
    problems, started = _start(prior, config, optimizer, key, slots)

    def one(problem: Problem, started: Search, fresh: Array, searches: Search) -> Search:
        searches = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), started, searches)
        advance = jax.vmap(lambda search: step(prior, config, problem, search, optimizer))
        return jax.lax.fori_loop(0, steps, lambda _, searches: advance(searches), searches)

    searches = jax.vmap(one)(problems, started, jnp.asarray(fresh), searches)
    return searches, jnp.any(searches.running, axis=1)


@functools.partial(jax.jit, static_argnames="config")
def _finish(prior: Prior, config: InpaintConfig, key: PRNGKeyArray, slots: _Item, searches: Search) -> InpaintResult:
    """Refines and blends the results of searches that have stopped."""
    labels = jnp.asarray(slots.label)
    problems, _ = set_up(prior, config, slots.image, slots.hole, _slot_keys(key, slots), labels)

    def one(problem: Problem, searches: Search) -> Found:
        return jax.vmap(lambda search: finish(prior, config, problem, search))(searches)

    return assemble(prior, config, slots.image, slots.hole, problems, jax.vmap(one)(problems, searches))


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of
