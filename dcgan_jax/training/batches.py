"""The training images of a run: checks of the set, and the batch of each step."""

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


def check_images(config: RunConfig, prepared: PreparedSet, split: str) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the images of a split.

    Raises:
        UserError: there is no such split, or its images have another shape.
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


def check_labels(config: RunConfig, prepared: PreparedSet, split: str) -> Int[np.ndarray, " n"] | None:
    """Returns the labels of a split; None if the training takes none.

    Raises:
        UserError: images have no label, or a label that the model does not know.

    Warns:
        UserWarning: a class has no image.
    """
    if not config.num_classes:
        return None
    model = f"but the model has {config.num_classes} classes"
    if prepared.labels is None:
        raise UserError(
            f"{prepared.path} has no labels, {model}: train without classes, or prepare the set with a folder a class"
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
            f"{prepared.path} has {int((labels < 0).sum())} images without a label, {model}: prepare the set without "
            "them"
        )
    if not counts.all():
        absent = np.flatnonzero(counts == 0)
        warnings.warn(
            f"{prepared.path} has no image of {len(absent)} of {config.num_classes} classes ({absent[0]} first): the "
            "model learns nothing of them",
            stacklevel=3,
        )
    return labels


def order_of(step: int, rollbacks: Sequence[int]) -> int:
    """Returns which order of the images a step uses: the number of rollbacks to this step or an earlier one."""
    return sum(step >= back for back in rollbacks)


def batch_reader(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    images: np.ndarray,
    labels: np.ndarray | None,
    rollbacks: Sequence[int],
) -> Callable[[int], Any]:
    """Returns a function that reads the batch of a step and places it on the devices."""

    def read(step: int) -> Any:
        order = order_of(step, rollbacks)
        indices = batch_indices(step, config.images_per_step, len(images), config.seed, order)
        batch = sharding.put_batch(mesh, images, indices)
        return batch if labels is None else (batch, sharding.put_batch(mesh, labels, indices))

    return read
