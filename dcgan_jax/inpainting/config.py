"""What a latent search is made of, and the published presets."""

import math
from dataclasses import dataclass
from typing import Any, Self

from dcgan_jax.config import Config, _preset, option


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
