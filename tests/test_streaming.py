"""Any number of images, in order, in constant memory, each as `inpaint` completes it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import arrays, tanh_prior

import dcgan_jax as dj
from dcgan_jax import streaming

SIZE, BATCH = 4, 3
KEY = jax.random.key(2)
CONFIG = dj.InpaintConfig(num_steps=5, learning_rate=0.2, window=3)


RNG = np.random.default_rng(0)
PRIOR = tanh_prior((SIZE, SIZE, 1))
IMAGES = RNG.uniform(-1, 1, (8, SIZE, SIZE, 1)).astype(np.float32)
HOLES = RNG.random((8, SIZE, SIZE)) < 0.4
KEYS = jnp.stack([jax.random.fold_in(KEY, i) for i in range(8)])


def stream(pairs, batch_size=BATCH, key=KEY):
    return dj.inpaint_stream(PRIOR, pairs, key, CONFIG, batch_size)


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 5, 2 * BATCH + 2])
def test_every_image_in_order_as_inpaint_completes_it(count):
    items = list(stream(zip(IMAGES[:count], HOLES[:count], strict=True)))
    assert len(items) == count
    for i, item in enumerate(items):
        # In a batch of the stream's shape, beside images that the stream did not have there.
        others = [j for j in range(8) if j != i][: min(count, BATCH) - 1]
        rows = np.array([*others, i])
        expected = dj.inpaint(PRIOR, IMAGES[rows], HOLES[rows], KEYS[rows], CONFIG)
        for (name, value), row in zip(arrays(item).items(), arrays(expected).values(), strict=True):
            assert isinstance(value, np.ndarray | np.generic) and value.shape == row.shape[1:], name
            assert (value == np.asarray(row[-1])).all(), name


def test_images_may_bring_their_own_keys():
    pairs = [(IMAGES[0], HOLES[0]), (IMAGES[1], HOLES[1], KEYS[7]), (IMAGES[2], HOLES[2])]
    items = list(stream(pairs))
    expected = dj.inpaint(PRIOR, IMAGES[:3], HOLES[:3], KEYS[np.array([0, 7, 2])], CONFIG)
    assert all((item.latents == row).all() for item, row in zip(items, expected.latents, strict=True))


def test_keys_of_the_older_kind():
    old, new = (list(stream(zip(IMAGES[:4], HOLES[:4], strict=True), key=k)) for k in (jax.random.PRNGKey(2), KEY))
    assert all((a.latents == b.latents).all() for a, b in zip(old, new, strict=True))


def test_the_input_is_read_two_batches_ahead_at_most():
    read = 0

    def endless():
        nonlocal read
        for i in itertools.count():
            read += 1
            yield IMAGES[i % 8], HOLES[i % 8]

    items = stream(endless())
    assert read == 0
    for i in range(4 * BATCH):
        next(items)
        # While the results of a batch are handed out, the next one is on the device, and no more than that.
        assert read == (i // BATCH + 2) * BATCH


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (5, [3, 3]), (7, [3, 3, 3])])
def test_every_batch_has_the_shape_of_the_first(monkeypatch, count, sizes):
    seen = []

    def record(prior, images, hole, key, *options):
        seen.append((len(images), len(hole), len(key)))
        return dj.inpaint(prior, images, hole, key, *options)

    monkeypatch.setattr(streaming, "inpaint", record)
    list(stream(zip(IMAGES[:count], HOLES[:count], strict=True)))
    assert seen == [(size,) * 3 for size in sizes]


@pytest.mark.parametrize(
    ("place", "item", "message"),
    [
        (4, (IMAGES[0].astype(np.float16), HOLES[0]), "images 3 to 5 "),
        (4, (np.zeros((SIZE, SIZE, 1), np.uint8), HOLES[0]), "images 3 to 5 "),
        (4, (IMAGES[0][:, :, 0], HOLES[0]), "image 4 "),
        (0, (IMAGES[0][:2], HOLES[0]), "image 0 "),
        (6, (IMAGES[0], HOLES[0][:2]), "hole 6 "),
        (1, (IMAGES[0], HOLES[0].astype(np.uint8)), "hole 1 "),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(place, item, message):
    pairs = [(IMAGES[i % 8], HOLES[i % 8]) for i in range(7)]
    pairs[place] = item
    with pytest.raises(ValueError, match=message):
        list(stream(pairs))


def test_bad_batch_size():
    with pytest.raises(ValueError, match="`batch_size`"):
        list(stream([], batch_size=0))
