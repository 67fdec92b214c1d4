"""The GFLOP that the layers ask for: the benchmarks' formulas against XLA's count and the traced programs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import dcgan_jax as dj
from benchmarks import networks
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.search import Search, init, step
from dcgan_jax.networks.dcgan import Discriminator


def test_the_arithmetic_is_counted_as_xla_counts_it() -> None:
    """XLA omits taps on padding, a quarter of the smallest layer's, and also counts element-wise passes."""
    config = networks.train_config(base_width=64, batch_size=4, dtype="float32")
    network, first, dense = networks.gflop_forward(config)
    assert first == pytest.approx(2 * 25 * 3 * 64 * 32 * 32 / 1e9) and dense == pytest.approx(2 * 100 * 8192 / 1e9)
    discriminator, images = Discriminator(config.model), jnp.zeros((4, 64, 64, 3))
    variables = jax.eval_shape(lambda: discriminator.init(jax.random.key(0), images, train=False))
    judge = jax.jit(lambda variables, images: discriminator.apply(variables, images, train=False))
    counted = judge.trace(variables, images).lower(lowering_platforms=("cuda",)).cost_analysis()
    assert counted is not None and 0.8 * 4 * network < counted["flops"] / 1e9 < 1.1 * 4 * network
    assert networks.gflop_train_step(config) / 4 == pytest.approx(3.6, rel=0.1)  # twelve passes of a network and two
    assert networks.gflop_search_step(config) == pytest.approx(1.3, rel=0.1)


def asked_of(function: Callable[..., Any], *arguments: Any) -> float:
    """GFLOP of the convolutions and dense layers in the traced program, derivatives included."""

    def walk(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            name, inputs, output = equation.primitive.name, equation.invars, equation.outvars[0].aval
            if name in ("conv_down", "conv_up", "conv_kernel"):
                small = {"conv_down": output, "conv_up": inputs[0].aval, "conv_kernel": inputs[-1].aval}[name]
                kernel = output if name == "conv_kernel" else inputs[1].aval
                total += 2 * small.shape[0] * small.shape[1] * small.shape[2] * kernel.size
            elif name == "dot_general":
                (axes, _), _ = equation.params["dimension_numbers"]
                summed = 1
                for axis in axes:
                    summed *= inputs[0].aval.shape[axis]
                total += 2 * output.size * summed
            inner = [x for x in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
            parts = [walk(getattr(x, "jaxpr", x)) for x in inner]
            total += max(parts, default=0) if name == "cond" else sum(parts)
        return total

    return walk(jax.make_jaxpr(function)(*arguments).jaxpr) / 1e9


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


@pytest.mark.parametrize(
    "shape, options",
    [
        ({}, {}),
        ({"image_size": 32}, {"loss": "hinge"}),
        ({}, {"discriminator_steps": 2}),
        ({}, {"r1": 1.0}),
        ({"num_classes": 10}, {}),
    ],
)
def test_what_a_training_step_asks_for(shape: dict[str, Any], options: dict[str, Any]) -> None:
    model = dj.ModelConfig(base_width=8, **shape)
    config = dj.TrainConfig(model=model, batch_size=4, **options)
    state = jax.eval_shape(lambda key: dj.init_state(config, key), jax.random.key(0))
    batch = jax.ShapeDtypeStruct((config.images_per_step, *config.image_shape), "uint8")
    if model.num_classes:
        batch = batch, jax.ShapeDtypeStruct((config.images_per_step,), "int32")
    found = asked_of(dj.make_train_step(config), state, batch, jax.random.key(0))
    assert networks.gflop_train_step(config, penalised=config.r1 > 0) == pytest.approx(found, rel=3e-3)


@pytest.mark.parametrize("config", [dj.InpaintConfig(), dj.InpaintConfig(refine_steps=2)])
def test_what_a_search_step_asks_for(config: dj.InpaintConfig) -> None:
    train = networks.train_config(8, 64, "float32")
    prior = jax.eval_shape(lambda key: dj.prior_from_state(dj.init_state(train, key), train), jax.random.key(0))

    def one_step(prior: dj.Prior, image: jax.Array, weights: jax.Array, latent: jax.Array) -> Search:
        return step(prior, config, Problem(image, weights), init(config, Point(latent)))

    found = asked_of(one_step, prior, jnp.zeros((64, 64, 3)), jnp.zeros((64, 64)), jnp.zeros(100))
    assert networks.gflop_search_step(train) == pytest.approx(found, rel=2e-3)
