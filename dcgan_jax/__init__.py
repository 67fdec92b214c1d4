"""Semantic image inpainting by a generative prior, in JAX and Flax."""

from dcgan_jax import masks
from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.smooth import smooth_blend
from dcgan_jax.blending.sparse import poisson_blend_sparse
from dcgan_jax.images.metrics import ms_ssim, psnr, ssim
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import inpaint
from dcgan_jax.inpainting.photograph import inpaint_photograph
from dcgan_jax.inpainting.result import InpaintResult
from dcgan_jax.inpainting.stream import inpaint_stream
from dcgan_jax.masks import importance_weights
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.priors.dcgan import with_compute_dtype
from dcgan_jax.priors.files import load_prior, save_prior
from dcgan_jax.priors.prior import Prior, discriminate, generate, sample_latents
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import GANState, init_state, make_train_step, prior_from_state

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
