"""What the training loop must know of what it trains.

Each kind of training has one `RECIPE` in its own file: `gan`, `encoder`, and `baselines.context_encoder_training`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt8

from dcgan_jax.data import PreparedSet
from dcgan_jax.images import figures
from dcgan_jax.training.config import RunConfig

SAMPLES = 64  # images in a picture of generated images
SHOWN = 16  # images in a picture of completed images

Metrics = dict[str, Float[Array, ""]]


class Measure(Protocol):
    """Measures a training state, on the host."""

    def __call__(self, state: Any) -> dict[str, float]: ...


class Recipe(NamedTuple):
    """How one kind of thing is trained. A state is a NamedTuple of arrays; its `step` counts the steps done."""

    config: type[RunConfig]
    init: Callable[[Any, PRNGKeyArray], Any]  # (config, key) -> the first state
    make_step: Callable[..., Callable]  # (config, batch_sharding) -> step(state, batch, key) -> (state, metrics)
    picture: Callable[[Any, Any, np.ndarray, PRNGKeyArray], UInt8[np.ndarray, "h w 3"]]  # (config, state, images, key)
    measures: Callable[[Any, PreparedSet, str, PRNGKeyArray], Measure] | None = None  # (config, set, split, key)
    warm_start: Callable[[Any, Any], Any] | None = None  # (config, state) -> the state with pretrained weights


def completion_rows(
    images: Shaped[np.ndarray, "n h w c"], holes: Bool[np.ndarray, "n h w"], completed: Shaped[np.ndarray, "n h w c"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles images, masked images and completed images side by side, four triples a row."""
    rows = np.stack([images, figures.masked_view(images, holes), completed], axis=1)
    return figures.tile(rows.reshape(-1, *images.shape[1:]), columns=12)
