"""The training images of a run: checks of images and labels, and the batch of each step."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from dcgan_jax.data import PreparedSet, batch_indices
from dcgan_jax.errors import UserError
from dcgan_jax.parallel import sharding
from dcgan_jax.training.config import RunConfig


def training_images(config: RunConfig, prepared: PreparedSet, split: str) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the images of a split, after a check of their shape.

    Raises:
        UserError: there is no such split, or its images do not have the model's shape.
    """
    images = prepared.split(split)
    expected = config.image_shape
    if images.shape[1:] != expected:
        h, w, c = images.shape[1:]
        raise UserError(
            f"{prepared.path} holds images of {h}x{w}x{c}, but the model makes {'x'.join(map(str, expected))}: "
            f"train with image_size {h} and channels {c} if the model has them, or prepare the set again"
        )
    return images


def training_labels(config: RunConfig, prepared: PreparedSet, split: str) -> Int[np.ndarray, " n"] | None:
    """Returns the labels of a split; None if the model has no classes.

    Raises:
        UserError: images have no label, or a label that is not a class of the model.

    Warns:
        UserWarning: a class has no image.
    """
    if not config.num_classes:
        return None
    model = f"but the model has {config.num_classes} classes"
    if prepared.labels is None:
        raise UserError(
            f"{prepared.path} has no labels, {model}: train without classes, or prepare a set with one folder per class"
        )
    labels = np.asarray(prepared.labels[prepared.split_slice(split)])
    counts = np.bincount(labels[labels >= 0], minlength=config.num_classes)
    if len(counts) > config.num_classes:
        raise UserError(
            f"{prepared.path} has labels up to {len(counts) - 1}, {model}: set num_classes to "
            f"{len(prepared.manifest['class_names'])}"
        )
    if (labels < 0).any():
        raise UserError(
            f"{prepared.path} has {int((labels < 0).sum())} images without a label, {model}: prepare the set again "
            "without them"
        )
    if not counts.all():
        absent = np.flatnonzero(counts == 0)
        warnings.warn(
            f"{prepared.path} has no images of {len(absent)} of {config.num_classes} classes, such as class "
            f"{absent[0]}: the model cannot learn these classes",
            stacklevel=3,
        )
    return labels


def order_of(step: int, rollbacks: Sequence[int]) -> int:
    """Returns the number of the data order that a step uses: the count of rollbacks to this step or an earlier one."""
    return sum(step >= back for back in rollbacks)


def batch_reader(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    images: np.ndarray,
    labels: np.ndarray | None,
    rollbacks: Sequence[int],
) -> Callable[[int], Any]:
    """Returns a function: step -> its batch, placed on the devices."""

    def read(step: int) -> Any:
        order = order_of(step, rollbacks)
        indices = batch_indices(step, config.images_per_step, len(images), config.seed, order)
        batch = sharding.put_batch(mesh, images, indices)
        return batch if labels is None else (batch, sharding.put_batch(mesh, labels, indices))

    return read
