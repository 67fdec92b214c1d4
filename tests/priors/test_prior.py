"""Priors made from a state, saved and loaded, and priors of any decoder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from safetensors.numpy import load_file, save_file

import dcgan_jax as dj
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.priors import dcgan, files
from dcgan_jax.priors import prior as prior_module
from dcgan_jax.storage import checkpoints, runs
from dcgan_jax.training.config import TrainConfig

MODEL = ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=6)
CONFIG = TrainConfig(model=MODEL, batch_size=8)


@pytest.fixture(scope="module")
def state():
    """A state whose averaged generator differs from its generator."""
    return plain.some_state(CONFIG)


@pytest.fixture(scope="module")
def prior(state):
    return dj.prior_from_state(state, CONFIG)


def latents(prior, n=4, seed=0):
    return dj.sample_latents(prior, jax.random.key(seed), n)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_averaged_generator_has_statistics_of_its_own(prior, state):
    """With the statistics of the other network, the averaged weights would make noise."""
    assert_same(prior.params["generator"]["params"], state.average)
    statistics = plain.quick_jit(lambda params, z: plain.generator(params, z)[1])
    own, raw = (statistics(params, latents(prior, 1024, seed=5)) for params in (state.average, state.generator))

    def distance(one, other):
        """The largest error: of means in standard deviations, of variances relative."""
        return max(
            max(
                np.max(np.abs(one[name]["mean"] - other[name]["mean"]) / np.sqrt(other[name]["var"])),
                np.max(np.abs(one[name]["var"] / other[name]["var"] - 1)),
            )
            for name in other
        )

    found = prior.params["generator"]["batch_stats"]
    # Two estimates of the same statistics, each from 1,024 latents; the raw network's differ.
    assert distance(found, own) < 0.15
    assert distance(found, raw) > 0.5


def test_generate_and_discriminate_agree_with_the_plain_networks(prior):
    z = latents(prior)
    x = dj.generate(prior, z)
    generator, discriminator = prior.params["generator"], prior.params["discriminator"]
    assert x.shape == (4, 32, 32, 1) and x.dtype == jnp.float32
    expected, _ = plain.generator(generator["params"], z, generator["batch_stats"])
    np.testing.assert_allclose(x, expected, atol=1e-5)
    logits, _ = plain.discriminator(discriminator["params"], x, discriminator["batch_stats"])
    assert logits.shape == (4,)
    np.testing.assert_allclose(dj.discriminate(prior, x), logits, rtol=1e-4, atol=1e-5)


def test_a_result_does_not_depend_on_its_batch(prior):
    z = latents(prior, 4)
    others = jnp.concatenate([z[:1], latents(prior, 3, seed=9)])
    x = dj.generate(prior, z)
    np.testing.assert_array_equal(x[0], dj.generate(prior, others)[0])
    np.testing.assert_array_equal(dj.discriminate(prior, x)[0], dj.discriminate(prior, jnp.roll(x, 1, 0))[1])


@pytest.mark.parametrize(("latent", "bounds"), [("uniform", (-1.0, 1.0)), ("normal", None)])
def test_latents_and_their_bounds_follow_the_model(latent, bounds):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, latent=latent))
    prior = dcgan.prior_from_params({}, config.model)
    assert prior.latent_bounds == bounds and prior.model == config.model
    z = np.asarray(latents(prior, 2000))
    assert z.shape == (2000, 6) and (np.abs(z).max() <= 1) == (latent == "uniform")


def test_the_prior_outlives_the_donation_of_its_state(state):
    state = jax.tree.map(jnp.copy, state)
    prior = dj.prior_from_state(state, CONFIG)
    before = np.asarray(dj.generate(prior, latents(prior)))
    changed = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)(state)
    jax.block_until_ready(changed)
    assert state.average["up_0"].is_deleted()
    np.testing.assert_array_equal(dj.generate(prior, latents(prior)), before)
    assert np.isfinite(dj.discriminate(prior, before)).all()


def test_save_and_load_keep_every_bit(prior, tmp_path):
    path = tmp_path / "new" / "prior.safetensors"
    dj.save_prior(prior, path)
    loaded = dj.load_prior(path)
    assert_same(loaded.params, prior.params)
    assert loaded.model == MODEL and loaded.latent_bounds == prior.latent_bounds
    assert [p.name for p in path.parent.iterdir()] == ["prior.safetensors"]
    np.testing.assert_array_equal(dj.generate(loaded, latents(prior)), dj.generate(prior, latents(prior)))


def test_half_rounds_kernels_to_float16_and_nothing_else(prior, tmp_path):
    dj.save_prior(prior, tmp_path / "full.safetensors")
    dj.save_prior(prior, str(tmp_path / "half.safetensors"), half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.65 * (tmp_path / "full.safetensors").stat().st_size
    loaded = dj.load_prior(str(tmp_path / "half.safetensors"))

    def rounded(x):
        x = np.asarray(x)
        return x.astype(np.float16).astype(np.float32) if x.ndim > 1 else x

    assert_same(loaded.params, jax.tree.map(rounded, prior.params))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(loaded.params))


def test_priors_of_one_model_share_compiled_programs(prior, tmp_path):
    dj.save_prior(prior, tmp_path / "prior.safetensors")
    z = latents(prior)
    x = dj.generate(prior, z)
    dj.discriminate(prior, x)
    sizes = prior_module._generate._cache_size(), prior_module._discriminate._cache_size()
    for _ in range(2):
        loaded = dj.load_prior(tmp_path / "prior.safetensors")
        dj.discriminate(loaded, dj.generate(loaded, z))
    assert (prior_module._generate._cache_size(), prior_module._discriminate._cache_size()) == sizes
    dj.generate(prior, z[:3])  # another shape compiles another program; otherwise the check above would be empty
    assert prior_module._generate._cache_size() == sizes[0] + 1


def tampered(path, *, change=None, metadata=None):
    """Changes the tensors or the metadata of a saved prior."""
    tensors = load_file(path)
    if change:
        change(tensors)
    standard = {"format": files.FORMAT, "model": json.dumps(MODEL.to_json())}
    save_file(tensors, path, metadata=standard if metadata is None else metadata)


def model_json(**changes):
    return {"format": files.FORMAT, "model": json.dumps(MODEL.to_json() | changes)}


BIAS = "generator/params/bias"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is not a prior"),
        (lambda path: path.write_bytes(path.read_bytes()[:4]), "is not a prior"),
        (lambda path: path.write_bytes(b""), "is not a prior"),
        (lambda path: path.write_bytes(b"PK" + bytes(1000)), "is not a prior"),
        (lambda path: tampered(path, metadata={}), "its format is .*, not 'dcgan_jax prior'"),
        (lambda path: tampered(path, metadata={"format": "pt"}), "its format is .*, not 'dcgan_jax prior'"),
        (lambda path: tampered(path, metadata={"format": files.FORMAT}), "is not a prior"),
        (lambda path: tampered(path, metadata={"format": files.FORMAT, "model": "{"}), "is not a prior"),
        (lambda path: tampered(path, metadata={"format": files.FORMAT, "model": "3"}), "is not a prior"),
        (lambda path: tampered(path, metadata=model_json(depth=3)), "no field 'depth'"),
        (lambda path: tampered(path, metadata=model_json(image_size=48)), "`image_size`"),
        (lambda path: tampered(path, metadata=model_json(image_size=64)), r"is damaged \(.* but the model has"),
        (lambda path: tampered(path, metadata=model_json(latent_dim=7)), "generator/params/dense/kernel is "),
        (lambda path: tampered(path, change=lambda t: t.pop(BIAS)), f"{BIAS} is None"),
        (
            lambda path: tampered(path, change=lambda t: t.update({"extra": t[BIAS]})),
            r"extra is .*the model has None",
        ),
        (lambda path: tampered(path, change=lambda t: t.update({"generator": t[BIAS]})), r"prior\.safetensors is "),
        (lambda path: tampered(path, change=lambda t: t.update({BIAS: np.zeros(2, np.float32)})), f"{BIAS} is "),
    ],
)
def test_a_damaged_file_is_refused(damage, says, prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    dj.save_prior(prior, path)
    damage(path)
    with pytest.raises(UserError, match=says) as error:
        dj.load_prior(path)
    assert str(path) in str(error.value)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no prior 'mona-lisa'"):
        dj.load_prior("mona-lisa")
    with pytest.raises(UserError, match="there is no prior"):
        dj.load_prior(tmp_path / "nowhere.safetensors")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run's folder \(it has no config.json\)"):
        dj.load_prior(tmp_path)
    runs.write_run(runs.Run(tmp_path, CONFIG.KIND, CONFIG.to_json(), {}))
    for _ in range(2):
        with pytest.raises(UserError, match="holds no checkpoint yet"):
            dj.load_prior(tmp_path)
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
    with checkpoints.CheckpointWriter(tmp_path, CONFIG) as writer:
        writer.save(plain.some_state(CONFIG))
    assert dj.load_prior(tmp_path).model == MODEL


def test_in_bfloat16_images_and_logits_are_nearly_the_same(prior):
    z = dj.sample_latents(prior, jax.random.key(0), 8)
    half = dj.with_compute_dtype(prior, "bfloat16")
    for found, expected in (
        (dj.generate(half, z), dj.generate(prior, z)),
        (dj.discriminate(half, dj.generate(prior, z)), dj.discriminate(prior, dj.generate(prior, z))),
    ):
        assert found.dtype == jnp.float32
        error = float(jnp.max(jnp.abs(found - expected)))
        assert 0 < error < 0.03 * float(jnp.max(jnp.abs(expected)))
    assert dj.with_compute_dtype(half, "float32").generate == prior.generate
    with pytest.raises(UserError, match="`dtype` is 'float16'; it takes float32 or bfloat16"):
        dj.with_compute_dtype(prior, "float16")
    with pytest.raises(UserError, match="your own decoder"):
        dj.with_compute_dtype(OWN, "bfloat16")


def test_priors_that_cannot_be_saved_are_refused(prior, tmp_path):
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        dj.save_prior(prior, tmp_path / "prior.npz")
    with pytest.raises(UserError, match="your own decoder"):
        dj.save_prior(OWN, tmp_path / "prior.safetensors")
    assert not list(tmp_path.iterdir())


def decode(params, z):
    return jnp.tanh(z @ params["w"]).reshape(-1, 6, 5, 1)


def draw(key, n):
    return jax.random.normal(key, (n, 3))


def judge(params, x):
    return x.mean(axis=(1, 2, 3))


WEIGHTS = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
OWN = dj.Prior(params={"w": WEIGHTS}, generate=decode, sample_latents=draw)


def test_any_decoder_is_a_prior():
    z = dj.sample_latents(OWN, jax.random.key(0), 4)
    assert z.shape == (4, 3)
    x = dj.generate(OWN, z)
    np.testing.assert_allclose(x, np.tanh(np.asarray(z) @ WEIGHTS).reshape(4, 6, 5, 1), atol=1e-6)
    assert OWN.image_shape == (6, 5, 1)
    judged = dataclasses.replace(OWN, discriminate=judge)
    np.testing.assert_allclose(dj.discriminate(judged, x), np.asarray(x).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_a_prior_is_a_pytree_under_jit_vmap_and_grad(prior):
    z = dj.sample_latents(OWN, jax.random.key(0), 4)
    np.testing.assert_allclose(jax.jit(dj.generate)(OWN, z), dj.generate(OWN, z), atol=1e-6)
    doubled = jax.tree.map(lambda x: np.stack([x, 2 * x]), OWN)
    both = jax.vmap(dj.generate, (0, None))(doubled, z)
    np.testing.assert_allclose(both[1], np.tanh(np.asarray(z) @ (2 * WEIGHTS)).reshape(4, 6, 5, 1), atol=1e-6)
    slope = jax.grad(lambda z: jnp.sum(dj.generate(OWN, z)))(z)
    np.testing.assert_allclose(slope, (1 - np.tanh(np.asarray(z) @ WEIGHTS) ** 2) @ WEIGHTS.T, atol=1e-5)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(prior))


def test_without_a_critic_discriminate_is_refused():
    with pytest.raises(ValueError, match="`prior` has no discriminator"):
        dj.discriminate(OWN, jnp.zeros((1, 6, 5, 1)))


@pytest.mark.parametrize("z", [np.zeros(6, np.float32), np.zeros((2, 5), np.float32), np.zeros((2, 6), np.int32)])
def test_bad_latents_are_refused(z, prior):
    with pytest.raises(ValueError, match="`z`"):
        dj.generate(prior, z)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 32, 32), np.float32), np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32, 1), np.uint8)]
)
def test_bad_images_are_refused(x, prior):
    with pytest.raises(ValueError, match="`x`"):
        dj.discriminate(prior, x)


def test_the_packaged_priors_know_their_crop():
    crops = {name: dj.load_prior(name).crop for name in files.packaged_priors()}
    assert crops == {"cars-64": "stretch", "digits-64": "center", "faces-64": "celeba"}
