"""Every check of images, holes and keys that functions are given."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray, Shaped

from dcgan_jax.masks import check_hole


def check_pairs(images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]) -> None:
    """Refuses, by `ValueError`, images that are no batch of uint8 or floats, and holes that are not one for each."""
    if jnp.ndim(images) != 4:
        raise ValueError(f"`images` has shape {jnp.shape(images)}; it takes [b, h, w, c], for one image x[None]")
    check_type("`images`", images.dtype)
    check_hole(hole)
    if jnp.shape(hole) != jnp.shape(images)[:3]:
        raise ValueError(f"`hole` has shape {jnp.shape(hole)}; for these images it takes {jnp.shape(images)[:3]}")


def check_type(name: str, dtype: np.dtype) -> None:
    """Refuses images whose known pixels would not come back bit for bit."""
    held = jax.dtypes.canonicalize_dtype(dtype)  # JAX cuts float64 to float32
    if dtype != np.uint8 and (held != dtype or not jnp.issubdtype(held, jnp.floating)):
        raise ValueError(f"{name} is {dtype}; it takes uint8, or float32 (also a shorter float) in [-1, 1]")


def typed_key(key: PRNGKeyArray | Array) -> PRNGKeyArray:
    """A random key, or an array of them, given as such or in the older kind."""
    key = jnp.asarray(key)
    if key.dtype == jnp.uint32 and key.ndim:
        key = jax.random.wrap_key_data(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"`key` is {key.dtype}{list(key.shape)}; it takes a random key, such as jax.random.key(0)")
    return key


def image_keys(key: PRNGKeyArray | Array, n: int) -> PRNGKeyArray:
    """A typed key for each of n images: as many as are given, or fold_in(key, i)."""
    key = typed_key(key)
    if key.shape not in ((), (n,)):
        raise ValueError(f"`key` holds {list(key.shape)} keys; it takes one key, or one for each of the {n} images")
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
