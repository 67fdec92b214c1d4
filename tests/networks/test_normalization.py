"""Batch norm and its activation against Flax, and several batches in one pass against one pass each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dcgan_jax.networks import normalization
from dcgan_jax.networks.normalization import BatchNorm

SHAPES = [(6, 4, 3, 5), (12, 7)]


class Plain(nn.Module):
    """Flax's batch norm and activation."""

    use_running_average: bool

    @nn.compact
    def __call__(self, x, leak):
        x = nn.BatchNorm(self.use_running_average, momentum=0.9, epsilon=1e-5, name="norm")(x)
        return x if leak == 1 else nn.leaky_relu(x, leak)


class Ours(nn.Module):
    use_running_average: bool

    @nn.compact
    def __call__(self, x, leak, groups=1):
        return BatchNorm(self.use_running_average, 0.9, name="norm")(x, leak, groups)


def draw(shape, seed=0):
    """Features, and weights and statistics of a batch norm."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    params = {"scale": rng.uniform(0.5, 1.5, channels), "bias": rng.normal(size=channels)}
    statistics = {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 1.5, channels)}
    variables = {"params": {"norm": params}, "batch_stats": {"norm": statistics}}
    return jnp.asarray(rng.normal(1, 2, shape)), jax.tree.map(jnp.asarray, variables)


def assert_close(found, expected, tolerance=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.parametrize("leak", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_derivatives_agree_with_flax(shape, running, leak, float64):
    x, variables = draw(shape)
    towards = jnp.asarray(np.random.default_rng(1).normal(size=shape))

    def results(module):
        def run(params, x):
            return module(running).apply(variables | {"params": params}, x, leak, mutable=["batch_stats"])

        def slope(params, x):
            return jax.grad(lambda x: jnp.sum(jnp.sin(run(params, x)[0]) * towards))(x)

        def penalty(params, x):  # a gradient of a gradient, as in R1
            return jnp.sum(slope(params, x) ** 2)

        params = variables["params"]
        return run(params, x), slope(params, x), jax.grad(penalty, argnums=(0, 1))(params, x)

    assert_close(*jax.jit(lambda: (results(Ours), results(Plain)))())


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_several_batches_in_one_pass_equal_a_pass_each(shape, groups, float64):
    batches = [draw((shape[0] // groups * 2, *shape[1:]), seed)[0] for seed in range(groups)]
    _, variables = draw(shape)

    def one_by_one(params, batches):
        statistics, results = variables["batch_stats"], []
        for batch in batches:
            given = {"params": params, "batch_stats": statistics}
            result, stored = Plain(False).apply(given, batch, 0.2, mutable=["batch_stats"])
            statistics = stored["batch_stats"]
            results.append(result)
        return jnp.stack(results, axis=1), statistics

    def together(params, batches):
        x = jnp.stack(batches, axis=1).reshape(-1, *shape[1:])
        result, stored = Ours(False).apply(variables | {"params": params}, x, 0.2, groups, mutable=["batch_stats"])
        return result.reshape(-1, groups, *shape[1:]), stored["batch_stats"]

    def with_gradients(function):
        def loss(params, batches):
            return jnp.sum(
                jnp.sin(function(params, batches)[0])
                * jnp.arange(1.0, groups + 1).reshape(groups, *[1] * (len(shape) - 1))
            )

        return function(variables["params"], batches), jax.grad(loss, argnums=(0, 1))(variables["params"], batches)

    assert_close(*jax.jit(lambda: (with_gradients(together), with_gradients(one_by_one)))())


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_for_gpus_equal_the_plain_sums(shape, groups, float64):
    a, b = draw(shape)[0], draw(shape, 1)[0]
    expected = [np.stack([np.sum(x[i::groups], axis=tuple(range(x.ndim - 1))) for i in range(groups)]) for x in (a, b)]
    for sums in (normalization.fused_sums, normalization.plain_sums, normalization.sums):
        assert_close(list(sums(a, b, groups)), expected)


def test_half_precision_is_normalised_in_float32():
    x, variables = draw((64, 8, 8, 4))
    x = (x + 100).astype(jnp.bfloat16)  # half precision would lose the variance of values far from 0
    variables = jax.tree.map(lambda v: v.astype(jnp.float32), variables)
    run = functools.partial(Ours(False).apply, variables, mutable=["batch_stats"])
    (found, stored), (exact, expected) = run(x, 0.2), run(x.astype(jnp.float32), 0.2)
    assert found.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
    assert_close(stored, expected, 1e-6)


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_activations_of_0_infinity_and_nan_agree_with_flax(leak):
    y = jnp.asarray([-jnp.inf, -1.0, -0.0, 0.0, 2.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(normalization.activate(y, leak), nn.leaky_relu(y, leak) if leak else nn.relu(y))
    x, one, zero = y[2:5].reshape(-1, 1), jnp.ones((1, 1)), jnp.zeros((1, 1))
    pull = jax.vjp(lambda x: normalization.affine(x, one, zero, leak), x)[1]
    expected = jax.vjp(lambda x: nn.leaky_relu(x, leak) if leak else nn.relu(x), x)[1]
    for slope in (1.0, jnp.inf):
        np.testing.assert_array_equal(pull(jnp.full_like(x, slope))[0], expected(jnp.full_like(x, slope))[0])


def test_stored_statistics_far_from_0_lose_no_more_than_flax():
    x, variables = draw((16, 4, 4, 3))
    variables = jax.tree.map(lambda v: v.astype(jnp.float32), variables)
    variables["batch_stats"]["norm"]["mean"] += 1000
    x = (x + 1000).astype(jnp.float32)
    np.testing.assert_allclose(Ours(True).apply(variables, x, 1.0), Plain(True).apply(variables, x, 1.0), atol=1e-6)


def test_images_that_do_not_divide_into_groups_are_refused():
    x, variables = draw((5, 3))
    with pytest.raises(ValueError, match="`x` has 5 images; pass a multiple of `groups`"):
        Ours(False).apply(variables, x, 0.2, 2, mutable=["batch_stats"])


def test_weights_and_statistics_have_flax_s_names():
    x = jnp.ones((4, 3, 3, 2))
    found, expected = (jax.eval_shape(lambda m=m: m(False).init(jax.random.key(0), x, 0.2)) for m in (Ours, Plain))
    assert jax.tree.map(lambda v: (v.shape, v.dtype), found) == jax.tree.map(lambda v: (v.shape, v.dtype), expected)
