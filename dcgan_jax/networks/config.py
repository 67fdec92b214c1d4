"""What a DCGAN is made of."""

import math
from dataclasses import dataclass

from dcgan_jax.config import Config, option

IMAGE_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True)
class ModelConfig(Config):
    """Generator and discriminator after Radford et al. 2016 (figure 1) in the sizes of He et al."""

    image_size: int = option(64, "side of the square images in pixels", IMAGE_SIZES)
    channels: int = option(3, "1 for grey images, 3 for colour", (1, 3))
    latent_dim: int = option(100, "dimension of the latent space")
    base_width: int = option(
        64, "channels of the layer next to the image; each layer inwards doubles them, up to 8 times"
    )
    latent: str = option(
        "uniform", "prior of the latents: uniform on [-1, 1] or standard normal", ("uniform", "normal")
    )
    num_classes: int = option(0, "classes of a conditional model, which is trained with labels from 0 on; 0 has none")

    def __post_init__(self):
        self._check_fields()
        self._check("latent_dim", self.latent_dim >= 1, "1 or more")
        self._check("num_classes", self.num_classes >= 0 and self.num_classes != 1, "0, or 2 or more")
        self._check("base_width", self.base_width >= 1, "1 or more")

    @property
    def latent_size(self) -> int:
        """Entries of a latent: `latent_dim`, and behind them, in a conditional model, its label, one for each class."""
        return self.latent_dim + self.num_classes

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the hidden layers from the image inwards: one for each halving down to 4×4."""
        depth = int(math.log2(self.image_size // 4))
        return tuple(self.base_width * min(2**i, 8) for i in range(depth))
