"""A recipe: the functions through which the training loop trains one kind of network.

Each kind has a `RECIPE` in its own file: `gan`, `encoder` and `baselines.context_encoder_training`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt8

from dcgan_jax.data import PreparedSet
from dcgan_jax.images import figures
from dcgan_jax.priors.prior import Prior
from dcgan_jax.training.config import RunConfig

NUM_SAMPLES = 64  # images in a picture of generated images
SHOWN = 16  # images in a picture of completed images

Metrics = dict[str, Float[Array, ""]]


class Measures(NamedTuple):
    """The functions that measure a run's prior on real images.

    Attributes:
        prior: (state, config) -> the prior of a state.
        make: (prepared set, split, key) -> measure(prior), which returns numbers by name.
        quality: name of the number that decides which prior of the run is the best; higher is better.
    """

    prior: Callable[[Any, Any], Prior]
    make: Callable[[PreparedSet, str, PRNGKeyArray], Callable[[Prior], dict[str, float]]]
    quality: str


class Recipe(NamedTuple):
    """The functions that train one kind of network. A state is a NamedTuple of arrays; `step` counts its steps done.

    Attributes:
        config: the class of the run's configuration.
        init: (config, key) -> the first state.
        make_step: (config, batch_sharding) -> the training step, step(state, batch, key) -> (state, metrics).
        picture: (config, state, images, key) -> a picture of the networks' output.
        measures: how the run's prior is measured; None if there is nothing to measure.
        warm_start: (config, state) -> the state with pretrained weights; None if there are none to load.
    """

    config: type[RunConfig]
    init: Callable[[Any, PRNGKeyArray], Any]
    make_step: Callable[..., Callable]
    picture: Callable[[Any, Any, np.ndarray, PRNGKeyArray], UInt8[np.ndarray, "h w 3"]]
    measures: Measures | None = None
    warm_start: Callable[[Any, Any], Any] | None = None


def completion_rows(
    images: Shaped[np.ndarray, "n h w c"], holes: Bool[np.ndarray, "n h w"], completed: Shaped[np.ndarray, "n h w c"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles each image, its masked view and its completion side by side. A row holds four such triples."""
    rows = np.stack([images, figures.masked_view(images, holes), completed], axis=1)
    return figures.tile(rows.reshape(-1, *images.shape[1:]), columns=12)
