"""Any number of images, in order, in constant memory, each as `inpaint` completes it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import arrays, tanh_prior

import dcgan_jax as dj
from dcgan_jax.inpainting import stream as stream_module

SIZE, BATCH, COUNT = 4, 8, 20  # eight: XLA's loops then process several numbers at once
KEY = jax.random.key(2)
CONFIG = dj.InpaintConfig(num_steps=5, learning_rate=0.2, window=3)
EARLY = dataclasses.replace(CONFIG, num_steps=40, tolerance=0.05, patience=4)  # stops at different steps

RNG = np.random.default_rng(0)
PRIOR = tanh_prior((SIZE, SIZE, 1))
IMAGES = RNG.uniform(-1, 1, (COUNT, SIZE, SIZE, 1)).astype(np.float32)
HOLES = RNG.random((COUNT, SIZE, SIZE)) < 0.4
KEYS = jnp.stack([jax.random.fold_in(KEY, i) for i in range(COUNT)])


ROWS = [[*range(8)], [*range(8, 16)], [*range(16, COUNT), 0, 1, 2, 3]]  # rows of the batches that `inpaint` completes


def stream(pairs, batch_size=BATCH, key=KEY, config=CONFIG):
    return dj.inpaint_stream(PRIOR, pairs, key, config, batch_size)


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 5, 2 * BATCH + 2])
def test_results_come_in_order_and_equal_inpaint(count):
    items = list(stream(zip(IMAGES[:count], HOLES[:count], strict=True)))
    assert len(items) == count
    for i, item in enumerate(items):
        # In a batch of the stream's shape, beside other images than in the stream.
        others = [j for j in range(COUNT) if j != i][: min(count, BATCH) - 1]
        rows = np.array([*others, i])
        expected = dj.inpaint(PRIOR, IMAGES[rows], HOLES[rows], KEYS[rows], CONFIG)
        for (name, value), row in zip(arrays(item).items(), arrays(expected).values(), strict=True):
            assert isinstance(value, np.ndarray | np.generic) and value.shape == row.shape[1:], name
            assert (value == np.asarray(row[-1])).all(), name


def test_each_image_may_have_its_own_key():
    pairs = [(IMAGES[0], HOLES[0], None), (IMAGES[1], HOLES[1], KEYS[7]), (IMAGES[2], HOLES[2])]
    items = list(stream(pairs))
    expected = dj.inpaint(PRIOR, IMAGES[:3], HOLES[:3], KEYS[np.array([0, 7, 2])], CONFIG)
    assert all((item.latents == row).all() for item, row in zip(items, expected.latents, strict=True))


def test_raw_uint32_keys_are_accepted():
    old, new = (list(stream(zip(IMAGES[:4], HOLES[:4], strict=True), key=k)) for k in (jax.random.PRNGKey(2), KEY))
    assert all((a.latents == b.latents).all() for a, b in zip(old, new, strict=True))


def test_the_input_is_read_at_most_two_batches_ahead():
    read = 0

    def endless():
        nonlocal read
        for i in itertools.count():
            read += 1
            yield IMAGES[i % COUNT], HOLES[i % COUNT]

    items = stream(endless())
    assert read == 0
    for i in range(4 * BATCH):
        next(items)
        # While the results of one batch are handed out, only the next batch is on the device.
        assert read == (i // BATCH + 2) * BATCH


def test_the_stream_compiles_one_program():
    before = stream_module._advance._cache_size()
    list(stream(zip(IMAGES, HOLES, strict=True), config=dataclasses.replace(EARLY, num_steps=30)))
    assert stream_module._advance._cache_size() == before + 1


@pytest.mark.parametrize("changes", [{}, {"restarts": 2, "trace_every": 7}, {"patience": 1, "num_steps": 6}])
def test_searches_that_stop_early_free_their_slots(monkeypatch, changes):
    config = dataclasses.replace(EARLY, **changes)
    expected = []
    for rows in ROWS:
        batch = dj.inpaint(PRIOR, IMAGES[rows], HOLES[rows], KEYS[np.array(rows)], config)
        expected += [jax.tree.map(lambda x, i=i: np.asarray(x[i]), batch) for i in range(BATCH)]
    calls, advance = [], stream_module._advance
    monkeypatch.setattr(stream_module, "_advance", lambda *arguments: calls.append(1) or advance(*arguments))
    items = list(stream(zip(IMAGES, HOLES, strict=True), config=config))
    assert len(items) == COUNT
    for item, one in zip(items, expected[:COUNT], strict=True):
        same = jax.tree.map(lambda x, row: (x == row).all(), item, one)
        assert all(jax.tree.leaves(same)), same
    if not changes:
        # Each slot takes the next image when its own is finished.
        ends, steps = [0] * BATCH, [int(item.num_steps) for item in items]
        for each in steps:
            ends[int(np.argmin(ends))] += each
        assert len(calls) == max(ends) // config.patience
        fixed = sum(max(steps[i : i + BATCH]) for i in range(0, COUNT, BATCH)) // config.patience
        assert len(calls) < fixed


@pytest.mark.parametrize(
    ("place", "item", "message"),
    [
        (4, (IMAGES[0].astype(np.float16), HOLES[0]), "image 4 of `pairs` is float16, but the first is float32"),
        (4, (np.zeros((SIZE, SIZE, 1), np.uint8), HOLES[0]), "image 4 of `pairs` is uint8, but the first is float32"),
        (4, (IMAGES[0].astype(np.float64), HOLES[0]), "image 4 of `pairs` is float64; pass uint8"),
        (4, (IMAGES[0][:, :, 0], HOLES[0]), "image 4 "),
        (0, (IMAGES[0][:2], HOLES[0]), "image 0 "),
        (6, (IMAGES[0], HOLES[0][:2]), "hole 6 "),
        (9, (IMAGES[0],), "item 9 of `pairs` has 1 parts"),
        (1, (IMAGES[0], HOLES[0].astype(np.uint8)), "hole 1 "),
        (5, (np.full_like(IMAGES[0], np.nan), HOLES[0]), "image 5 of `pairs` has known pixels that are not finite"),
        (2, (IMAGES[0], HOLES[0], KEYS), "key 2 of `pairs` is .* pass one key of the same kind as `key`"),
        (3, (IMAGES[0], HOLES[0], jax.random.key(0, impl="rbg")), "key 3 of `pairs` is key<rbg>"),
    ],
)
def test_a_wrong_item_is_named_by_its_place_after_all_earlier_results(place, item, message):
    pairs = [(IMAGES[i % COUNT], HOLES[i % COUNT]) for i in range(11)]
    pairs[place] = item
    items = stream(pairs)
    for i in range(place):
        assert (next(items).images[~HOLES[i]] == IMAGES[i][~HOLES[i]]).all()
    with pytest.raises(ValueError, match=message):
        next(items)


def test_an_error_of_the_input_comes_after_all_earlier_results():
    def broken():
        yield from zip(IMAGES[:4], HOLES[:4], strict=True)
        raise OSError("the disk is gone")

    items = stream(broken())
    assert sum(1 for _ in itertools.islice(items, 4)) == 4
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_few_results_wait_for_a_slow_image(monkeypatch):
    monkeypatch.setattr(stream_module, "_WAITING", 1)
    read = 0

    def endless():
        nonlocal read
        for i in itertools.count():
            read += 1
            # The other images are completely known, so that their searches stop at once.
            yield IMAGES[0], HOLES[0] if i == 0 else np.zeros_like(HOLES[0])

    config = dataclasses.replace(EARLY, num_steps=400, tolerance=1e-7, patience=2, learning_rate=1e-3)
    items = stream(endless(), config=config)
    assert int(next(items).num_steps) > 100
    assert read <= 4 * BATCH


def test_a_bad_key_is_refused():
    with pytest.raises(ValueError, match=r"`key` is .* pass one key"):
        next(stream([], key=KEYS))


def test_a_bad_batch_size_is_refused():
    with pytest.raises(ValueError, match="`batch_size`"):
        list(stream([], batch_size=0))
