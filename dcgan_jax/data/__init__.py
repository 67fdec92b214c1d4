"""Image sets: read from what people have, prepared once as one array on disk, opened without reading it."""

from dcgan_jax.data.decoding import CROPS, decode_image
from dcgan_jax.data.loading import PreparedSet, batch_indices, open_prepared, verify
from dcgan_jax.data.preparation import prepare
from dcgan_jax.data.sources import KINDS

__all__ = [
    "CROPS",
    "KINDS",
    "PreparedSet",
    "batch_indices",
    "decode_image",
    "open_prepared",
    "prepare",
    "verify",
]
