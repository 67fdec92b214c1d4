"""Inpainting any number of images in constant memory: batches of one shape, results in order."""

import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from dcgan_jax.config import InpaintConfig
from dcgan_jax.inpainting import InpaintResult, inpaint
from dcgan_jax.prior import Prior, image_shape


def inpaint_stream(
    prior: Prior,
    pairs: Iterable[tuple],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    batch_size: int = 64,
    optimizer: optax.GradientTransformation | None = None,
) -> Iterator[InpaintResult]:
    """Completes an endless or finite row of images, `batch_size` at a time, and yields a result for each in order.

    The device searches for one batch while the caller works on the results of the one before. The last batch is padded
    to the shape of the others, so one program is compiled; padding changes no image's result.

    Args:
        prior: see `inpaint`.
        pairs: of (image [h, w, c], hole [h, w]), or (image, hole, key) to give an image a key of its own; all images
            float in [−1, 1] or all uint8.
        key: image i uses fold_in(key, i) where it brings no key.
        config: see `inpaint`.
        batch_size: searches at a time.
        optimizer: see `inpaint`.

    Yields:
        `InpaintResult` of one image: NumPy arrays without the batch axis.

    Raises:
        ValueError: an image or a hole does not fit; the message gives its place in the row.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> for item in dj.inpaint_stream(prior, pairs, jax.random.key(0)):  # doctest: +SKIP
        ...     save(item.images)
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it takes 1 or more")
    shape = image_shape(prior)
    numbered, waiting = enumerate(pairs), None
    while batch := list(itertools.islice(numbered, batch_size)):
        items = [_check(i, item, shape, key) for i, item in batch]
        padding = batch_size - len(items) if waiting is not None else 0  # a lone short batch keeps its shape
        image, _, item_key = items[0]
        items += [(image, np.zeros(shape[:2], bool), item_key)] * padding
        images, holes, keys = zip(*items, strict=True)
        if len({image.dtype for image in images}) > 1:
            raise ValueError(f"images {batch[0][0]} to {batch[-1][0]} of `pairs` are of different types: make them one")
        result = inpaint(prior, np.stack(images), np.stack(holes), jnp.stack(keys), config, optimizer)
        if waiting is not None:
            yield from _rows(*waiting)
        waiting = result, len(batch)
    if waiting is not None:
        yield from _rows(*waiting)


def _check(i, item, shape, key):
    image, hole = np.asarray(item[0]), np.asarray(item[1])
    if image.shape != shape:
        raise ValueError(f"image {i} of `pairs` is {list(image.shape)}; this prior completes images of {list(shape)}")
    if hole.shape != shape[:2] or hole.dtype != bool:
        raise ValueError(
            f"hole {i} of `pairs` is {hole.dtype}{list(hole.shape)}; it takes bool {list(shape[:2])}, True = missing"
        )
    return image, hole, item[2] if len(item) > 2 else jax.random.fold_in(key, i)


def _rows(result, count):
    result = jax.device_get(result)
    for i in range(count):
        yield jax.tree.map(lambda x, i=i: x[i], result)
