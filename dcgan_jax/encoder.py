"""The encoder: from masked image and hole to where a search starts, and how it is trained.

It learns for one prior, whose networks learn on beside it: from the generator's own images, whose latents are known,
and from real ones, which the latents and features that it finds are to complete as they were, and as sharp.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from dcgan_jax import masks
from dcgan_jax.augmentation import to_floats
from dcgan_jax.compositing import known_pixels
from dcgan_jax.config import ModelConfig, RunConfig, TrainConfig, option
from dcgan_jax.losses import discriminator_loss, generator_loss
from dcgan_jax.networks import Discriminator, Encoder, Generator
from dcgan_jax.training import Metrics, draw_latents


@dataclass(frozen=True)
class EncoderConfig(RunConfig):
    """An encoder's training run: whose latents it finds, how fast that prior learns on, the losses' weights."""

    KIND: ClassVar[str] = "encoder"

    num_steps: int = option(6000, "training steps; the rates fall to 0 over them, so a run has a fixed number")
    learning_rate: float = option(1e-3, "Adam's rate at the start")
    beta1: float = option(0.9, "Adam's decay of the first moment")
    prior: str = option("faces-64", "the prior whose latents it finds: see `inpaint`")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)  # the prior's
    prior_learning_rate: float = option(2e-4, "Adam's rate at the start of the prior's generator and discriminator")
    latent_weight: float = option(0.1, "of the latents of generated images, beside the errors of completed ones")
    adversarial_weight: float = option(0.02, "of the discriminator's opinion, beside the errors of completed images")

    def __post_init__(self):
        super().__post_init__()
        for name in ("prior_learning_rate", "latent_weight"):
            self._check(name, getattr(self, name) > 0, "a number above 0")
        self._check("adversarial_weight", self.adversarial_weight >= 0, "0 or more")
        self._check("batch_size", self.batch_size % 4 == 0, "a multiple of 4")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.model.image_size, self.model.image_size, self.model.channels


class EncoderState(NamedTuple):
    """All that a training run carries from step to step; arrays only."""

    step: Int[Array, ""]
    encoder: Any
    statistics: Any  # running batch statistics
    prior: Any  # generator and discriminator with their statistics
    optimizers: dict[str, optax.OptState]  # of encoder, generator and discriminator


def init_params(model: ModelConfig, key: PRNGKeyArray) -> Any:
    """Draws an encoder's weights and gives it statistics."""
    known = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return Encoder(model).init(key, known, jnp.zeros(known.shape[:3], bool), train=True)


def init_gan(model: ModelConfig) -> dict[str, Any]:
    """Weights and statistics of an untrained generator and discriminator, for the shapes of a prior's parameters."""
    key = jax.random.key(0)
    z = jnp.zeros((1, model.latent_size))
    x = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return {
        "generator": Generator(model).init(key, z, train=True),
        "discriminator": Discriminator(model).init(key, x, train=True),
    }


def init_state(config: EncoderConfig, key: PRNGKeyArray) -> EncoderState:
    """Draws the weights of a new run; its prior is an untrained one, until `adopt` puts in that which it learns for."""
    encoder, prior = init_params(config.model, key), init_gan(config.model)
    weights = {"encoder": encoder["params"]} | {name: part["params"] for name, part in prior.items()}
    return EncoderState(
        step=jnp.zeros((), jnp.int32),
        encoder=encoder["params"],
        statistics=encoder["batch_stats"],
        prior=prior,
        optimizers={name: one.init(weights[name]) for name, one in _optimizers(config).items()},
    )


def adopt(state: EncoderState, params: Any) -> EncoderState:
    """The state of a run that learns for the prior of these parameters (`Prior.params`)."""
    return state._replace(prior={name: params[name] for name in state.prior})


def make_train_step(
    config: EncoderConfig,
) -> Callable[[EncoderState, UInt8[Array, "b h w c"], PRNGKeyArray], tuple[EncoderState, Metrics]]:
    """Builds the step: an update of each network, on real images and half as many generated ones.

    With N(m, s²) and the shifts the encoder's for a real image x under its hole, the generator's image of m and the
    shifts has a root mean square error in the hole, and one in what is known; both are descended. Under a hole of its
    own a generated image x = G(z) gives `latent_weight` times the mean over dimensions of ((z − m) / s)² / 2 + log s.
    And `adversarial_weight` times −E log D keeps them sharp, over a batch of which a quarter are images completed from
    m, a quarter from latents drawn from N(m, s²), and half generated; the discriminator goes on learning to tell that
    batch from the real one. The generator's batch statistics stay as they are.

    Returns:
        step(state, batch, key) -> (state, metrics), pure; the caller jits it. `key` is the run's key: step t uses
        fold_in(key, t), t being `state.step`. Metrics: `hole_error` and `known_error`, on [−1, 1]; `latent_loss`;
        `generator_loss`, `discriminator_loss`.

    Source:
        Larsen et al. 2016, for a generator that learns from an encoder and a discriminator at once.
    """
    model = config.model
    dtype = None if config.compute_dtype == "float32" else jnp.dtype(config.compute_dtype)
    encoder, generator, discriminator = Encoder(model, dtype), Generator(model, dtype), Discriminator(model, dtype)
    optimizers = _optimizers(config)

    def judge(params, statistics, x):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = discriminator.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, updated["batch_stats"]

    def step(state: EncoderState, batch, key):
        n, quarter = batch.shape[0], batch.shape[0] // 4
        flip_key, hole_key, latent_key, draw_key = jax.random.split(jax.random.fold_in(key, state.step), 4)
        real = to_floats(batch, config.flip, flip_key)
        z = draw_latents(model, latent_key, n // 2)
        hole = draw_holes(hole_key, n + n // 2, model.image_size)
        noise = jax.random.normal(draw_key, (quarter, model.latent_dim))
        judging, statistics = state.prior["discriminator"]["params"], state.prior["discriminator"]["batch_stats"]

        def generate(params, z, shifts=()):
            variables = {"params": params, "batch_stats": state.prior["generator"]["batch_stats"]}
            return generator.apply(variables, z, train=False, shifts=shifts)

        def objective(params):
            generated: Any = generate(params["generator"], z)
            images = jnp.concatenate([real, jax.lax.stop_gradient(generated)])
            (mean, deviation, shifts), updated = encoder.apply(
                {"params": params["encoder"], "batch_stats": state.statistics},
                known_pixels(images, hole),
                hole,
                train=True,
                mutable=["batch_stats"],
            )
            latent = ((z - mean[n:]) / deviation[n:]) ** 2 / 2 + jnp.log(deviation[n:])
            others = slice(quarter, 2 * quarter)  # of which a completion is drawn
            drawn = mean[others, : model.latent_dim] + noise * deviation[others, : model.latent_dim]
            if model.latent == "uniform":
                drawn = jnp.clip(drawn, -1, 1)
            drawn = jnp.concatenate([drawn, mean[others, model.latent_dim :]], axis=-1)
            found: Any = generate(
                params["generator"],
                jnp.concatenate([mean[:n], drawn]),
                [jnp.concatenate([shift[:n], shift[others]]) for shift in shifts],
            )
            error, missing = jnp.mean((found[:n] - real) ** 2, axis=-1), hole[:n]
            completed = jnp.concatenate([found[:quarter], found[n:]])
            completed = jnp.where(missing[: 2 * quarter, ..., None], completed, real[: 2 * quarter])
            made = jnp.concatenate([completed, generated])
            metrics = {
                "hole_error": jnp.mean(_root_mean(error, missing)),
                "known_error": jnp.mean(_root_mean(error, ~missing)),
                "latent_loss": jnp.mean(latent),
                "generator_loss": generator_loss(judge(judging, statistics, made)[0], "non_saturating"),
            }
            weights = {"latent_loss": config.latent_weight, "generator_loss": config.adversarial_weight}
            loss = sum(weights.get(name, 1.0) * value for name, value in metrics.items())
            return loss, (metrics, updated["batch_stats"], made)

        def telling_apart(params):
            real_logits, updated = judge(params, statistics, real)
            made_logits, updated = judge(params, updated, made)
            return discriminator_loss(real_logits, made_logits), updated

        params = {"encoder": state.encoder, "generator": state.prior["generator"]["params"]}
        gradients, (metrics, encoder_statistics, made) = jax.grad(objective, has_aux=True)(params)
        (loss, statistics_after), gradients["discriminator"] = jax.value_and_grad(telling_apart, has_aux=True)(judging)
        params["discriminator"], states = judging, {}
        for name, optimizer in optimizers.items():
            updates, states[name] = optimizer.update(gradients[name], state.optimizers[name])
            params[name] = optax.apply_updates(params[name], updates)
        prior = {
            "generator": state.prior["generator"] | {"params": params["generator"]},
            "discriminator": {"params": params["discriminator"], "batch_stats": statistics_after},
        }
        state = EncoderState(state.step + 1, params["encoder"], encoder_statistics, prior, states)
        return state, metrics | {"discriminator_loss": loss}

    return step


def draw_holes(key: PRNGKeyArray, n: int, size: int) -> Bool[Array, "n size size"]:
    """Holes for training: the paper's four kinds in turn, half of them shifted round the edges, so that any mask works.

    A shifted centre is a box anywhere, also in two or four parts; a shifted half a band or two.
    """
    hole_key, shift_key, whether_key = jax.random.split(key, 3)
    shift = jax.random.randint(shift_key, (n, 2), 0, size)
    shift = jnp.where(jax.random.bernoulli(whether_key, 0.5, (n, 1)), shift, 0)
    return jax.vmap(lambda hole, by: jnp.roll(hole, by, axis=(0, 1)))(masks.mixed(hole_key, n, size), shift)


def _root_mean(squares: Float[Array, "n h w"], where: Bool[Array, "n h w"]) -> Float[Array, " n"]:
    mean = jnp.sum(jnp.where(where, squares, 0), axis=(1, 2)) / jnp.maximum(jnp.sum(where, axis=(1, 2)), 1)
    return jnp.sqrt(mean + 1e-8)  # 0 has no derivative


def _optimizers(config: EncoderConfig) -> dict[str, optax.GradientTransformation]:
    def adam(rate, beta1):
        return optax.adam(optax.cosine_decay_schedule(rate, config.num_steps), b1=beta1, b2=config.beta2)

    # The prior's networks keep β₁ of their own training (Radford et al. 2016).
    prior = adam(config.prior_learning_rate, TrainConfig.beta1)
    return {"encoder": adam(config.learning_rate, config.beta1), "generator": prior, "discriminator": prior}
