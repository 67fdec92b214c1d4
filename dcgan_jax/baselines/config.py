"""The configuration of a context encoder's training run."""

from dataclasses import dataclass
from typing import ClassVar

from dcgan_jax.config import MASK_NAMES, option
from dcgan_jax.networks.config import IMAGE_SIZES, ModelConfig
from dcgan_jax.training.config import RunConfig


@dataclass(frozen=True)
class ContextEncoderConfig(RunConfig):
    """The training run of a context encoder (Pathak et al. 2016): its size, and the weights of its two losses.

    The loss weights and the adversary's learning rate, a tenth of the encoder's, come from the paper. Adam's decay
    rates come from its released code. Learning rate, batch size and number of steps are ours, for a network of this
    size. The learning rate falls to 0 along a half cosine, so the last checkpoint is the one to use.
    """

    KIND: ClassVar[str] = "context-encoder"

    num_steps: int = option(
        4000, "Number of training steps. The learning rate falls to 0 over them, so a run cannot be extended.", min=1
    )
    learning_rate: float = option(1e-3, "Learning rate of Adam at the start.", above=0)
    image_size: int = option(64, "Side of the square images in pixels.", choices=IMAGE_SIZES)
    channels: int = option(3, "Channels of the images: 1 for grey, 3 for colour.", choices=(1, 3))
    base_width: int = option(
        32,
        "Channels of the layer next to the image, an even number. Each deeper layer has twice as many, up to 8 times.",
        min=2,
    )
    adversarial_weight: float = option(
        0.001, "Weight of the adversarial loss. The squared error has 1 minus this weight.", min=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # A step gives each kind of mask the same number of images.
        self._check("batch_size", self.batch_size % len(MASK_NAMES) == 0, f"a multiple of {len(MASK_NAMES)}")
        self._check("base_width", self.base_width % 2 == 0, "an even number")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.image_size, self.image_size, self.channels

    @property
    def adversary(self) -> ModelConfig:
        """The model whose discriminator is the adversary. It is half as wide as the encoder."""
        return ModelConfig(image_size=self.image_size, channels=self.channels, base_width=self.base_width // 2)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the encoder's layers, starting next to the image."""
        return tuple(2 * width for width in self.adversary.widths)
