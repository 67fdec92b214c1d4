"""The configuration of a DCGAN's networks."""

import math
from dataclasses import dataclass

from dcgan_jax.config import Config, option

IMAGE_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True)
class ModelConfig(Config):
    """The configuration of generator and discriminator.

    The architecture follows Radford et al. 2016 (figure 1), with the sizes of He et al.
    """

    image_size: int = option(64, "Side of the square images in pixels.", choices=IMAGE_SIZES)
    channels: int = option(3, "Channels of the images: 1 for grey, 3 for colour.", choices=(1, 3))
    latent_dim: int = option(100, "Dimension of the latent space.", min=1)
    base_width: int = option(
        64, "Channels of the layer next to the image. Each deeper layer has twice as many, up to 8 times.", min=1
    )
    latent: str = option(
        "uniform",
        "Distribution of the latents: uniform on [-1, 1] or standard normal.",
        choices=("uniform", "normal"),
    )
    num_classes: int = option(
        0, "Number of classes of a conditional model, counted from label 0; 0 for a model without labels."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("num_classes", self.num_classes >= 0 and self.num_classes != 1, "0, or 2 or more")

    @property
    def latent_size(self) -> int:
        """Number of entries of a latent: `latent_dim`, and in a conditional model one more for each class."""
        return self.latent_dim + self.num_classes

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the hidden layers, starting next to the image. Each layer halves the side, down to 4×4."""
        depth = int(math.log2(self.image_size // 4))
        return tuple(self.base_width * min(2**i, 8) for i in range(depth))
