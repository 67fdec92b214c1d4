"""The configuration of a latent search, and the published presets."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dcgan_jax.config import Config, option

if TYPE_CHECKING:  # the parser of the command reads this module without JAX
    from dcgan_jax.priors.prior import Prior


@dataclass(frozen=True)
class InpaintConfig(Config):
    """The configuration of the latent search of Yeh et al. 2017.

    The defaults of `num_steps`, `learning_rate` and `window` are ours; the presets have the published values. The
    defaults were chosen on 48 held-out faces with the prior `faces-64`, at 300 steps. Compared with rate 0.03 and the
    published window of 7, rate 0.1 and window 15 gain 0.8 dB in a missing half and 0.4 dB in a missing centre. A window
    of 7 reaches three pixels beyond a hole. On the same faces a `tolerance` of 0.05 stops after 124 of the 300 steps on
    average, and costs 0.1 to 0.3 dB in the hole.
    """

    num_steps: int = option(300, "Steps of Adam per restart. `tolerance` may stop earlier.", min=0)
    learning_rate: float = option(0.1, "Learning rate of Adam on the latent.", above=0)
    prior_weight: float = option(0.003, "Weight of the prior loss (lambda).", min=0)
    window: int = option(15, "Side in pixels of the window of the importance weights, an odd number.", min=1)
    tolerance: float = option(
        0.0,
        "Stop early when the best loss improves by less than this fraction in `patience` steps; 0 disables.",
        min=0,
        below=1,
    )
    patience: int = option(25, "Steps between checks of `tolerance`.", min=1)
    start: str = option(
        "prior",
        "Start of a search: a latent drawn from the prior, or the encoder's guess. "
        "With the encoder, restarts after the first start at draws around its guess.",
        choices=("prior", "encoder"),
    )
    start_shifts: float = option(
        0.0,
        "Fraction of the encoder's predicted feature offsets applied at the start, 0 to 1. "
        "With several restarts it falls from this value at the first to 0 at the last.",
        min=0,
        max=1,
    )
    encoder_weight: float = option(
        0.0, "Weight of the latent's squared distance from the encoder's guess, measured in standard deviations.", min=0
    )
    restarts: int = option(1, "Searches per image from different starts. `judge` chooses the best.", min=1)
    judge: str = option(
        "loss",
        "How the best restart is chosen: loss takes the least loss, central the one nearest to the mean of all.",
        choices=("loss", "central"),
    )
    num_completions: int = option(
        1, "Number of completions per image, best first; at most `restarts`. Two or more also give their mean.", min=1
    )
    keep_best: bool = option(True, "Keep the iterate of least loss. Otherwise keep the last one.")
    clip: bool = option(True, "Clip the latent to the prior's bounds after each step.")
    latent_bound: float | None = option(
        None,
        "Clip the latent to plus or minus this value instead of the prior's bounds. "
        "The start is clipped even without `clip`.",
        above=0,
    )
    refine_steps: int = option(
        0,
        "Further steps after the search, which also change the generator's intermediate features. "
        "Too many steps fit the image's noise.",
        min=0,
    )
    refine_learning_rate: float = option(
        0.02, "Learning rate of Adam on latent and features during `refine_steps`.", above=0
    )
    guess_length: float = option(
        0.0,
        "Length in pixels. Structure longer than it is taken from the encoder's guess, with all its feature offsets; "
        "finer detail is taken from the search. With several completions it is the structure of their mean. "
        "0 takes everything from the search.",
        min=0,
    )
    blend: str = option(
        "poisson",
        "How the completion is blended into the hole: poisson keeps its gradients, smooth makes it as smooth as the "
        "known pixels, sharp is smooth with its detail exaggerated.",
        choices=("poisson", "smooth", "sharp"),
    )
    trace_every: int = option(0, "Steps between points of the trace of losses and latents; 0 disables.", min=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("window", self.window % 2 == 1, "an odd number of pixels, such as 7")
        self._check("start_shifts", not self.start_shifts or self.start == "encoder", "0, unless `start` is encoder")
        self._check("guess_length", not self.guess_length or self.start == "encoder", "0, unless `start` is encoder")
        self._check("num_completions", self.num_completions <= self.restarts, "1 to the number of `restarts`")

    @classmethod
    def preset(cls, name: str) -> Self:
        """Returns published settings, or ours.

        Args:
            name: "yeh2017" (1,500 steps, keeps the last iterate) or "he2018" (200 steps), as published; or one of ours,
                which need a prior with an encoder. "best" gives one completion, the sharpest. "fast" takes half as
                many steps as "best", and its completion is softer. "several" gives eight completions from soft and
                sharp starts, best first, and their mean.

        Raises:
            UserError: the preset is unknown.
        """
        return cls(**cls.preset_values(_INPAINT_PRESETS, name))


def default_config(prior: "Prior", noisy: bool = False) -> InpaintConfig:
    """Returns the best search that a prior allows: the preset "best" if it has an encoder, else `InpaintConfig()`.

    Args:
        prior: see `inpaint`.
        noisy: the known values hold noise. Then there is no refinement, because it would fit the noise.
    """
    if prior.encode is None:
        return InpaintConfig()
    best = InpaintConfig.preset("best")
    if not prior.feature_shapes:
        return dataclasses.replace(best, start_shifts=0.0, refine_steps=0, guess_length=0.0)
    return dataclasses.replace(best, refine_steps=0) if noisy else best


_GUIDED = {"start": "encoder", "learning_rate": 0.03, "encoder_weight": 1.0, "prior_weight": 0.1}
_INPAINT_PRESETS: dict[str, dict[str, Any]] = {
    # Neither paper gives Adam's learning rate; 0.03 is ours.
    "yeh2017": {"num_steps": 1500, "learning_rate": 0.03, "window": 7, "keep_best": False},
    # He et al. draw normal latents and clip them to [-1, 1].
    "he2018": {"num_steps": 200, "learning_rate": 0.03, "window": 7, "latent_bound": 1.0},
    "best": {
        **_GUIDED,
        "start_shifts": 0.15,
        "num_steps": 40,
        "refine_steps": 20,
        "guess_length": 2.0,
        "blend": "sharp",
    },
    "fast": {
        **_GUIDED,
        "start_shifts": 0.2,
        "num_steps": 20,
        "refine_steps": 10,
        "guess_length": 1.5,
        "blend": "smooth",
    },
    "several": {
        **_GUIDED,
        "num_steps": 20,
        "refine_steps": 20,
        "start_shifts": 0.6,
        "guess_length": 4.0,
        "restarts": 8,
        "judge": "central",
        "num_completions": 8,
        "blend": "smooth",
    },
}
