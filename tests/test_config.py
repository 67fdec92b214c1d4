"""Configurations: published values, checks, JSON."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import dcgan_jax
from dcgan_jax.baselines.config import ContextEncoderConfig
from dcgan_jax.config import Config, option
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training.config import EncoderConfig, TrainConfig


def test_presets_carry_the_published_settings():
    radford = TrainConfig.preset("radford2016")
    assert (radford.batch_size, radford.learning_rate, radford.beta1, radford.loss) == (
        128,
        2e-4,
        0.5,
        "non_saturating",
    )
    assert (radford.model.latent, radford.model.latent_dim, radford.flip, radford.noise) == ("uniform", 100, False, 0.0)
    he = TrainConfig.preset("he2018")
    assert (he.batch_size, he.learning_rate, he.num_steps, he.loss) == (64, 1e-4, 1500, "saturating")
    assert he.model.latent == "normal" and he.noise > 0
    for dataset in ("svhn", "cars"):
        assert TrainConfig.preset("he2018", dataset=dataset) == he
    faces = dataclasses.replace(he, batch_size=128, learning_rate=2e-4)
    assert TrainConfig.preset("he2018", dataset="celeba") == faces
    yeh = TrainConfig.preset("yeh2017", dataset="celeba")
    assert (yeh.model.latent, yeh.flip, yeh.learning_rate, yeh.beta1) == ("uniform", True, 2e-4, 0.5)


def test_the_modern_preset_is_radford_s_network_with_a_hinge_loss_and_a_penalty():
    assert TrainConfig.preset("modern") == TrainConfig(loss="hinge", r1=1.0)


def test_search_presets_carry_the_published_settings():
    yeh = InpaintConfig.preset("yeh2017")
    assert (yeh.num_steps, yeh.prior_weight, yeh.window) == (1500, 0.003, 7)
    assert (yeh.keep_best, yeh.clip, yeh.latent_bound) == (False, True, None)
    he = InpaintConfig.preset("he2018")
    assert (he.num_steps, he.prior_weight, he.window) == (200, 0.003, 7)
    assert (he.clip, he.latent_bound) == (True, 1.0)


def test_model_defaults_are_the_published_network():
    model = ModelConfig()
    assert (model.image_size, model.channels, model.latent_dim) == (64, 3, 100)
    assert model.widths == (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: TrainConfig.preset("goodfellow"), ["goodfellow", "radford2016", "he2018", "yeh2017", "modern"]),
        (lambda: TrainConfig.preset("he2018", dataset="mnist"), ["mnist", "celeba"]),
        (lambda: InpaintConfig.preset("radford2016"), ["radford2016", "yeh2017", "he2018"]),
        (lambda: TrainConfig.from_json({"batchsize": 3}), ["batchsize", "batch_size"]),
        (lambda: TrainConfig.from_json({"model": {"width": 3}}), ["ModelConfig", "width", "base_width"]),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(make, names):
    with pytest.raises(UserError) as error:
        make()
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ModelConfig, "image_size", 48),
        (ModelConfig, "image_size", 64.0),
        (ModelConfig, "channels", 2),
        (ModelConfig, "latent_dim", 0),
        (ModelConfig, "base_width", 0),
        (ModelConfig, "latent", "gaussian"),
        (TrainConfig, "model", {"image_size": 64}),
        (TrainConfig, "batch_size", 0),
        (TrainConfig, "batch_size", 8.0),
        (TrainConfig, "batch_size", True),
        (TrainConfig, "num_steps", 0),
        (TrainConfig, "learning_rate", -1e-4),
        (TrainConfig, "learning_rate", 0.0),
        (TrainConfig, "learning_rate", math.nan),
        (TrainConfig, "learning_rate", math.inf),
        (TrainConfig, "learning_rate", "2e-4"),
        (TrainConfig, "beta1", 1.0),
        (TrainConfig, "seed", -1),
        (TrainConfig, "beta2", -0.1),
        (TrainConfig, "average_decay", 1.0),
        (TrainConfig, "discriminator_steps", 0),
        (TrainConfig, "loss", "wasserstein"),
        (TrainConfig, "flip", 1),
        (TrainConfig, "noise", -0.1),
        (TrainConfig, "noise", math.nan),
        (TrainConfig, "compute_dtype", "float16"),
        (TrainConfig, "checkpoint_every", 0),
        (InpaintConfig, "num_steps", -1),
        (InpaintConfig, "learning_rate", 0.0),
        (InpaintConfig, "prior_weight", -0.003),
        (InpaintConfig, "prior_weight", math.inf),
        (InpaintConfig, "window", 4),
        (InpaintConfig, "window", -1),
        (InpaintConfig, "restarts", 0),
        (InpaintConfig, "tolerance", -0.01),
        (InpaintConfig, "tolerance", 1.0),
        (InpaintConfig, "tolerance", math.nan),
        (InpaintConfig, "patience", 0),
        (InpaintConfig, "keep_best", "yes"),
        (InpaintConfig, "latent_bound", 0.0),
        (InpaintConfig, "latent_bound", math.nan),
        (InpaintConfig, "latent_bound", "1"),
    ],
)
def test_a_refused_value_is_named_with_its_field(kind, field, value):
    with pytest.raises(UserError) as error:
        kind(**{field: value})
    assert f"`{field}`" in str(error.value) and repr(value) in str(error.value)
    if field != "model":
        with pytest.raises(UserError, match=f"`{field}`"):
            kind.from_json({field: value})


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(image_size=32, channels=1, latent="normal"),
        TrainConfig(),
        TrainConfig.preset("he2018", dataset="celeba"),
        TrainConfig(model=ModelConfig(base_width=3), batch_size=7, compute_dtype="bfloat16", flip=True),
        InpaintConfig(),
        InpaintConfig(latent_bound=0.5, window=1),
    ],
)
def test_json_keeps_every_setting(config):
    text = json.dumps(config.to_json(), allow_nan=False)
    back = type(config).from_json(json.loads(text))
    assert back == config and hash(back) == hash(config)


def test_a_whole_number_is_accepted_as_a_number():
    config = TrainConfig(noise=1)
    assert type(config.noise) is float and config == TrainConfig(noise=1.0)


def test_fields_left_out_of_json_take_their_defaults():
    assert TrainConfig.from_json({"model": {"channels": 1}}) == TrainConfig(model=ModelConfig(channels=1))


@pytest.mark.parametrize("kind", [ModelConfig, TrainConfig, InpaintConfig, EncoderConfig, ContextEncoderConfig])
def test_every_field_says_what_it_means(kind):
    assert all(field.name == "model" or field.metadata["help"] for field in dataclasses.fields(kind))


@dataclass(frozen=True)
class Ranges(Config):
    least: int = option(1, "help", min=1)
    most: int = option(1, "help", max=3)
    above: float | None = option(None, "help", above=0)
    below: float = option(0.0, "help", below=1)
    both: float = option(0.5, "help", min=0, max=1)
    open: float = option(0.5, "help", above=0, below=1)


@pytest.mark.parametrize(
    ("field", "good", "bad", "takes"),
    [
        ("least", 1, 0, "1 or more"),
        ("most", 3, 4, "3 or less"),
        ("above", None, 0.0, "a number above 0"),
        ("below", 0.99, 1.0, "a number below 1"),
        ("both", 1.0, 1.1, "a number from 0 to 1"),
        ("open", 0.01, 0.0, "a number from above 0 to below 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(field, good, bad, takes):
    assert getattr(Ranges(**{field: good}), field) == good
    with pytest.raises(UserError) as error:
        Ranges(**{field: bad})
    assert str(error.value) == f"`{field}` of Ranges is {bad!r}; it takes {takes}"


def test_configurations_import_nothing_heavy():
    """The command's parser is built from them, and its help must appear at once."""
    program = f"""
import sys, types
package = sys.modules["dcgan_jax"] = types.ModuleType("dcgan_jax")  # without what the real one imports
package.__path__ = {[str(Path(dcgan_jax.__file__).parent)]}
import dcgan_jax.config, dcgan_jax.errors, dcgan_jax.networks.config, dcgan_jax.inpainting.config
import dcgan_jax.training.config, dcgan_jax.baselines.config
print({{"jax", "numpy", "flax", "scipy", "PIL"}} & set(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
