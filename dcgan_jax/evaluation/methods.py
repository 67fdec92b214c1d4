"""The methods that `evaluate` compares: latent searches and baselines, in one table.

JAX and the methods are imported only when a method is prepared, so the command line can read the table at once.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array, Bool, PRNGKeyArray, UInt8

    from dcgan_jax.baselines.context_encoder import ContextEncoder
    from dcgan_jax.priors.prior import Prior

    # (images, holes, one key per image) -> (completed images, further fields for the line of each image)
    Completer = Callable[
        [UInt8[np.ndarray, "b h w c"], Bool[np.ndarray, "b h w"], PRNGKeyArray],
        tuple[UInt8[np.ndarray | Array, "b h w c"], Sequence[dict[str, Any]]],
    ]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The held-out images of a set, and the models that the methods need for them.

    Attributes:
        name: the name of the set, unique within an evaluation.
        kind: the kind in the set's manifest, which selects the published figures; None if unknown.
        images: the held-out images.
        training: the training images, from which "nearest" chooses.
        version: a text that changes when images or training images change, such as a checksum.
        prior: the prior of searches.
        encoder: the context encoder.
        names: the names of the images, on which their holes depend; None uses their numbers as names.
    """

    name: str
    kind: str | None
    images: UInt8[np.ndarray, "n h w c"]
    training: UInt8[np.ndarray, "m h w c"]
    version: str
    prior: Prior | None = None
    encoder: ContextEncoder | None = None
    names: Sequence[str] | None = None

    def name_of(self, number: int) -> str:
        """Returns the name of an image."""
        return str(number) if self.names is None else self.names[number]


@dataclass(frozen=True)
class Method:
    """A method, ready for a set.

    Attributes:
        complete: completes a batch of images.
        settings: everything that the results depend on, apart from images, holes and keys.
    """

    complete: Completer
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table of methods.

    Attributes:
        prepare: makes the method ready for a set. Its arguments are the set, the configuration of the method "search"
            and the number of images in a batch.
        is_search: whether the method searches the latents of a prior.
        needs_encoder: whether the prior must have an encoder.
        needs_context_encoder: whether the set must have a context encoder.
        applies: returns True for each hole that the method can complete; None if it can complete all.
    """

    prepare: Callable[[ImageSet, InpaintConfig, int], Method]
    is_search: bool = False
    needs_encoder: bool = False
    needs_context_encoder: bool = False
    applies: Callable[[Bool[np.ndarray, "b h w"]], Bool[np.ndarray, " b"]] | None = None


def prepare_method(name: str, images: ImageSet, search: InpaintConfig, batch_size: int) -> Method:
    """Makes a method ready for a set.

    Args:
        name: a key of `METHODS`.
        images: the set.
        search: the configuration of the method "search".
        batch_size: number of images in a batch.

    Raises:
        UserError: there is no such method, or the set lacks what the method needs.
    """
    check_names([name])
    return METHODS[name].prepare(images, search, batch_size)


def check_names(names: Sequence[str]) -> None:
    """Raises UserError unless all names are keys of `METHODS`."""
    for name in names:
        if name not in METHODS:
            raise UserError(f"`methods` has {name!r}; it takes any of {', '.join(METHODS)}")


def _nearest(images: ImageSet, *_: Any) -> Method:
    from dcgan_jax.baselines.nearest import nearest

    if not len(images.training):
        raise UserError(f"{images.name} has no training images for `nearest`: give their split as `training_split`")
    return Method(lambda x, hole, _: (nearest(x, hole, images.training), [{}] * len(x)), _defaults(nearest))


def _total_variation(*_: Any) -> Method:
    from dcgan_jax.baselines.total_variation import total_variation

    return _of_function(total_variation)


def _low_rank(*_: Any) -> Method:
    from dcgan_jax.baselines.low_rank import low_rank

    return _of_function(low_rank)


def _patch_match(*_: Any) -> Method:
    from dcgan_jax.baselines.patch_match import patch_match

    return Method(lambda x, hole, keys: (patch_match(x, hole, keys), [{}] * len(x)), _defaults(patch_match))


def _patch_match_applies(hole: Bool[np.ndarray, "b h w"]) -> Bool[np.ndarray, " b"]:
    from dcgan_jax.baselines.patch_match import applicable

    return applicable(hole)


def _telea(*_: Any) -> Method:
    from dcgan_jax.baselines import library

    return _of_function(library.telea)


def _navier_stokes(*_: Any) -> Method:
    from dcgan_jax.baselines import library

    return _of_function(library.navier_stokes)


def _biharmonic(*_: Any) -> Method:
    from dcgan_jax.baselines import library

    library.scikit_image()
    return _of_function(library.biharmonic)


def _context_encoder(images: ImageSet, *_: Any) -> Method:
    import jax
    import numpy as np

    from dcgan_jax.baselines.context_encoder import context_encoder

    encoder = images.encoder
    if encoder is None:
        raise UserError(
            f"{images.name} has no context encoder: train one with `dcgan-jax train-context-encoder` and give it as "
            "`context_encoder`"
        )
    _check_size(images, "context encoder", encoder.config.image_shape)
    digest = hashlib.sha256()
    for x in jax.tree.leaves(encoder.params):
        digest.update(np.asarray(x).tobytes())
    return Method(
        lambda x, hole, _: (context_encoder(encoder, x, hole), [{}] * len(x)),
        _defaults(context_encoder) | {"encoder": digest.hexdigest()},
    )


def _search(
    images: ImageSet, config: InpaintConfig, batch_size: int, preset: str | None = None, mean: bool = False
) -> Method:
    """Prepares a latent search by `config` or by a preset. With `mean`, the result is the mean of the completions."""
    import numpy as np

    from dcgan_jax.inpainting.inpaint import check_config
    from dcgan_jax.inpainting.result import Status
    from dcgan_jax.inpainting.stream import inpaint_stream
    from dcgan_jax.priors.dcgan import fingerprint

    prior = images.prior
    if prior is None:
        raise UserError(f"{images.name} has no prior for a search: give one as `prior`")
    _check_size(images, "prior", prior.image_shape)
    if preset is not None:
        config = InpaintConfig.preset(preset)
    check_config(prior, config)

    def complete(
        x: UInt8[np.ndarray, "b h w c"], hole: Bool[np.ndarray, "b h w"], keys: PRNGKeyArray
    ) -> tuple[UInt8[np.ndarray, "b h w c"], list[dict[str, Any]]]:
        # Padded to the batch size, so that all batches run the same program.
        padded = [*range(len(x)), *([0] * (-len(x) % batch_size))]
        pairs = ((x[i], hole[i], keys[i]) for i in padded)
        results = list(inpaint_stream(prior, pairs, keys[0], config, batch_size))[: len(x)]
        notes = [{"num_steps": int(item.num_steps), "status": Status(int(item.status)).words} for item in results]
        return np.stack([np.asarray(item.mean if mean else item.images) for item in results]), notes

    settings = {"config": config.to_json(), "prior": fingerprint(prior)}
    if prior.model is None:  # the fingerprint of a user's own decoder covers only its parameters
        functions = (prior.generate, prior.discriminate, prior.sample_latents)
        names = [f"{getattr(f, '__module__', '')}.{getattr(f, '__qualname__', '')}" for f in functions]
        settings |= {"functions": names, "latent_bounds": str(prior.latent_bounds)}
    return Method(complete, settings)


def _of_function(function: Callable) -> Method:
    """Makes a method of a function that takes only images and holes."""
    return Method(lambda x, hole, _: (function(x, hole), [{}] * len(x)), _defaults(function))


def _defaults(function: Callable) -> dict[str, Any]:
    """Returns the defaults of a function's keyword-only parameters: the settings of the method."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _check_size(images: ImageSet, what: str, size: tuple[int, int, int]) -> None:
    if images.images.shape[1:] != size:
        here, there = ("x".join(map(str, shape)) for shape in (images.images.shape[1:], size))
        wrong = f"the images of {images.name} are {here}, but the {what} is for {there}"
        raise UserError(f"{wrong}: give one that was trained at their size")


METHODS: dict[str, MethodEntry] = {
    "nearest": MethodEntry(_nearest),
    "total-variation": MethodEntry(_total_variation),
    "low-rank": MethodEntry(_low_rank),
    "patch-match": MethodEntry(_patch_match, applies=_patch_match_applies),
    "telea": MethodEntry(_telea),
    "navier-stokes": MethodEntry(_navier_stokes),
    "biharmonic": MethodEntry(_biharmonic),
    "context-encoder": MethodEntry(_context_encoder, needs_context_encoder=True),
    "search": MethodEntry(_search, is_search=True),
    "yeh2017": MethodEntry(functools.partial(_search, preset="yeh2017"), is_search=True),
    "he2018": MethodEntry(functools.partial(_search, preset="he2018"), is_search=True),
    "fast": MethodEntry(functools.partial(_search, preset="fast"), is_search=True, needs_encoder=True),
    "best": MethodEntry(functools.partial(_search, preset="best"), is_search=True, needs_encoder=True),
    # The mean of the completions of the preset "several".
    "mean": MethodEntry(functools.partial(_search, preset="several", mean=True), is_search=True, needs_encoder=True),
}
