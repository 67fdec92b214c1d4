"""Configuration: what a model, a training run and a search are made of, and the published presets.

Every class is a frozen dataclass whose fields carry one line of meaning, is checked when it is made, travels as JSON
(`to_json`, `from_json`) and gives the command line its options.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dcgan_jax.errors import UserError

IMAGE_SIZES = (32, 64, 128, 256)


def option(default: Any, help: str, choices: tuple | None = None) -> Any:
    """A dataclass field with its line of meaning and, where they are few, its values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """What the configurations share: checks of single fields, JSON, and presets."""

    def _check(self, name: str, good: bool, takes: str) -> None:
        if not good:
            raise UserError(f"`{name}` of {type(self).__name__} is {getattr(self, name)!r}; it takes {takes}")

    def _check_fields(self) -> None:
        """Refuses values of another type and values outside a field's choices."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif isinstance(field.type, type) and type(value) is not field.type:
                self._check(field.name, False, f"a value of type {field.type.__name__}")
            if field.type is float:
                self._check(field.name, math.isfinite(getattr(self, field.name)), "a finite number")
            choices = field.metadata.get("choices")
            if choices:
                self._check(field.name, value in choices, "one of " + ", ".join(map(repr, choices)))

    def to_json(self) -> dict[str, Any]:
        """The configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            UserError: a field is unknown or its value is refused.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(fields))
        if unknown:
            raise UserError(f"{cls.__name__} has no field {unknown[0]!r}; its fields are {', '.join(fields)}")
        values = dict(data)
        for name, kind in fields.items():
            if name in values and isinstance(kind, type) and issubclass(kind, Config):
                values[name] = kind.from_json(values[name])
        return cls(**values)


def _preset(cls: type, presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in presets:
        raise UserError(f"unknown preset {name!r} of {cls.__name__}; the presets are {', '.join(presets)}")
    return presets[name]


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


@dataclass(frozen=True)
class InpaintConfig(Config):
    """The latent search of Yeh et al. 2017.

    The defaults for `num_steps`, `learning_rate` and `window` are ours: on 48 held-out faces under `faces-64`, 300
    steps at rate 0.1 and window 15 have 0.8 dB more in a missing half and 0.4 dB more in a missing centre than 300
    steps at 0.03 and the published window of 7, which sees three pixels beyond a hole. The presets keep what was
    published. On the same faces a `tolerance` of 0.05 stops after 124 of the 300 steps in the mean, and costs 0.1 to
    0.3 dB in the hole.
    """

    num_steps: int = option(300, "steps of Adam a restart, at the most where `tolerance` is set")
    learning_rate: float = option(0.1, "Adam's rate on the latent")
    prior_weight: float = option(0.003, "lambda, the weight of the prior loss")
    window: int = option(15, "side in pixels of the window of the importance weights, odd")
    tolerance: float = option(
        0.0, "stop an image's search whose least loss fell by less than this fraction in `patience` steps; 0 never does"
    )
    patience: int = option(25, "steps between looks at the stopping rule; nothing without `tolerance`")
    start: str = option(
        "prior",
        "where a search starts: a latent drawn from the prior, or the encoder's; restarts then draw around it",
        ("prior", "encoder"),
    )
    start_shifts: float = option(
        0.0,
        "share of the encoder's shifts of the generator's features with which a search from it starts, 0 to 1; of "
        "restarts each has less of them, the last one none",
    )
    encoder_weight: float = option(0.0, "weight of the distance from the encoder's guess, in its own deviations")
    restarts: int = option(1, "searches an image from different starts, of which `judge` keeps the best")
    judge: str = option(
        "loss",
        "the best of the restarts: the one of least loss, or the one nearest to the mean of them all",
        ("loss", "central"),
    )
    num_completions: int = option(1, "of the restarts, the best first, that are given back, and their mean")
    keep_best: bool = option(True, "keep the iterate of least loss; false keeps the last")
    clip: bool = option(True, "clip the latent to the prior's bounds after each step")
    latent_bound: float | None = option(
        None, "clip the latent to +- this in place of the prior's bounds; the start too, even without `clip`"
    )
    refine_steps: int = option(
        0,
        "steps after the search in which the generator's intermediate features move too; few, or they learn the noise",
    )
    refine_learning_rate: float = option(0.02, "Adam's rate on latent and features in these steps")
    blend: str = option(
        "poisson",
        "how a completion gets into the hole: poisson keeps its gradients (Yeh et al.); smooth weighs them against how "
        "smooth the image is where it is known; sharp keeps more of the detail, to be about as sharp as the known part",
        ("poisson", "smooth", "sharp"),
    )
    trace_every: int = option(0, "steps between points of the trace of losses and latents; 0 keeps no trace")

    def __post_init__(self):
        self._check_fields()
        self._check("num_steps", self.num_steps >= 0, "0 or more")
        self._check("encoder_weight", self.encoder_weight >= 0, "0 or more")
        self._check("start_shifts", 0 <= self.start_shifts <= 1, "a share from 0 to 1")
        self._check("start_shifts", not self.start_shifts or self.start == "encoder", "0, unless `start` is encoder")
        self._check("refine_steps", self.refine_steps >= 0, "0 or more")
        self._check("refine_learning_rate", self.refine_learning_rate > 0, "a number above 0, such as 0.02")
        self._check("trace_every", self.trace_every >= 0, "0 or more")
        self._check("learning_rate", self.learning_rate > 0, "a number above 0, such as 0.03")
        self._check("prior_weight", self.prior_weight >= 0, "0 or more")
        self._check("window", self.window >= 1 and self.window % 2 == 1, "an odd number of pixels, such as 7")
        self._check("tolerance", 0 <= self.tolerance < 1, "a fraction from 0 to below 1, such as 0.01")
        self._check("patience", self.patience >= 1, "1 or more")
        self._check("restarts", self.restarts >= 1, "1 or more")
        self._check("num_completions", 1 <= self.num_completions <= self.restarts, "1 to the number of `restarts`")
        bound = self.latent_bound
        self._check(
            "latent_bound",
            bound is None or (type(bound) in (int, float) and 0 < bound < math.inf),
            "a number above 0, or none",
        )

    @classmethod
    def preset(cls, name: str) -> Self:
        """Published settings, "yeh2017" (1,500 steps, the last iterate) or "he2018" (200 steps); or ours.

        Ours need a prior with an encoder: "best" is one completion, the sharpest, "fast" has half of its
        steps and is softer, "several" gives eight completions, from soft and sharp starts, ranked, and their mean.

        Raises:
            UserError: the preset is unknown.
        """
        return cls(**_preset(cls, _INPAINT_PRESETS, name))


_GUIDED = {"start": "encoder", "learning_rate": 0.03, "encoder_weight": 1.0, "prior_weight": 0.1}
_INPAINT_PRESETS: dict[str, dict[str, Any]] = {
    # Neither paper gives Adam's rate: 0.03 is ours.
    "yeh2017": {"num_steps": 1500, "learning_rate": 0.03, "window": 7, "keep_best": False},
    # He et al. draw normal latents and clip them to [-1, 1].
    "he2018": {"num_steps": 200, "learning_rate": 0.03, "window": 7, "latent_bound": 1.0},
    "best": {**_GUIDED, "start_shifts": 0.15, "num_steps": 40, "refine_steps": 20, "blend": "sharp"},
    "fast": {**_GUIDED, "start_shifts": 0.2, "num_steps": 20, "refine_steps": 10, "blend": "smooth"},
    "several": {
        **_GUIDED,
        "num_steps": 20,
        "refine_steps": 20,
        "start_shifts": 0.6,
        "restarts": 8,
        "judge": "central",
        "num_completions": 8,
        "blend": "smooth",
    },
}
