"""What a training run is made of, and the published presets."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dcgan_jax.config import Config, _preset, option
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig


@dataclass(frozen=True)
class RunConfig(Config):
    """What every training run has, whatever it trains: batches, Adam, and how often it reports."""

    KIND: ClassVar[str]  # what a run of this configuration trains, as its folder records it
    # Fields that may differ when a run is resumed: they change how long it runs and what it reports, not what it does.
    RESUMABLE: ClassVar[tuple[str, ...]] = ("log_every", "sample_every", "checkpoint_every", "rollbacks")

    batch_size: int = option(64, "images an update sees, over all devices")
    num_steps: int = option(25_000, "training steps")
    learning_rate: float = option(2e-4, "Adam's rate")
    beta1: float = option(0.5, "Adam's decay of the first moment")
    beta2: float = option(0.999, "Adam's decay of the second moment")
    flip: bool = option(False, "mirror training images left to right with probability 1/2")
    compute_dtype: str = option(
        "float32", "arithmetic of the networks; weights and optimiser stay float32", ("float32", "bfloat16")
    )
    seed: int = option(0, "seed of weights, augmentation, data order and all else that is drawn")
    log_every: int = option(50, "steps between lines of metrics.jsonl")
    sample_every: int = option(1000, "steps between pictures of what the networks make")
    checkpoint_every: int = option(1000, "steps between checkpoints")
    rollbacks: int = option(
        0, "times that a run goes back to its last checkpoint, with a new data order, when a loss is not finite"
    )

    def __post_init__(self):
        self._check_fields()
        for name in ("batch_size", "num_steps", "log_every", "sample_every", "checkpoint_every"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        self._check("learning_rate", self.learning_rate > 0, "a number above 0, such as 2e-4")
        for name in ("beta1", "beta2"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        self._check("rollbacks", self.rollbacks >= 0, "0 or more")
        self._check("seed", 0 <= self.seed < 2**63, "0 to 2**63 - 1")

    @property
    def images_per_step(self) -> int:
        """Images that a training step is given."""
        return self.batch_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Classes of the labels that a training step is given beside its images; 0 where it takes images alone."""
        return 0

    def is_measured(self, step: int) -> bool:
        """Whether what is trained is measured after this step."""
        return False


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A DCGAN's training run: the model and Goodfellow's algorithm. A step is k discriminator updates and one of G."""

    KIND: ClassVar[str] = "dcgan"
    RESUMABLE: ClassVar[tuple[str, ...]] = ("num_steps", "measure_every", *RunConfig.RESUMABLE)

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    discriminator_steps: int = option(1, "k, the discriminator updates of a step, each on its own slice of the batch")
    loss: str = option(
        "non_saturating",
        "the generator's loss: non_saturating (-log D) or saturating (log(1 - D)); or hinge, for both networks",
        ("non_saturating", "saturating", "hinge"),
    )
    r1: float = option(0.0, "weight of the R1 penalty on the discriminator's gradient at real images; 0 has none")
    noise: float = option(0.0, "standard deviation of Gaussian noise on training images, on the scale [-1, 1]")
    average_decay: float = option(0.999, "decay a step of the generator's moving average")
    measure_every: int = option(
        2500, "steps between measures of the generator (swd, ms_ssim, inversion_psnr), the last one too; 0 takes none"
    )

    def __post_init__(self):
        super().__post_init__()
        self._check("discriminator_steps", self.discriminator_steps >= 1, "1 or more")
        self._check("average_decay", 0 <= self.average_decay < 1, "a number from 0 to below 1")
        self._check("noise", self.noise >= 0, "0 or more")
        self._check("r1", self.r1 >= 0, "0 or more, such as 1")
        self._check("measure_every", self.measure_every >= 0, "0 or more")

    @property
    def images_per_step(self) -> int:
        """Images that a training step is given: a batch for each of the k updates."""
        return self.batch_size * self.discriminator_steps

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.model.image_size, self.model.image_size, self.model.channels

    @property
    def num_classes(self) -> int:
        """Classes of the labels that a training step is given beside its images; 0 where it takes images alone."""
        return self.model.num_classes

    def is_measured(self, step: int) -> bool:
        """Whether the generator is measured after this step."""
        return self.measure_every > 0 and (step % self.measure_every == 0 or step == self.num_steps)

    @classmethod
    def preset(cls, name: str, dataset: str | None = None) -> Self:
        """Published settings, "radford2016", "he2018" or "yeh2017"; or "modern": hinge loss and R1.

        Args:
            name: whose settings.
            dataset: "celeba", "svhn" or "cars", for `he2018`, which sets batch and rate by it.

        Raises:
            UserError: the preset or the set is unknown.
        """
        values = dict(_preset(cls, _TRAIN_PRESETS, name))
        if dataset is not None and dataset not in DATASETS:
            raise UserError(f"unknown dataset {dataset!r} of preset {name!r}; it takes {', '.join(DATASETS)} or none")
        if name == "he2018" and dataset == "celeba":
            values |= {"batch_size": 128, "learning_rate": 2e-4}
        return cls(**values)


DATASETS = ("celeba", "svhn", "cars")
_TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    # Radford, Metz, Chintala 2016, section 4. The non-saturating loss and the uniform latents are theirs too.
    "radford2016": {"batch_size": 128, "learning_rate": 2e-4, "beta1": 0.5},
    # He, Lopez Ruiz, Navarrete Rivera. The level of the noise is ours, the paper gives none: 0.02 is 2.5 grey levels.
    "he2018": {
        "model": ModelConfig(latent="normal"),
        "batch_size": 64,
        "learning_rate": 1e-4,
        "num_steps": 1500,
        "loss": "saturating",
        "noise": 0.02,
    },
    # Yeh et al. 2017, section 4: DCGAN as published, with flips; batch and number of steps are ours.
    "yeh2017": {"flip": True},
    # Hinge loss (Lim, Ye 2017) and R1 (Mescheder et al. 2018); RESULTS.md has what else was tried.
    "modern": {"loss": "hinge", "r1": 1.0},
}
