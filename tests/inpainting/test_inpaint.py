"""Inpainting of a batch: keys, the equalities that transformations must keep, number formats, wrong arguments."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from plain import quick_jit
from searches import (
    CONFIG,
    EARLY,
    HOLES,
    IMAGES,
    KEY,
    LATENT,
    NO_CRITIC,
    PARAMS,
    UNIFORM,
    C,
    H,
    W,
    decode,
    kept,
    numpy_search,
    start,
)
from tiny import arrays

import dcgan_jax as dj
from dcgan_jax.inpainting.result import Status

# ------------------------------------------------------------------------------------------ keys


def test_image_i_uses_the_key_folded_with_i():
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, CONFIG)
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(4)])
    assert_same_bits(result, dj.inpaint(UNIFORM, IMAGES, HOLES, keys, CONFIG))
    other = dj.inpaint(UNIFORM, IMAGES, HOLES, keys[::-1], CONFIG)
    assert not np.allclose(result.latents, other.latents)


def test_raw_uint32_keys_are_accepted():
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, CONFIG)
    old = jax.random.PRNGKey(11)
    assert old.dtype == jnp.uint32
    assert_same_bits(result, dj.inpaint(UNIFORM, IMAGES, HOLES, old, CONFIG))
    many = jnp.stack([jax.random.fold_in(old, i) for i in range(4)])
    assert_same_bits(result, dj.inpaint(UNIFORM, IMAGES, HOLES, many, CONFIG))


# ------------------------------------------------------------------------------------------ transformations


def test_batch_equals_loop():
    batch = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, CONFIG)
    for i in range(4):
        one = dj.inpaint(UNIFORM, IMAGES[i : i + 1], HOLES[i], jax.random.fold_in(KEY, i)[None], CONFIG)
        assert_close(one, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))


def test_one_shared_hole_equals_a_hole_each():
    result = dj.inpaint(UNIFORM, IMAGES, HOLES[2], KEY, CONFIG)
    assert_same_bits(result, dj.inpaint(UNIFORM, IMAGES, np.stack([HOLES[2]] * 4), KEY, CONFIG))


def test_jit_equals_eager():
    result = dj.inpaint(UNIFORM, IMAGES, HOLES, KEY, CONFIG)
    jitted = quick_jit(lambda prior, *arrays: dj.inpaint(prior, *arrays, CONFIG))
    assert_close(jitted(UNIFORM, IMAGES, HOLES, KEY), result)


def test_vmap_equals_loop():
    stacks = [np.stack([x, x[::-1]]) for x in (IMAGES, HOLES)]
    keys = jax.random.split(KEY, 2)
    mapped = quick_jit(jax.vmap(lambda *arrays: dj.inpaint(UNIFORM, *arrays, CONFIG)))(*stacks, keys)
    assert mapped.images.shape == (2, 4, H, W, C)
    for k in range(2):
        alone = dj.inpaint(UNIFORM, stacks[0][k], stacks[1][k], keys[k], CONFIG)
        assert_close(jax.tree.map(lambda x, k=k: x[k], mapped), alone)


def test_gradients_agree_with_finite_differences(float64):
    # In float64, so that steps can be too small to cross a jump of sign(G(z) - y).
    config = dataclasses.replace(CONFIG, num_steps=3, learning_rate=0.05)
    # When nothing is known or nothing is missing, and there is no critic, the gradient of the latent is 0.
    # The derivative of Adam's square root must not make NaN of it.
    holes = np.stack([np.zeros((H, W), bool), np.ones((H, W), bool), HOLES[2], HOLES[3]])
    rng = np.random.default_rng(3)
    cotangent = rng.normal(size=IMAGES.shape)
    point = jax.tree.map(lambda x: 0.5 * np.asarray(x, np.float64), (IMAGES, PARAMS))

    def objective(point):
        images, params = point
        result = dj.inpaint(dataclasses.replace(NO_CRITIC, params=params), images, holes, KEY, config)
        return jnp.sum(cotangent * (result.images + result.completions**2))

    value_and_gradient = quick_jit(jax.value_and_grad(objective))
    _, gradient = value_and_gradient(point)
    assert (np.asarray(gradient[0])[holes] == 0).all()  # hidden pixels have no influence
    np.testing.assert_allclose(gradient[0][0], cotangent[0])
    for i in range(2):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point[i])

        def value(t, i=i, direction=direction):
            moved = list(point)
            moved[i] = jax.tree.map(lambda x, y: x + t * y, point[i], direction)
            return float(value_and_gradient(tuple(moved))[0])

        slope = (value(1e-6) - value(-1e-6)) / 2e-6
        expected = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient[i], direction)), strict=True))
        np.testing.assert_allclose(slope, expected, rtol=1e-5)
        assert abs(expected) > 0.1


def test_a_second_call_compiles_nothing():
    compiled = []

    def listen(event, duration, **details):
        if "backend_compile" in event:
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert compiled  # the counter works
    for images in (IMAGES, jnp.asarray(IMAGES)):  # a second program checks arrays that are on a device
        dj.inpaint(UNIFORM, images, HOLES, KEY, CONFIG)
    other = dataclasses.replace(UNIFORM, params=jax.tree.map(lambda x: x / 2, PARAMS))
    keys = jax.random.split(KEY, 4)
    for images in (-IMAGES, jnp.asarray(IMAGES)):
        for key in (jax.random.key(0), keys):
            compiled.clear()
            dj.inpaint(other, images, ~HOLES, key, dataclasses.replace(CONFIG))
            assert not compiled


def test_eight_devices_agree_with_one(tmp_path):
    # 11 images are not a multiple of 8 and 16 are; both use the program for 16.
    (status,), _, (errors,) = processes.finish([processes.as_users_compile(8, __file__, tmp_path / "results.npz")])
    assert status == 0, errors
    with np.load(tmp_path / "results.npz") as found:
        assert (found["devices"] == 8).all()
        # The stream has as many slots as `inpaint` has rows; the order of the images may differ.
        for name in ("latents", "images", "num_steps"):
            assert (found[f"streamed_{name}"] == found[f"early_{name}"]).all(), name
        assert len(set(found["early_num_steps"])) > 1
        expected = dj.inpaint(UNIFORM, *many(16), KEY, CONFIG)
        for n in (11, 16):
            for name, value in arrays(expected).items():
                assert found[f"{name}_{n}"].shape == (n, *value.shape[1:])
                np.testing.assert_allclose(found[f"{name}_{n}"], value[:n], atol=1e-4, err_msg=name)


def many(n):
    """Images and holes; searches with `EARLY` stop early on some of them."""
    return np.concatenate([IMAGES, -IMAGES, IMAGES / 2, -IMAGES / 2])[:n], np.concatenate([HOLES, ~HOLES] * 2)[:n]


def write_results_on_all_devices(path):
    values = {}
    for n in (11, 16):
        result = dj.inpaint(UNIFORM, *many(n), KEY, CONFIG)
        values |= {f"{name}_{n}": np.asarray(value) for name, value in arrays(result).items()}
    early = dj.inpaint(UNIFORM, *many(16), KEY, EARLY)
    streamed = list(dj.inpaint_stream(UNIFORM, zip(*many(16), strict=True), KEY, EARLY, batch_size=16))
    for name in ("latents", "images", "num_steps"):
        values[f"early_{name}"] = np.asarray(getattr(early, name))
        values[f"streamed_{name}"] = np.stack([getattr(item, name) for item in streamed])
    values["devices"] = np.array([len(jax.local_devices()), len(result.images.sharding.device_set)])
    np.savez(path, **values)


# ------------------------------------------------------------------------------------------ values


def test_uint8_images_give_uint8_images():
    levels = np.random.default_rng(6).integers(0, 256, IMAGES.shape, np.uint8)
    result = dj.inpaint(UNIFORM, levels, HOLES, KEY, CONFIG)
    assert result.images.dtype == jnp.uint8 and result.completions.dtype == jnp.float32
    assert (np.asarray(result.images)[~HOLES] == levels[~HOLES]).all()
    floats = dj.inpaint(UNIFORM, (levels / np.float32(127.5) - 1), HOLES, KEY, CONFIG)
    assert floats.images.dtype == jnp.float32
    np.testing.assert_allclose(result.latents, floats.latents, atol=1e-5)
    # The nearest level, up to float rounding.
    exact = (np.asarray(floats.images, np.float64)[HOLES] + 1) * 127.5
    assert abs(np.asarray(result.images)[HOLES] - exact).max() < 0.51


def test_bfloat16_images_give_bfloat16_images():
    halves = IMAGES.astype(jnp.bfloat16)
    result = dj.inpaint(UNIFORM, halves, HOLES, KEY, CONFIG)
    assert result.images.dtype == jnp.bfloat16 and (np.asarray(result.status) == Status.OK).all()
    assert (np.asarray(result.images)[~HOLES] == halves[~HOLES]).all()


def test_uint8_results_are_clipped_to_the_range():
    # The blend shifts this completion out of the range: it must be clipped and must not wrap round.
    for level, end in ((250, 255), (5, 0)):
        sign = np.sign(level - 127)
        params = PARAMS | {"matrix": 0 * PARAMS["matrix"], "offset": np.zeros((H, W, C), np.float32)}
        params["offset"][1:3, 1:3] = sign * 2
        images = np.full((4, H, W, C), level, np.uint8)
        hole = np.zeros((H, W), bool)
        hole[1:3, 1:3] = True
        prior = dataclasses.replace(UNIFORM, params=params | {"offset": jnp.asarray(params["offset"].ravel())})
        result = np.asarray(dj.inpaint(prior, images, hole, KEY, CONFIG).images)
        assert (result[:, hole] == end).all() and (result[:, ~hole] == level).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_known_pixels_that_are_not_finite_are_refused(array, value):
    spoilt = IMAGES.copy()
    spoilt[(1, *np.argwhere(~HOLES[1])[0])] = value
    with pytest.raises(ValueError, match="image 1 of `images` has known pixels that are not finite"):
        dj.inpaint(UNIFORM, array(spoilt), HOLES, KEY, CONFIG)


def test_images_on_another_scale_are_refused():
    levels = np.random.default_rng(6).integers(0, 256, IMAGES.shape).astype(np.float32)
    with pytest.raises(ValueError, match=r"image 0 of `images` has known pixels that reach .*: scale them"):
        dj.inpaint(UNIFORM, levels, HOLES, KEY, CONFIG)
    with pytest.raises(ValueError, match=r"image 0 of `pairs` has known pixels that reach .*: scale them to \[-1, 1\]"):
        next(dj.inpaint_stream(UNIFORM, zip(levels, HOLES, strict=True), KEY, CONFIG))
    # Hidden pixels may have any value.
    dj.inpaint(UNIFORM, np.where(HOLES[..., None], 255, IMAGES).astype(np.float32), HOLES, KEY, CONFIG)


def test_under_jit_a_known_nan_spoils_only_its_own_image():
    spoilt = IMAGES.copy()
    place = tuple(np.argwhere(~HOLES[1])[0])
    spoilt[(1, *place)] = np.nan
    inpaint = jax.jit(lambda images: dj.inpaint(UNIFORM, images, HOLES, KEY, CONFIG))
    result = inpaint(spoilt)
    assert np.asarray(result.status).tolist() == [0, 1, 0, 0] and Status(1).words == "not finite"
    images = np.asarray(result.images)
    assert (images[~HOLES].view(np.uint32) == spoilt[~HOLES].view(np.uint32)).all()
    assert (images[1][HOLES[1]] == 0).all()
    good = inpaint(IMAGES)
    rest = np.array([0, 2, 3])
    assert_same_bits(*(jax.tree.map(lambda x: np.asarray(x)[rest], r) for r in (result, good)))


def test_a_prior_that_makes_nan_gives_grey():
    levels = np.full(IMAGES.shape, 7, np.uint8)
    broken = dataclasses.replace(UNIFORM, params=PARAMS | {"offset": jnp.full(H * W * C, jnp.nan, jnp.float32)})
    result = dj.inpaint(broken, levels, HOLES, KEY, CONFIG)
    assert (np.asarray(result.status) == Status.NOT_FINITE).all()
    assert (np.asarray(result.images) == np.where(HOLES[..., None], 128, 7)).all()


@pytest.mark.parametrize("blend", ["smooth", "sharp"])
def test_a_blend_that_overflows_gives_grey(blend):
    huge = dataclasses.replace(NO_CRITIC, generate=lambda params, z: 1e25 * decode(params, z))
    result = dj.inpaint(huge, IMAGES, HOLES, KEY, dj.InpaintConfig(num_steps=0, blend=blend))
    assert np.isfinite(result.completions).all() and np.isfinite(result.context_loss).all()
    assert (np.asarray(result.status) == Status.NOT_FINITE).all()
    assert (np.asarray(result.images) == np.where(HOLES[..., None], 0, IMAGES)).all()


def test_images_with_everything_or_nothing_missing_have_their_status():
    holes = np.stack([np.ones((H, W), bool), np.zeros((H, W), bool), HOLES[2], HOLES[3]])
    result = dj.inpaint(UNIFORM, IMAGES, holes, KEY, CONFIG)
    assert [Status(i).words for i in np.asarray(result.status)] == ["nothing known", "nothing missing", "ok", "ok"]
    assert (result.context_loss[:2] == 0).all()
    assert (result.images[0] == result.completions[0]).all()
    assert (np.asarray(result.images[1]) == IMAGES[1]).all()
    # With nothing known, the search follows the critic alone.
    search = numpy_search(IMAGES[0], holes[0], CONFIG, start(UNIFORM, 0), (-1, 1))
    np.testing.assert_allclose(result.latents[0], kept(search)[0], atol=2e-4)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("images", {"images": IMAGES[0]}),
        ("images", {"images": IMAGES[:, :, :, :1]}),
        ("images", {"images": IMAGES[:, :-1]}),
        ("images", {"images": IMAGES.astype(np.int32)}),
        ("images", {"images": IMAGES > 0}),
        ("images", {"images": IMAGES.astype(np.float64)}),  # JAX would silently convert it to float32
        ("images", {"images": IMAGES[:0], "hole": HOLES[0]}),
        ("hole", {"hole": HOLES.astype(np.float32)}),
        ("hole", {"hole": HOLES.astype(np.uint8)}),
        ("hole", {"hole": HOLES[:3]}),
        ("hole", {"hole": HOLES[:1]}),
        ("hole", {"hole": HOLES.transpose(0, 2, 1)}),
        ("hole", {"hole": HOLES[..., None]}),
        ("key", {"key": jax.random.split(KEY, 3)}),
        ("key", {"key": jax.random.split(KEY, (4, 1))}),
        ("key", {"key": jax.random.split(jax.random.PRNGKey(0), 3)}),
    ],
)
def test_wrong_arguments_are_refused_by_name(argument, change):
    arguments = {"images": IMAGES, "hole": HOLES, "key": KEY} | change
    with pytest.raises(ValueError, match=f"`{argument}`"):
        dj.inpaint(UNIFORM, config=CONFIG, **arguments)
    with pytest.raises(ValueError, match=f"`{argument}`"):  # the check comes before tracing, so it works under jit
        jax.jit(lambda: dj.inpaint(UNIFORM, config=CONFIG, **arguments))()


def test_a_decoder_may_use_bfloat16_latents():
    def draw(key, n):
        return jax.random.uniform(key, (n, LATENT), jnp.bfloat16, -1, 1)

    prior = dataclasses.replace(UNIFORM, sample_latents=draw)
    result = dj.inpaint(prior, IMAGES, HOLES, jax.random.key(0), CONFIG)
    assert result.latents.dtype == jnp.bfloat16 and (np.asarray(result.status) == 0).all()


def assert_same_bits(a, b):
    for (name, x), y in zip(arrays(a).items(), arrays(b).values(), strict=True):
        assert np.array_equal(x, y, equal_nan=True), name


def assert_close(a, b):
    for (name, x), y in zip(arrays(a).items(), arrays(b).values(), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-5, err_msg=name)


if __name__ == "__main__":
    write_results_on_all_devices(sys.argv[1])
