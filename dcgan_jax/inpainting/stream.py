"""Inpainting any number of images in constant memory: a batch whose slots are kept busy, results in order."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped, UInt32

from dcgan_jax.images.inputs import check_hole_fits, check_images, check_known_values, single_key
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import check_config, inpaint_batch
from dcgan_jax.inpainting.result import InpaintResult, complete, known_part
from dcgan_jax.inpainting.search import end_search, init_search, most_steps, search_step
from dcgan_jax.inpainting.starts import draw_starts
from dcgan_jax.parallel.sharding import spread
from dcgan_jax.priors.labels import check_labels
from dcgan_jax.priors.prior import Prior, image_shape


def inpaint_stream(
    prior: Prior,
    pairs: Iterable[tuple],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    batch_size: int = 64,
    optimizer: optax.GradientTransformation | None = None,
) -> Iterator[InpaintResult]:
    """Completes an endless or finite row of images, `batch_size` at a time, and yields a result for each in order.

    Every slot of the batch is kept busy: where `config.tolerance` lets a search stop early, the next image takes its
    slot, and nothing waits for the slowest. The device searches while the caller works on the results of before. One
    program is compiled, which does all steps, or with a tolerance `config.patience` steps a call. What it finds is what
    `inpaint` finds in a batch of the same number of slots, whatever else is in the batch.

    Args:
        prior: see `inpaint`.
        pairs: of (image [h, w, c], hole [h, w]), or (image, hole, key) to give an image a key of its own, or
            (image, hole, key, label), of which key and label may be None, to tell its class; all images float in
            [−1, 1] or all uint8. As many as there are slots are read ahead, and results that wait for a slow
            image before them are at most four times as many.
        key: image i uses fold_in(key, i) where it brings no key.
        config: see `inpaint`.
        batch_size: slots; on several local devices, up to the next multiple of their number. A shorter row gets as many
            as it has images.
        optimizer: see `inpaint`.

    Yields:
        `InpaintResult` of one image: NumPy arrays without the batch axis.

    Raises:
        ValueError: an image or a hole does not fit; the message gives its place in the row. The results of the images
            before it are yielded first, as they are where `pairs` itself raises.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> for item in dj.inpaint_stream(prior, pairs, jax.random.key(0)):  # doctest: +SKIP
        ...     save(item.images)
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it takes 1 or more")
    config, key = InpaintConfig() if config is None else config, single_key(key)
    check_config(prior, config)
    ahead = _Ahead(pairs, prior, key)
    devices = len(jax.local_devices())
    ahead.read(_multiple(batch_size, devices))
    if ahead.waiting:
        yield from _search_all(prior, config, optimizer, key, ahead, _multiple(len(ahead.waiting), devices))
    if ahead.failure is not None:
        raise ahead.failure


_EMPTY = -1
_WAITING = 4  # batches of results that may wait for a slow image before them


class _Item(NamedTuple):
    """An image to complete; as slots, with one axis more."""

    number: Int[Array | np.ndarray, ""]  # its place in the row; `_EMPTY` in a slot that has none
    image: Shaped[Array | np.ndarray, "h w c"]
    hole: Bool[Array | np.ndarray, "h w"]
    own_key: UInt32[Array | np.ndarray, " k"]  # the data of the key that it brings
    has_key: Bool[Array | np.ndarray, ""]  # whether it brings one
    label: Int[Array | np.ndarray, ""]  # −1 where it brings none


class _Ahead:
    """Reads and checks items ahead. What goes wrong there is kept until those before it are done."""

    def __init__(self, pairs, prior, key):
        self.waiting: deque[_Item] = deque()
        self.failure: Exception | None = None
        self._rest, self._shape, self._key, self._type = enumerate(pairs), image_shape(prior), key, None
        self._prior = prior
        self._no_key = np.zeros_like(jax.random.key_data(key))

    def read(self, count: int) -> None:
        """Reads until `count` are waiting or there are no more."""
        try:
            while self.failure is None and len(self.waiting) < count:
                self.waiting.append(self._check(*next(self._rest)))
        except StopIteration:
            pass
        except Exception as failure:
            self.failure = failure

    def _check(self, i, pair) -> _Item:
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
            raise ValueError(f"{name} is {image.dtype} and the first is {self._type}: make them one type")
        check_hole_fits(hole, self._shape[:2], name=f"hole {i} of `pairs`")
        check_known_values(image, hole, name=name)
        data, has_key = self._no_key, len(pair) > 2 and pair[2] is not None
        if has_key:
            own = single_key(pair[2], self._key, name=f"key {i} of `pairs`")
            data = np.asarray(jax.random.key_data(own))
        label = -1
        if len(pair) > 3 and pair[3] is not None:
            try:
                label = check_labels(self._prior.num_classes, pair[3], 1)[0]
            except ValueError as error:
                raise ValueError(f"label {i} of `pairs`: {error}") from None
        return _Item(np.asarray(i, np.int32), image, hole, data, np.asarray(has_key), np.asarray(label, np.int32))


def _search_all(prior, config, optimizer, key, ahead: _Ahead, count) -> Iterator[InpaintResult]:
    """Searches in `count` slots until nothing waits and every slot is empty."""
    slots = jax.tree.map(lambda x: np.zeros((count, *x.shape), x.dtype), ahead.waiting[0])
    slots = slots._replace(number=np.full(count, _EMPTY, np.int32))
    searches = None
    if config.tolerance:
        started = jax.eval_shape(lambda: _start(prior, config, optimizer, key, slots))
        searches = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), started)
    finished: dict[int, InpaintResult] = {}
    following = 0

    def hand_out(output, leaving):
        nonlocal following
        rows = jax.device_get(output) if leaving else None
        for place, number in leaving:
            finished[number] = jax.tree.map(lambda x, place=place: np.array(x[place]), rows)
        while following in finished:
            yield finished.pop(following)
            following += 1

    slots, fresh = _fill(slots, ahead.waiting)
    last = None, []
    while (slots.number != _EMPTY).any():
        prior, (on_device, fresh, searches) = spread(prior, (slots, fresh, searches))
        if searches is None:  # all stop together: they are a batch
            keys = _slot_keys(key, on_device)
            labels = on_device.label if prior.num_classes else None
            output = inpaint_batch(prior, on_device.image, on_device.hole, keys, config, optimizer, labels)
            running = False
        else:
            steps = min(config.patience, most_steps(config))
            searches, output, running = _advance(prior, config, optimizer, key, on_device, fresh, searches, steps)
        yield from hand_out(*last)  # while the device is at work
        ahead.read(count)
        gone = (slots.number != _EMPTY) & ~np.asarray(running)
        last = output, [(place, int(slots.number[place])) for place in np.flatnonzero(gone)]
        slots = slots._replace(number=np.where(gone, _EMPTY, slots.number))
        full = len(finished) >= _WAITING * count and (slots.number != _EMPTY).any()
        slots, fresh = _fill(slots, deque() if full else ahead.waiting)
    yield from hand_out(*last)


def _fill(slots: _Item, waiting: deque[_Item]) -> tuple[_Item, Bool[np.ndarray, " b"]]:
    """Puts waiting images into empty slots, of a copy: the device may still read the arrays; says which are fresh."""
    slots, fresh = jax.tree.map(np.copy, slots), np.zeros(len(slots.number), bool)
    for place in np.flatnonzero(slots.number == _EMPTY)[: len(waiting)]:
        for field, value in zip(slots, waiting.popleft(), strict=True):
            field[place] = value
        fresh[place] = True
    return slots, fresh


def _start(prior, config, optimizer, key, slots: _Item):
    y, _ = known_part(config, slots.image, slots.hole)
    labels = jnp.asarray(slots.label)
    starts = draw_starts(prior, config, y, jnp.asarray(slots.hole), _slot_keys(key, slots), labels)
    return jax.vmap(jax.vmap(lambda start: init_search(prior, config, start, optimizer)))(starts)


@jax.jit
def _slot_keys(key, slots: _Item):
    def one(slot):
        own = jax.random.wrap_key_data(slot.own_key, impl=jax.random.key_impl(key))
        return jnp.where(slot.has_key, own, jax.random.fold_in(key, slot.number))

    return jax.vmap(one)(slots)


@functools.partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnames="searches")
def _advance(prior, config, optimizer, key, slots: _Item, fresh, searches, steps):
    """Starts the searches of fresh slots, does `steps` steps of all, and completes what they have come to.

    Their number is not static: XLA takes a loop of one step apart, and then rounds in another way than in `inpaint`.
    """
    y, weights = known_part(config, slots.image, slots.hole)

    def one(started, image, weights, fresh, searches):
        searches = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), started, searches)
        step = jax.vmap(lambda search: search_step(prior, config, image, weights, search, optimizer))
        searches = jax.lax.fori_loop(0, steps, lambda _, searches: step(searches), searches)
        return searches, jax.vmap(lambda search: end_search(prior, config, image, weights, search))(searches)

    searches, found = jax.vmap(one)(_start(prior, config, optimizer, key, slots), y, weights, fresh, searches)
    return searches, complete(prior, config, slots.image, slots.hole, y, found), jnp.any(searches.running, axis=1)


def _multiple(count, of):
    return -(-count // of) * of
