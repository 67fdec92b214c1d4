"""Searches that start from an encoder's guess: refinement of the features, and several completions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.inpainting.config import default_config

H, W, C, LATENT, FEATURES = 4, 3, 2, 3, 5
KEY = jax.random.key(4)
RNG = np.random.default_rng(3)
PARAMS = {
    "inner": jnp.asarray(RNG.normal(0, 0.7, (LATENT, FEATURES)), jnp.float32),
    "outer": jnp.asarray(RNG.normal(0, 0.5, (FEATURES, H * W * C)), jnp.float32),
    "critic": jnp.asarray(RNG.normal(0, 2.0, H * W * C), jnp.float32),
    "mean": jnp.asarray(RNG.normal(0, 0.1, (H * W * C, LATENT)), jnp.float32),
    "deviation": jnp.asarray(RNG.normal(0, 0.1, (H * W, LATENT)), jnp.float32),
    "shift": jnp.asarray(RNG.normal(0, 0.1, (H * W * C, FEATURES)), jnp.float32),
}
IMAGES = RNG.uniform(-0.9, 0.9, (4, H, W, C)).astype(np.float32)
HOLES = RNG.random((4, H, W)) < np.array([0.15, 0.3, 0.5, 0.7])[:, None, None]
CONFIG = dj.InpaintConfig(
    num_steps=6,
    learning_rate=0.1,
    prior_weight=0.5,
    window=3,
    start="encoder",
    encoder_weight=0.3,
    refine_steps=4,
    refine_learning_rate=0.05,
)


def decode(params, z, shifts=()):
    hidden = z @ params["inner"]
    if shifts:
        hidden = hidden + shifts[0]
    return jnp.tanh(jnp.tanh(hidden) @ params["outer"]).reshape(-1, H, W, C)


def judge(params, x):
    return x.reshape(len(x), -1) @ params["critic"]


def draw(key, n):
    return jax.random.uniform(key, (n, LATENT), minval=-1.0, maxval=1.0)


def encode(params, known, hole):
    flat = known.reshape(len(known), -1)
    deviation = 0.1 + jax.nn.sigmoid(hole.reshape(len(hole), -1).astype(float) @ params["deviation"])
    return jnp.tanh(flat @ params["mean"]), deviation, (flat @ params["shift"],)


PRIOR = dj.Prior(PARAMS, decode, draw, (-1.0, 1.0), judge, encode=encode, feature_shapes=((FEATURES,),))
PLAIN = dj.Prior(PARAMS, decode, draw, (-1.0, 1.0), judge)


# ------------------------------------------------------------------------------------------ the oracle


def numpy_guess(i):
    params = {name: np.asarray(x, np.float64) for name, x in PARAMS.items()}
    known = np.where(HOLES[i][..., None], 0, IMAGES[i]).ravel()
    deviation = 0.1 + 1 / (1 + np.exp(-(HOLES[i].ravel() @ params["deviation"])))
    return np.tanh(known @ params["mean"]), deviation, known @ params["shift"]


def numpy_start(i, restart=0):
    mean, deviation, shift = numpy_guess(i)
    if restart:
        key = jax.random.fold_in(jax.random.fold_in(KEY, i), restart)
        mean = mean + deviation * np.asarray(jax.random.normal(key, (LATENT,)))
    return np.clip(mean, -1, 1), shift


def numpy_smoothed(x, length):
    """A normal window that ends at the border, where its weights are scaled to the sum 1."""
    rows, columns = (np.exp(-((np.arange(side)[:, None] - np.arange(side)) ** 2) / (2 * length**2)) for side in (H, W))
    weights = np.einsum("ij,kl->ikjl", rows, columns)
    return np.einsum("ikjl,jlc->ikc", weights / weights.sum(axis=(2, 3), keepdims=True), x)


def numpy_losses(i, config, z, shift, searching):
    """Objective, context loss, and the objective's gradient in latent and shift, by hand."""
    params = {name: np.asarray(x, np.float64) for name, x in PARAMS.items()}
    weights = np.asarray(masks.importance_weights(jnp.asarray(HOLES[i]), config.window), np.float64)
    y = np.where(HOLES[i][..., None], 0, IMAGES[i])
    hidden = np.tanh(z @ params["inner"] + shift)
    x = np.tanh(hidden @ params["outer"]).reshape(H, W, C)
    context = np.sum(weights[..., None] * np.abs(x - y))
    slope = weights[..., None] * np.sign(x - y)
    logit = x.ravel() @ params["critic"]
    total = context
    if searching:
        total = total - config.prior_weight * np.log1p(np.exp(logit))
        slope = slope - config.prior_weight / (1 + np.exp(-logit)) * params["critic"].reshape(x.shape)
    mean, deviation, _ = numpy_guess(i)
    total = total + config.encoder_weight / 2 * np.sum(((z - mean) / deviation) ** 2)
    inner = params["outer"] @ (slope * (1 - x**2)).ravel() * (1 - hidden**2)
    return total, context, params["inner"] @ inner + config.encoder_weight * (z - mean) / deviation**2, inner


class Adam:
    def __init__(self, rate):
        self.rate, self.m, self.v, self.t = rate, 0.0, 0.0, 0

    def __call__(self, gradient):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * gradient, 0.999 * self.v + 0.001 * gradient**2
        return -self.rate * self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


def numpy_search(i, config, restart=0):
    """The final latent, shift and context loss: search, return to the best iterate, refinement."""
    (z, shift), step = numpy_start(i, restart), Adam(config.learning_rate)
    shift = config.start_shifts * shift
    iterates = []
    for _ in range(config.num_steps):
        total, _, slope, _ = numpy_losses(i, config, z, shift, True)
        iterates.append((total, z))
        z = np.clip(z + step(slope), -1, 1)
    iterates.append((numpy_losses(i, config, z, shift, True)[0], z))
    z = min(iterates, key=lambda one: one[0])[1] if config.keep_best else z
    refine = Adam(config.refine_learning_rate), Adam(config.refine_learning_rate)
    for _ in range(config.refine_steps):
        slopes = numpy_losses(i, config, z, shift, False)[2:]
        z, shift = np.clip(z + refine[0](slopes[0]), -1, 1), shift + refine[1](slopes[1])
    return z, shift, numpy_losses(i, config, z, shift, False)[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_best": False, "start_shifts": 0.5},
        {"num_steps": 0, "blend": "sharp"},
        {"refine_steps": 0},
        {"tolerance": 1e-9, "patience": 3, "start_shifts": 0.5, "blend": "smooth"},
        {"start_shifts": 1.0, "refine_steps": 0},
        {"guess_length": 0.7, "start_shifts": 0.5, "blend": "sharp"},
    ],
)
def test_search_and_refinement_agree_with_the_plain_algorithm(changes):
    """Each case changes several settings, because each costs a compilation. The oracle implements them all."""
    config = dataclasses.replace(CONFIG, **changes)
    result = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, config)
    for i in range(4):
        z, shift, context = numpy_search(i, config)
        np.testing.assert_allclose(result.latents[i], z, atol=2e-4)
        np.testing.assert_allclose(result.context_loss[i], context, rtol=2e-3)
        completion = decode(PARAMS, jnp.asarray(z, jnp.float32)[None], (jnp.asarray(shift, jnp.float32)[None],))
        expected = np.asarray(completion[0])
        if config.guess_length:
            mean, whole = (jnp.asarray(x, jnp.float32)[None] for x in numpy_start(i))
            guess = np.asarray(decode(PARAMS, mean, (whole,))[0])
            expected = expected + numpy_smoothed(guess - expected, config.guess_length)
        np.testing.assert_allclose(result.completions[i], expected, atol=1e-3)
        assert int(result.num_steps[i]) == config.num_steps + config.refine_steps
    completions = np.asarray(result.completions)
    if config.blend == "poisson":
        blended = dj.poisson_blend_sparse(completions, IMAGES, HOLES)
    else:  # tests/blending/test_smooth.py compares this blend with dense solves
        blended = dj.smooth_blend(completions, IMAGES, HOLES, sharp=config.blend == "sharp")
    np.testing.assert_allclose(result.images, np.clip(blended, -1, 1), atol=2e-3)


def test_an_image_with_flat_known_pixels_has_gradients():
    images = jnp.asarray(IMAGES).at[0].set(0.25)
    config = dataclasses.replace(CONFIG, num_steps=2, refine_steps=1, blend="sharp", start_shifts=0.5)

    def total(params, images):
        prior = dataclasses.replace(PRIOR, params=params)
        return jnp.sum(dj.inpaint(prior, images, HOLES, KEY, config).images ** 2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(PARAMS, images)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients))


def test_restarts_begin_at_the_encoder_s_guess_and_at_draws_around_it():
    config = dj.InpaintConfig(
        num_steps=0, start="encoder", start_shifts=1.0, restarts=3, num_completions=3, judge="central"
    )
    single = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, dataclasses.replace(config, restarts=1, num_completions=1))
    np.testing.assert_allclose(single.latents, [numpy_start(i)[0] for i in range(4)], atol=1e-5)
    result = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, config)
    for i in range(4):
        starts = np.stack([numpy_start(i, r)[0] for r in range(3)]).astype(np.float32)
        shifts = np.outer([1, 0.5, 0], numpy_start(i)[1]).astype(np.float32)
        completions = np.asarray(decode(PARAMS, starts, (shifts,)))
        apart = ((completions - completions.mean(axis=0)) ** 2 * HOLES[i][..., None]).sum(axis=(1, 2, 3))
        order = np.argsort(apart)
        blended = np.clip([dj.poisson_blend_sparse(x, IMAGES[i], HOLES[i]) for x in completions[order]], -1, 1)
        np.testing.assert_allclose(result.alternatives.images[i], blended, atol=2e-3)
        np.testing.assert_allclose(result.mean[i], blended.mean(axis=0), atol=2e-3)
        np.testing.assert_array_equal(result.images[i], result.alternatives.images[i, 0])
        np.testing.assert_allclose(result.completions[i], completions[order[0]], atol=1e-4)


def test_completions_are_ranked_by_their_loss_and_keep_known_pixels():
    images = np.asarray(np.round((IMAGES + 1) * 127.5), np.uint8)
    config = dataclasses.replace(CONFIG, restarts=4, num_completions=3)
    result = dj.inpaint(PRIOR, images, HOLES, KEY, config)
    assert result.alternatives.images.dtype == result.mean.dtype == np.uint8
    assert result.alternatives.images.shape == (4, 3, H, W, C)
    for image, hole, several, mean in zip(
        images, HOLES, np.asarray(result.alternatives.images), result.mean, strict=True
    ):
        assert (several[:, ~hole] == image[~hole]).all() and (np.asarray(mean)[~hole] == image[~hole]).all()
        assert np.abs(np.float32(several).mean(axis=0)[hole] - np.float32(mean)[hole]).max() <= 1  # levels
    single = dj.inpaint(PRIOR, images, HOLES, KEY, dataclasses.replace(config, num_completions=1))
    # The first completion is the one that a single completion would be.
    np.testing.assert_allclose(result.context_loss, single.context_loss, rtol=1e-6)


def test_searches_that_are_not_finite_are_left_out_of_mean_and_centre():
    def spoilt(params, z, shifts=()):
        x = decode(params, z)
        return jnp.where(z[:, :1, None, None] < 0, jnp.nan, x)

    prior = dj.Prior(PARAMS, spoilt, draw, (-1.0, 1.0))
    config = dj.InpaintConfig(num_steps=0, restarts=6, num_completions=6, judge="central", window=3)
    result = dj.inpaint(prior, IMAGES, HOLES, KEY, config)
    keys = [[jax.random.fold_in(jax.random.fold_in(KEY, i), r) for r in range(6)] for i in range(4)]
    good = np.array([[float(draw(key, 1)[0, 0]) >= 0 for key in row] for row in keys])
    assert 0 < good.sum() < good.size
    for i in range(4):
        if good[i].any():
            assert int(result.status[i]) == 0
            several = np.asarray(result.alternatives.images[i])[: good[i].sum()]
            np.testing.assert_allclose(np.asarray(result.mean[i]), several.mean(axis=0), atol=1e-6)


SEVERAL = {"restarts": 2, "num_completions": 2, "start_shifts": 0.5}
EARLY = dataclasses.replace(
    CONFIG, num_steps=20, tolerance=0.05, patience=2, blend="sharp", guess_length=0.8, **SEVERAL
)


def test_the_stream_equals_the_batch_bit_for_bit():
    (status,), _, (errors,) = processes.finish([processes.as_users_compile(1, __file__)])
    assert status == 0, errors


def compare_stream_with_batch(config):
    places = [0, 1, 2, 3, 2, 1, 0]
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(len(places))])
    items = list(dj.inpaint_stream(PRIOR, ((IMAGES[i], HOLES[i]) for i in places), KEY, config, batch_size=4))
    for first in (0, 3):
        rows = np.array(places[first : first + 4])
        batch = dj.inpaint(PRIOR, IMAGES[rows], HOLES[rows], keys[first : first + 4], config)
        for i in range(4):
            jax.tree.map(np.testing.assert_array_equal, items[first + i], jax.tree.map(lambda x, i=i: x[i], batch))


def test_hidden_pixels_have_no_influence():
    spoilt = np.where(HOLES[..., None], np.nan, IMAGES)
    one, other = (dj.inpaint(PRIOR, images, HOLES, KEY, EARLY) for images in (IMAGES, spoilt))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_default_search_is_the_best_that_the_prior_allows():
    best = dj.InpaintConfig.preset("best")
    assert default_config(PRIOR) == best
    assert default_config(PLAIN) == dj.InpaintConfig()
    without_features = dataclasses.replace(PRIOR, feature_shapes=())
    latent_alone = dataclasses.replace(best, start_shifts=0.0, refine_steps=0, guess_length=0.0)
    assert default_config(without_features) == latent_alone
    found, expected = (dj.inpaint(PRIOR, IMAGES, HOLES, KEY, config) for config in (None, best))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_shifts_are_refused_when_decoder_or_encoder_has_none():
    prior = dj.Prior(PARAMS, decode, draw, (-1.0, 1.0), judge, encode=encode)
    config = dj.InpaintConfig(start="encoder", start_shifts=0.5)
    with pytest.raises(
        ValueError, match=r"`start_shifts` is 0\.5, but the decoder of this prior takes no feature shifts"
    ):
        dj.inpaint(prior, IMAGES, HOLES, KEY, config)
    without = dataclasses.replace(PRIOR, encode=lambda *args: (*encode(*args)[:2], ()))
    with pytest.raises(ValueError, match=r"`start_shifts` is 0\.5, but this prior's encoder predicts no shifts"):
        dj.inpaint(without, IMAGES, HOLES, KEY, config)


@pytest.mark.parametrize(("name", "value"), [("start_shifts", 1.5), ("start_shifts", -0.1), ("blend", "seamless")])
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` of InpaintConfig is {value!r}; it takes"):
        dataclasses.replace(CONFIG, **{name: value})


@pytest.mark.parametrize("name", ["start_shifts", "guess_length"])
def test_parts_of_the_guess_without_the_encoder_s_start_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}` of InpaintConfig is 0\.5; it takes 0, unless `start` is encoder"):
        dj.InpaintConfig(**{name: 0.5})


def spoilt_image(params, z, shifts=()):
    x = decode(params, z, shifts)
    return jnp.where(jnp.sum(z, axis=1)[:, None, None, None] < -1, jnp.nan, x)


def spoilt_judgement(params, x):
    return jnp.where(x[:, 0, 0, 0] > 0, jnp.nan, judge(params, x))


@pytest.mark.parametrize("spoilt", [{"generate": spoilt_image}, {"discriminate": spoilt_judgement}])
def test_the_mean_of_several_completions_takes_the_guess_s_structure(spoilt):
    """One smooth image is added to all completions of an image. One that is not finite has no influence."""
    prior = dataclasses.replace(PRIOR, **spoilt)
    found = dataclasses.replace(CONFIG, num_steps=0, refine_steps=0, restarts=6, num_completions=6, start_shifts=0.5)
    without, result = (
        dj.inpaint(prior, IMAGES, HOLES, KEY, dataclasses.replace(found, guess_length=length)) for length in (0.0, 0.7)
    )
    good = np.asarray(result.alternatives.status) == 0
    np.testing.assert_array_equal(good, np.asarray(without.alternatives.status) == 0)
    assert 0 < good.sum() < good.size and (good.sum(axis=1) > 1).any()
    for i in np.flatnonzero(good.any(axis=1)):
        mean, shift = (jnp.asarray(x, jnp.float32)[None] for x in numpy_start(i))
        completions = np.asarray(without.alternatives.completions[i])[good[i]]
        guess = np.asarray(decode(PARAMS, mean, (shift,))[0])
        expected = completions + numpy_smoothed(guess - completions.mean(axis=0), 0.7)
        np.testing.assert_allclose(np.asarray(result.alternatives.completions[i])[good[i]], expected, atol=1e-5)


def test_a_guess_without_shifts_gives_structure_too():
    """Of a decoder that takes no shifts, the guess is the image of the encoder's latent."""
    prior = dataclasses.replace(PRIOR, feature_shapes=())
    whole = dataclasses.replace(CONFIG, refine_steps=0, guess_length=0.01)  # all but nothing is finer
    guess = dataclasses.replace(whole, guess_length=0.0, num_steps=0)
    one, other = (dj.inpaint(prior, IMAGES, HOLES, KEY, config) for config in (whole, guess))
    np.testing.assert_allclose(one.completions, other.completions, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "encoder"}, '`start` is "encoder", but this prior has no encoder'),
        ({"encoder_weight": 2.0}, "`encoder_weight` is 2, but this prior has no encoder"),
        ({"refine_steps": 3}, "`refine_steps` is 3, but the decoder of this prior takes no feature shifts"),
    ],
)
def test_settings_that_the_prior_does_not_support_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dj.inpaint(PLAIN, IMAGES, HOLES, KEY, dj.InpaintConfig(**changes))
    with pytest.raises(ValueError, match=message):
        list(dj.inpaint_stream(PLAIN, [(IMAGES[0], HOLES[0])], KEY, dj.InpaintConfig(**changes)))


if __name__ == "__main__":
    compare_stream_with_batch(dataclasses.replace(CONFIG, **SEVERAL))
    compare_stream_with_batch(EARLY)
