"""The whole completion as one file of `jax.export`, which runs without this library."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt8, UInt32

from dcgan_jax.errors import UserError
from dcgan_jax.images.inputs import image_keys
from dcgan_jax.inpainting.config import InpaintConfig, default_config
from dcgan_jax.inpainting.inpaint import check_config, inpaint_batch
from dcgan_jax.networks.convolution import PLATFORMS
from dcgan_jax.priors.prior import Prior
from dcgan_jax.storage.files import make_folder, whole_file

SUFFIX = ".jaxexport"


def export_program(
    prior: Prior,
    path: str | Path,
    config: InpaintConfig | None = None,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> None:
    """Saves the whole completion, search and blend included, as a program that JAX runs without this library.

    The file is a serialized `jax.export.Exported` with the prior's weights inside. Its function takes

    - images: uint8 [b, h, w, c], for any b of 1 or more,
    - holes: bool [b, h, w], True where a pixel is missing,
    - key data: uint32 [2], such as `jax.random.key_data(jax.random.key(0))`,

    and returns uint8 [b, h, w, c]: `inpaint(prior, images, holes, key, config).images`, bit for bit on the same
    platform with the same version of JAX. The search finds the labels of a conditional prior. JAX reads the file for
    at least six months after its own version was released.

    Args:
        prior: any prior. The functions of your own decoder must trace with a symbolic batch: `z.shape[0]` instead of
            `len(z)`.
        path: the file to write. Its suffix is .jaxexport. An existing file is replaced as a whole.
        config: the configuration of the search; the default is that of `inpaint`.
        platforms: the platforms that the program runs on: "cpu", "cuda", "rocm" or "tpu".

    Raises:
        UserError: the suffix of `path` is not .jaxexport, or the configuration needs an encoder, but the prior has
            none.
        ValueError: there is no such platform.

    Example:
        >>> import dcgan_jax as dj
        >>> dj.export_program(dj.load_prior("faces-64"), "faces.jaxexport")  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UserError(f"`path` is {path}; give a name that ends in {SUFFIX}")
    if not platforms or set(platforms) - set(PLATFORMS):
        raise ValueError(f"`platforms` is {platforms!r}; it takes any of {', '.join(PLATFORMS)}")
    config = default_config(prior) if config is None else config
    check_config(prior, config)

    def complete(
        images: UInt8[Array, "b h w c"], holes: Bool[Array, "b h w"], key_data: UInt32[Array, "2"]
    ) -> UInt8[Array, "b h w c"]:
        keys = image_keys(jax.random.wrap_key_data(key_data, impl="threefry2x32"), images.shape[0])
        # XLA computes with constants in another order than with arguments, and so with another rounding. The condition
        # always holds, but XLA does not know it, so the weights are no constants for it.
        own = jax.lax.cond(jnp.sum(holes) >= 0, lambda: prior, lambda: jax.tree.map(jnp.zeros_like, prior))
        return inpaint_batch(own, images, holes, keys, config, None).images

    (b,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(complete), platforms=platforms)(
        jax.ShapeDtypeStruct((b, *prior.image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((b, *prior.image_shape[:2]), bool),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    make_folder(path.parent)
    with whole_file(path) as partial:
        partial.write_bytes(exported.serialize())
