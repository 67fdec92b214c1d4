"""The configurations of training runs, and the published presets."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dcgan_jax.config import COMPUTE_DTYPES, Config, option
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig


@dataclass(frozen=True)
class RunConfig(Config):
    """The settings that all training runs share: batches, Adam, and the intervals of logs and checkpoints."""

    KIND: ClassVar[str]  # the kind of network that the run trains; the run's folder records it
    # Fields that may change when a run is resumed. They set its length and its reports, but do not change its steps.
    RESUMABLE: ClassVar[tuple[str, ...]] = ("log_every", "sample_every", "checkpoint_every", "rollbacks")

    batch_size: int = option(64, "Images per update, over all devices.", min=1)
    num_steps: int = option(25_000, "Number of training steps.", min=1)
    learning_rate: float = option(2e-4, "Learning rate of Adam.", above=0)
    beta1: float = option(0.5, "Decay rate of Adam's first moment.", min=0, below=1)
    beta2: float = option(0.999, "Decay rate of Adam's second moment.", min=0, below=1)
    flip: bool = option(False, "Mirror each training image left to right with probability 1/2.")
    compute_dtype: str = option(
        "float32",
        "Number type of the networks' arithmetic. Weights and optimiser stay in float32.",
        choices=COMPUTE_DTYPES,
    )
    seed: int = option(0, "Seed of all random numbers: weights, augmentation, data order.", min=0, max=2**63 - 1)
    log_every: int = option(50, "Steps between lines of metrics.jsonl.", min=1)
    sample_every: int = option(1000, "Steps between pictures of the networks' output.", min=1)
    checkpoint_every: int = option(1000, "Steps between checkpoints.", min=1)
    rollbacks: int = option(
        0,
        "Number of times that a run may return to its last checkpoint after a loss that is not finite. "
        "Each return draws a new data order.",
        min=0,
    )

    @property
    def images_per_step(self) -> int:
        """Number of images that a training step takes."""
        return self.batch_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if a training step takes images without labels."""
        return 0

    def is_measured(self, step: int) -> bool:
        """Tells whether the run measures its network after this step: every `measure_every` steps, and at the end."""
        every = getattr(self, "measure_every", 0)
        return every > 0 and (step % every == 0 or step == self.num_steps)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The training run of a DCGAN by Goodfellow's algorithm.

    A step makes k updates of the discriminator, then one of the generator.
    """

    KIND: ClassVar[str] = "dcgan"
    RESUMABLE: ClassVar[tuple[str, ...]] = ("num_steps", "measure_every", *RunConfig.RESUMABLE)

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    discriminator_steps: int = option(
        1, "Discriminator updates per training step (k). Each uses its own `batch_size` images.", min=1
    )
    loss: str = option(
        "non_saturating",
        "Loss of the generator: non_saturating (-log D) or saturating (log(1 - D)); or hinge, for both networks.",
        choices=("non_saturating", "saturating", "hinge"),
    )
    r1: float = option(
        0.0, "Weight of the R1 penalty on the discriminator's gradient at real images; 0 disables.", min=0
    )
    noise: float = option(
        0.0, "Standard deviation of Gaussian noise added to the training images, on the scale [-1, 1].", min=0
    )
    average_decay: float = option(
        0.999, "Decay per step of the moving average of the generator's weights.", min=0, below=1
    )
    measure_every: int = option(
        2500,
        "Steps between measurements of the generator (swd, ms_ssim, inversion_psnr). "
        "The last step is measured too; 0 disables.",
        min=0,
    )

    @property
    def images_per_step(self) -> int:
        """Number of images that a training step takes: one batch for each discriminator update."""
        return self.batch_size * self.discriminator_steps

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.model.image_size, self.model.image_size, self.model.channels

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if a training step takes images without labels."""
        return self.model.num_classes

    @classmethod
    def preset(cls, name: str, dataset: str | None = None) -> Self:
        """Returns published settings, or ours.

        Args:
            name: "radford2016", "he2018" or "yeh2017" as published; or "modern", ours, with hinge loss and R1 penalty.
            dataset: "celeba", "svhn" or "cars". It sets batch size and learning rate of "he2018"; the other presets do
                not depend on it.

        Raises:
            UserError: the preset or the dataset is unknown.
        """
        values = dict(cls.preset_values(_TRAIN_PRESETS, name))
        if dataset is not None and dataset not in DATASETS:
            raise UserError(f"unknown dataset {dataset!r} of preset {name!r}; it takes {', '.join(DATASETS)} or none")
        if name == "he2018" and dataset == "celeba":
            values |= {"batch_size": 128, "learning_rate": 2e-4}
        return cls(**values)


@dataclass(frozen=True)
class EncoderConfig(RunConfig):
    """The training run of an encoder for one prior."""

    KIND: ClassVar[str] = "encoder"
    RESUMABLE: ClassVar[tuple[str, ...]] = ("measure_every", *RunConfig.RESUMABLE)

    num_steps: int = option(
        6000, "Number of training steps. The learning rate falls to 0 over them, so a run cannot be extended.", min=1
    )
    learning_rate: float = option(1e-3, "Learning rate of Adam at the start.", above=0)
    beta1: float = option(0.9, "Decay rate of Adam's first moment.", min=0, below=1)
    prior: str = option(
        "faces-64",
        "Prior whose latents the encoder predicts: a run's folder, a file or the name of a packaged prior. "
        "If it has an encoder, training starts from that encoder's weights.",
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)  # the prior's
    latent_weight: float = option(
        0.1, "Weight of the latent loss of generated images, relative to the error of real images.", above=0
    )
    measure_every: int = option(
        500,
        "Steps between measurements of the guess (held_out_psnr, training_psnr). "
        "The last step is measured too; 0 disables.",
        min=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("batch_size", self.batch_size % 2 == 0, "an even number")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.model.image_size, self.model.image_size, self.model.channels


DATASETS = ("celeba", "svhn", "cars")
_TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    # Radford, Metz, Chintala 2016, section 4. They also use the defaults: non-saturating loss and uniform latents.
    "radford2016": {"batch_size": 128, "learning_rate": 2e-4, "beta1": 0.5},
    # He, Lopez Ruiz, Navarrete Rivera. The paper gives no noise level; ours, 0.02, is 2.5 grey levels.
    "he2018": {
        "model": ModelConfig(latent="normal"),
        "batch_size": 64,
        "learning_rate": 1e-4,
        "num_steps": 1500,
        "loss": "saturating",
        "noise": 0.02,
    },
    # Yeh et al. 2017, section 4: the published DCGAN, with flips. Batch size and number of steps are ours.
    "yeh2017": {"flip": True},
    # Hinge loss (Lim, Ye 2017) and R1 (Mescheder et al. 2018). docs/results.md compares it with other settings.
    "modern": {"loss": "hinge", "r1": 1.0},
}
