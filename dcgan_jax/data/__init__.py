"""Image sets: sources of images, their preparation into one array on disk, and reading that array."""

from dcgan_jax.data.loading import PreparedSet, batch_indices, open_prepared, verify
from dcgan_jax.data.preparation import prepare

__all__ = [
    "PreparedSet",
    "batch_indices",
    "open_prepared",
    "prepare",
    "verify",
]
