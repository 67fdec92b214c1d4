"""The methods that `evaluate` compares, by name: latent searches and baselines, made ready for one set of images."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray, UInt8

from dcgan_jax.baselines import library
from dcgan_jax.baselines.context_encoder import ContextEncoder, context_encoder
from dcgan_jax.baselines.low_rank import low_rank
from dcgan_jax.baselines.nearest import nearest
from dcgan_jax.baselines.patch_match import applicable, patch_match
from dcgan_jax.baselines.total_variation import total_variation
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.result import Status
from dcgan_jax.inpainting.stream import inpaint_stream
from dcgan_jax.priors.dcgan import fingerprint
from dcgan_jax.priors.prior import Prior, image_shape

SEARCH = "search"
PRESETS = ("yeh2017", "he2018", "fast", "best")  # searches with the settings of a preset
MEAN = "mean"  # of the completions of the preset "several"
GUIDED = ("fast", "best", MEAN)  # searches that need a prior with an encoder
CONTEXT_ENCODER = "context-encoder"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Held-out images of a set, and what methods know of it."""

    name: str
    kind: str | None  # as its manifest has it, for the published figures
    images: UInt8[np.ndarray, "n h w c"]
    training: UInt8[np.ndarray, "m h w c"]
    identity: str  # of images and training images, such as a checksum
    prior: Prior | None = None  # for searches
    encoder: ContextEncoder | None = None


# From images, holes, each image's number in its set and a key to completed images and, for each, more to say of it.
Complete = Callable[
    [UInt8[np.ndarray, "b h w c"], Bool[np.ndarray, "b h w"], Int[np.ndarray, " b"], PRNGKeyArray],
    tuple[UInt8[np.ndarray, "b h w c"], list[dict[str, Any]]],
]


@dataclass(frozen=True)
class Method:
    """A method made ready for a set."""

    complete: Complete
    settings: Mapping[str, Any]  # all that its results depend on but images, holes and key
    applies: Callable[[Bool[np.ndarray, "b h w"]], Bool[np.ndarray, " b"]] | None = None  # to which holes; None: to all


def prepare_method(name: str, images: ImageSet, search: InpaintConfig, batch_size: int) -> Method:
    """Makes a method ready for a set.

    Args:
        name: of `NAMES`.
        images: the set.
        search: the configuration of "search".
        batch_size: slots of a search.

    Raises:
        UserError: there is no such method, or the set lacks what it needs.
    """
    if is_search(name):
        config = search if name == SEARCH else InpaintConfig.preset("several" if name == MEAN else name)
        return _search(_fitting_prior(images), config, batch_size, mean=name == MEAN)
    if name == CONTEXT_ENCODER:
        return _context_encoder(images)
    if name == "nearest":
        if not len(images.training):
            raise UserError(f"{images.name} has no training images, among which `nearest` looks")
        return Method(
            lambda x, hole, *_: (np.asarray(nearest(x, hole, images.training)), [{}] * len(x)), _defaults(nearest)
        )
    if name == "patch-match":
        return Method(_patch_match, _defaults(patch_match), lambda hole: np.asarray(applicable(hole)))
    if name not in _ALONE:
        raise UserError(f"`methods` has {name!r}; it takes any of {', '.join(NAMES)}")
    if name in _NEEDS:
        _NEEDS[name]()
    function = _ALONE[name]
    return Method(lambda x, hole, *_: (np.asarray(function(x, hole)), [{}] * len(x)), _defaults(function))


# Those that need images and hole alone.
_ALONE: dict[str, Callable] = {
    "total-variation": total_variation,
    "low-rank": low_rank,
    "telea": library.telea,
    "navier-stokes": library.navier_stokes,
    "biharmonic": library.biharmonic,
}
_NEEDS = {"telea": library.opencv, "navier-stokes": library.opencv, "biharmonic": library.scikit_image}
NAMES = (
    "nearest",
    "total-variation",
    "low-rank",
    "patch-match",
    "telea",
    "navier-stokes",
    "biharmonic",
    CONTEXT_ENCODER,
    SEARCH,
    *PRESETS,
    MEAN,
)


def _fitting_prior(images: ImageSet) -> Prior:
    if images.prior is None:
        raise UserError(f"{images.name} has no prior, in which a search looks: give one as `prior`")
    _check_size(images, "prior", image_shape(images.prior))
    return images.prior


def _check_size(images: ImageSet, what: str, size: tuple[int, int, int]) -> None:
    if images.images.shape[1:] != size:
        here, there = ("x".join(map(str, shape)) for shape in (images.images.shape[1:], size))
        wrong = f"the images of {images.name} are {here} and the {what} is for {there}"
        raise UserError(f"{wrong}: give one that was trained at their size")


def is_search(name: str) -> bool:
    """Whether a method needs a prior."""
    return name in (SEARCH, MEAN) or name in PRESETS


def _search(prior: Prior, config: InpaintConfig, batch_size: int, mean: bool) -> Method:
    def complete(images, holes, numbers, key):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
        # As many as there are slots, so that all batches run the same program.
        padded = [*range(len(images)), *([0] * (-len(images) % batch_size))]
        pairs = ((images[i], holes[i], keys[i]) for i in padded)
        results = list(inpaint_stream(prior, pairs, key, config, batch_size))[: len(images)]
        notes = [{"num_steps": int(item.num_steps), "status": Status(int(item.status)).words} for item in results]
        return np.stack([np.asarray(item.mean if mean else item.images) for item in results]), notes

    settings = {"config": config.to_json(), "prior": fingerprint(prior)}
    if prior.model is None:  # of a decoder of one's own the fingerprint tells the parameters alone
        functions = (prior.generate, prior.discriminate, prior.sample_latents)
        names = [f"{getattr(f, '__module__', '')}.{getattr(f, '__qualname__', '')}" for f in functions]
        settings |= {"functions": names, "latent_bounds": str(prior.latent_bounds)}
    return Method(complete, settings)


def _context_encoder(images: ImageSet) -> Method:
    encoder = images.encoder
    if encoder is None:
        raise UserError(
            f"`{CONTEXT_ENCODER}` of {images.name} is not given: train one with `dcgan-jax train-context-encoder` and "
            "give it as `context_encoder`"
        )
    _check_size(images, "context encoder", encoder.config.image_shape)
    digest = hashlib.sha256()
    for x in jax.tree.leaves(encoder.params):
        digest.update(np.asarray(x).tobytes())
    return Method(
        lambda x, hole, *_: (np.asarray(context_encoder(encoder, x, hole)), [{}] * len(x)),
        _defaults(context_encoder) | {"encoder": digest.hexdigest()},
    )


def _patch_match(images, holes, numbers, key):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    return np.asarray(patch_match(images, holes, keys)), [{}] * len(images)


def _defaults(function: Callable) -> dict[str, Any]:
    """A function's settings: the parameters that are given by name alone."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
