"""Semantic image inpainting by a generative prior, in JAX and Flax."""

from dcgan_jax import masks
from dcgan_jax.config import InpaintConfig, ModelConfig, TrainConfig
from dcgan_jax.inpainting import InpaintResult, inpaint
from dcgan_jax.masks import importance_weights
from dcgan_jax.metrics import ms_ssim, psnr, ssim
from dcgan_jax.photographs import inpaint_photograph
from dcgan_jax.poisson import poisson_blend, poisson_blend_sparse
from dcgan_jax.prior import (
    Prior,
    discriminate,
    generate,
    load_prior,
    prior_from_state,
    sample_latents,
    save_prior,
    with_compute_dtype,
)
from dcgan_jax.smoothness import smooth_blend
from dcgan_jax.streaming import inpaint_stream
from dcgan_jax.training import GANState, init_state, make_train_step

__all__ = [
    "GANState",
    "InpaintConfig",
    "InpaintResult",
    "ModelConfig",
    "Prior",
    "TrainConfig",
    "discriminate",
    "generate",
    "importance_weights",
    "init_state",
    "inpaint",
    "inpaint_photograph",
    "inpaint_stream",
    "load_prior",
    "make_train_step",
    "masks",
    "ms_ssim",
    "poisson_blend",
    "poisson_blend_sparse",
    "prior_from_state",
    "psnr",
    "sample_latents",
    "save_prior",
    "smooth_blend",
    "ssim",
    "with_compute_dtype",
]
