from . import masks, measurements
from .blending.poisson import poisson_blend
from .blending.smooth import smooth_blend
from .blending.sparse import poisson_blend_sparse
from .images.metrics import ms_ssim, psnr, ssim
from .inpainting.config import InpaintConfig
from .inpainting.export import export_program
from .inpainting.inpaint import inpaint
from .inpainting.photograph import inpaint_photograph
from .inpainting.restore import restore
from .inpainting.result import InpaintResult, Status
from .inpainting.stream import inpaint_stream
from .masks import importance_weights
from .networks.config import ModelConfig
from .priors.dcgan import with_compute_dtype
from .priors.files import load_prior, save_prior
from .priors.prior import Prior, discriminate, generate, sample_latents
from .priors.pytorch import prior_from_pytorch
from .training.config import TrainConfig
from .training.gan import GANState, init_state, make_train_step, prior_from_state

__all__ = [
    "GANState",
    "InpaintConfig",
    "InpaintResult",
    "ModelConfig",
    "Prior",
    "Status",
    "TrainConfig",
    "discriminate",
    "export_program",
    "generate",
    "importance_weights",
    "init_state",
    "inpaint",
    "inpaint_photograph",
    "inpaint_stream",
    "load_prior",
    "make_train_step",
    "masks",
    "measurements",
    "ms_ssim",
    "poisson_blend",
    "poisson_blend_sparse",
    "prior_from_pytorch",
    "prior_from_state",
    "psnr",
    "restore",
    "sample_latents",
    "save_prior",
    "smooth_blend",
    "ssim",
    "with_compute_dtype",
]
