"""Class labels inside the latents of a conditional prior.

A latent of a conditional prior ends with one entry for each class, the label. A class has 1 at its own entry and 0 at
the others. A search may also find a mixture of classes: entries of 0 or more whose sum is 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from dcgan_jax.errors import UserError


def check_labels(
    num_classes: int, labels: int | Int[Array | np.ndarray, "*n"], n: int
) -> Int[Array | np.ndarray, " n"]:
    """Checks the labels of n images and returns one label for each. −1 means that an image has no label.

    Raises:
        ValueError: the prior has no classes; `labels` is neither an integer nor n integers; or a label is not in the
            range −1 to `num_classes` − 1.
    """
    if not num_classes:
        raise ValueError("`labels` is given, but this prior has no classes: leave it out, or train a conditional prior")
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape not in ((), (n,)):
        raise ValueError(f"`labels` is {labels.dtype}{list(labels.shape)}; pass one integer, or [{n}] integers")
    if not isinstance(labels, Tracer):
        labels = np.asarray(labels)
        for label in labels[(labels < -1) | (labels >= num_classes)].ravel()[:1]:
            raise ValueError(f"`labels` contains {label}; the classes of this prior are 0 to {num_classes - 1}")
        return np.broadcast_to(labels.astype(np.int32), (n,))
    return jnp.broadcast_to(labels.astype(jnp.int32), (n,))


def check_label(num_classes: int, label: int | None) -> None:
    """Checks the label that a command takes for all images.

    Args:
        num_classes: the prior's number of classes; 0 for none.
        label: a class, or None.

    Raises:
        UserError: the prior has no such class.
    """
    if label is not None and not num_classes:
        raise UserError(f"`label` is {label}, but this prior has no classes: leave it out")
    if label is not None and not 0 <= label < num_classes:
        raise UserError(f"`label` is {label}; the classes of this prior are 0 to {num_classes - 1}")


def label_entries(num_classes: int, labels: Int[Array | np.ndarray, "*b"], dtype: Any) -> Float[Array, "*b classes"]:
    """Returns the latent entries of labels: one-hot, or equal shares of all classes for the label −1."""
    one_hot = jax.nn.one_hot(jnp.asarray(labels), num_classes, dtype=dtype)
    return jnp.where(jnp.asarray(labels)[..., None] < 0, 1 / num_classes, one_hot)


def with_label(latents: Float[Array, "*b latent"], label: Float[Array, "*b classes"]) -> Float[Array, "*b latent"]:
    """Replaces the label entries of latents."""
    return jnp.concatenate([latents[..., : -label.shape[-1]], label], axis=-1)


def keep_label(
    num_classes: int, latent: Float[Array, "*b latent"], other: Float[Array, "*b latent"]
) -> Float[Array, "*b latent"]:
    """Returns `latent` with the label entries of `other`; `latent` itself if there are no classes."""
    return with_label(latent, other[..., -num_classes:]) if num_classes else latent


def row_labels(num_classes: int, count: int, columns: int) -> Int[np.ndarray, " count"] | None:
    """Returns the labels for a grid of images with one class in each row; None if there are no classes."""
    return np.arange(count) // columns % num_classes if num_classes else None


def project_onto_simplex(x: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
    """Returns the nearest point whose entries are 0 or more and sum to 1 (Duchi et al. 2008, figure 1)."""
    descending = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
    count = jnp.arange(1, x.shape[-1] + 1)
    excess = (jnp.cumsum(descending, axis=-1) - 1) / count  # what to subtract if only the first `count` are positive
    above = jnp.sum(descending > excess, axis=-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(excess, above - 1, axis=-1), 0)
