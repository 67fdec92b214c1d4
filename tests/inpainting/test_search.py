"""The latent search against a plain one in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain import quick_jit
from searches import (
    CONFIG,
    EARLY,
    HOLES,
    IMAGES,
    KEY,
    NO_CRITIC,
    NORMAL,
    PARAMS,
    UNIFORM,
    C,
    H,
    W,
    decode,
    draw_uniform,
    kept,
    numpy_losses,
    numpy_search,
    start,
)

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.result import Status
from dcgan_jax.inpainting.search import search


def run_searches(prior, config):
    """Runs `search` on each image, from the start that `inpaint` uses for its first restart."""

    @quick_jit
    def run(images, holes, starts):
        weights = masks.importance_weights(holes, config.window)
        images = jnp.where(holes[..., None], 0, images)
        found = jax.vmap(lambda *one: search(prior, config, *one))(Problem(images, weights), Point(starts))
        return found.point.latent, found.losses.context, found.losses.prior

    bound = np.inf if config.latent_bound is None else config.latent_bound
    return run(IMAGES, HOLES, jnp.stack([start(prior, i, bound=bound) for i in range(4)]))


def check(result, expected, images=IMAGES, holes=HOLES):
    """Compares with the expected (latent, context loss, prior loss) of each image, and with SciPy's blend."""
    latents, context, prior = (np.array(column) for column in zip(*expected, strict=True))
    np.testing.assert_allclose(result.latents, latents, atol=2e-4)
    np.testing.assert_allclose(result.context_loss, context, rtol=1e-3)
    np.testing.assert_allclose(result.prior_loss, prior, rtol=1e-3, atol=1e-6)
    completions = np.asarray(decode(PARAMS, latents.astype(np.float32)))
    np.testing.assert_allclose(result.completions, completions, atol=5e-4)
    blended = dj.poisson_blend_sparse(completions, images, holes)
    np.testing.assert_allclose(result.images, np.clip(blended, -1, 1), atol=2e-3)
    assert (np.asarray(result.images)[~holes] == images[~holes]).all()
    assert (np.asarray(result.status) == Status.OK).all()


def stop(iterates, config):
    """The iterates up to the step at which the stopping rule ends the search."""
    best = [np.min([context + prior for _, context, prior in iterates[: t + 1]]) for t in range(len(iterates))]
    for t in range(2 * config.patience, config.num_steps + 1, config.patience):
        if best[t - config.patience - 1] - best[t - 1] <= config.tolerance * abs(best[t - 1]):
            return iterates[: t + 1]
    return iterates


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_search_stops_when_its_loss_no_longer_falls(keep_best):
    config = dataclasses.replace(EARLY, keep_best=keep_best)
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, config)
    searches = [stop(numpy_search(IMAGES[i], HOLES[i], config, start(UNIFORM, i), (-1, 1)), config) for i in range(4)]
    steps = [len(iterates) - 1 for iterates in searches]
    assert len(set(steps)) > 2 and all(step % config.patience == 0 for step in steps)
    assert np.asarray(result.num_steps).tolist() == steps
    expected = [kept(iterates, keep_best) for iterates in searches]
    np.testing.assert_allclose(result.latents, [z for z, _, _ in expected], atol=2e-3)
    np.testing.assert_allclose(result.context_loss, [context for _, context, _ in expected], rtol=1e-2)


def test_each_restart_stops_on_its_own_and_its_trace_ends_there():
    config = dataclasses.replace(EARLY, restarts=3, trace_every=3)
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, config)
    ends = set()
    for i in range(4):
        searches = [
            stop(numpy_search(IMAGES[i], HOLES[i], config, start(UNIFORM, i, r), (-1, 1)), config) for r in range(3)
        ]
        best = min(searches, key=lambda iterates: sum(kept(iterates)[1:]))
        end = len(best) - 1
        points = [min(t, end) for t in [*range(0, config.num_steps, 3), config.num_steps]]
        assert int(result.num_steps[i]) == end and np.asarray(result.trace.num_steps[i]).tolist() == points
        np.testing.assert_allclose(result.trace.latents[i], [best[t][0] for t in points], atol=2e-3)
        np.testing.assert_allclose(result.trace.context_loss[i], [best[t][1] for t in points], rtol=2e-2)
        ends.add(end)
    assert len(ends) > 1


def test_a_search_that_meets_nan_stops():
    broken = dataclasses.replace(UNIFORM, params=PARAMS | {"offset": jnp.full(H * W * C, jnp.nan, jnp.float32)})
    result = dj.inpaint(broken, IMAGES, HOLES, KEY, EARLY)
    assert np.asarray(result.num_steps).tolist() == [EARLY.patience] * 4
    assert (np.asarray(result.status) == Status.NOT_FINITE).all()


@pytest.mark.parametrize("every", [1, 5, 12, 20])
def test_the_trace_holds_the_iterates(every):
    config = dataclasses.replace(CONFIG, trace_every=every, restarts=2)
    trace = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, config).trace
    points = [*range(0, CONFIG.num_steps, every), CONFIG.num_steps]
    assert np.asarray(trace.num_steps).tolist() == [points] * 4
    for i in range(4):
        restarts = [numpy_search(IMAGES[i], HOLES[i], CONFIG, start(UNIFORM, i, r), (-1, 1)) for r in range(2)]
        best = min(restarts, key=lambda iterates: sum(kept(iterates)[1:]))
        latents, context, prior = (np.array(column) for column in zip(*(best[t] for t in points), strict=True))
        np.testing.assert_allclose(trace.latents[i], latents, atol=2e-4)
        np.testing.assert_allclose(trace.context_loss[i], context, rtol=1e-3)
        np.testing.assert_allclose(trace.prior_loss[i], prior, rtol=1e-3, atol=1e-6)


def test_any_optax_optimiser_can_be_used():
    rate = 0.05
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, CONFIG, optax.sgd(rate))
    for i in range(4):
        params = {name: np.asarray(value, np.float64) for name, value in PARAMS.items()}
        z, iterates = np.asarray(start(UNIFORM, i), np.float64), []
        for _ in range(CONFIG.num_steps + 1):
            context, prior, gradient = numpy_losses(params, IMAGES[i], HOLES[i], CONFIG, z)
            iterates.append((z, context, prior))
            z = np.clip(z - rate * gradient, -1, 1)
        np.testing.assert_allclose(result.latents[i], kept(iterates)[0], atol=2e-4)
    # An optimiser with a line search gets the loss and the function.
    smooth = dataclasses.replace(CONFIG, num_steps=8)
    quick = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, smooth, optax.lbfgs(memory_size=4))
    slow = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, dataclasses.replace(smooth, num_steps=0))
    assert (quick.context_loss + quick.prior_loss < 0.9 * (slow.context_loss + slow.prior_loss)).all()
    assert (np.asarray(quick.status) == Status.OK).all()


def test_the_search_agrees_with_numpy():
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, CONFIG)
    searches = [numpy_search(IMAGES[i], HOLES[i], CONFIG, start(UNIFORM, i), (-1, 1)) for i in range(4)]
    check(result, [kept(search) for search in searches])
    # The case covers the rules: bounds are reached, and the best iterate is once the last and once an earlier one.
    assert any(abs(z).max() == 1 for search in searches for z, _, _ in search)
    best = [np.argmin([context + prior for _, context, prior in search]) for search in searches]
    assert CONFIG.num_steps in best and any(0 < place < CONFIG.num_steps for place in best)
    assert np.asarray(result.num_steps).tolist() == [CONFIG.num_steps] * 4


@pytest.mark.parametrize(
    ("prior", "changes", "bounds"),
    [
        (UNIFORM, {"keep_best": False}, (-1, 1)),
        (UNIFORM, {"clip": False, "learning_rate": 0.4}, (-np.inf, np.inf)),
        (NORMAL, {"learning_rate": 0.4}, (-np.inf, np.inf)),
        (NORMAL, {"learning_rate": 0.4, "latent_bound": 0.5}, (-0.5, 0.5)),
        (NO_CRITIC, {}, (-1, 1)),
    ],
    ids=["keep_last", "no_clip", "normal", "latent_bound", "no_critic"],
)
def test_search_options_agree_with_numpy(prior, changes, bounds):
    config = dataclasses.replace(CONFIG, **changes)
    bound = config.latent_bound or np.inf
    found = run_searches(prior, config)
    critic = prior.discriminate is not None
    searches = []
    for i in range(4):
        searches.append(numpy_search(IMAGES[i], HOLES[i], config, start(prior, i, bound=bound), bounds, critic))
    expected = zip(*[kept(one, config.keep_best) for one in searches], strict=True)
    for values, expected_values in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, np.array(expected_values), atol=3e-4, rtol=1e-3)
    largest = max(abs(z).max() for search in searches for z, _, _ in search)
    assert largest == 0.5 if config.latent_bound else largest >= 1


def test_no_steps_give_the_start_and_he2018_clips_it():
    config = dataclasses.replace(dj.InpaintConfig.preset("he2018"), num_steps=0)
    latents, _, _ = run_searches(NORMAL, config)
    starts = np.stack([start(NORMAL, i) for i in range(4)])
    assert abs(starts).max() > 1  # something to clip
    assert (np.asarray(latents) == np.clip(starts, -1, 1)).all()


def test_presets_hold_the_published_settings():
    he, yeh = dj.InpaintConfig.preset("he2018"), dj.InpaintConfig.preset("yeh2017")
    assert (he.num_steps, he.latent_bound, he.clip, he.keep_best) == (200, 1.0, True, True)
    assert (yeh.num_steps, yeh.prior_weight, yeh.window, yeh.clip, yeh.keep_best) == (1500, 0.003, 7, True, False)


def test_the_restart_of_least_loss_is_kept():
    config = dataclasses.replace(CONFIG, restarts=3, num_steps=4)
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, config)
    expected, chosen = [], []
    for i in range(4):
        ends = [kept(numpy_search(IMAGES[i], HOLES[i], config, start(UNIFORM, i, r), (-1, 1))) for r in range(3)]
        chosen.append(int(np.argmin([context + prior for _, context, prior in ends])))
        expected.append(ends[chosen[-1]])
    assert len(set(chosen)) > 1  # not the same restart everywhere
    check(result, expected)


def test_a_generated_image_is_recovered():
    truth = np.asarray(dj.generate(NO_CRITIC, draw_uniform(jax.random.key(5), 4)))
    config = dj.InpaintConfig(num_steps=200, learning_rate=0.03, window=3, restarts=2)
    hidden = np.where(HOLES[..., None], np.float32(0.123), truth)
    result = dj.inpaint(NO_CRITIC, hidden, HOLES, KEY, config)
    assert (np.asarray(result.prior_loss) == 0).all()
    before = np.asarray(decode(PARAMS, jnp.asarray(np.stack([start(UNIFORM, i) for i in range(4)]))))
    for i, hole in enumerate(HOLES):
        error, error_before = (np.abs(x[i][hole] - truth[i][hole]).mean() for x in (np.asarray(result.images), before))
        assert error < 0.2 * error_before and error < 0.1
