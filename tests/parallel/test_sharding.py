"""The mesh of devices, and the share of the work that each device computes.

Results also agree when every device computes everything, so the shares are tested by the FLOPs of the programs.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from jax.sharding import PartitionSpec

import dcgan_jax as dj
from dcgan_jax.baselines import context_encoder, context_encoder_training
from dcgan_jax.inpainting import stream
from dcgan_jax.inpainting.inpaint import inpaint_batch
from dcgan_jax.inpainting.restore import restore_batch
from dcgan_jax.measurements import LowResolution
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.parallel import distributed, sharding
from dcgan_jax.training import encoder, gan, loop
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.encoder import encoder_prior

LONG = pytest.mark.long
MOST = 1.02  # bound on the FLOPs, relative to a single device with the same part of the batch
BATCH = 64
MODEL = ModelConfig(image_size=32, channels=1, base_width=8, latent_dim=8)
CLASSES = dataclasses.replace(MODEL, num_classes=3)
GAN = TrainConfig(model=MODEL, batch_size=BATCH, flip=True, noise=0.1)
ENCODER = encoder.EncoderConfig(model=MODEL, batch_size=BATCH, flip=True)
CONTEXT_ENCODER = context_encoder.ContextEncoderConfig(image_size=32, channels=1, base_width=8, batch_size=BATCH)

TRAININGS = {
    "non-saturating loss": GAN,
    "saturating loss": dataclasses.replace(GAN, loss="saturating"),
    "hinge loss": dataclasses.replace(GAN, loss="hinge"),
    "hinge loss and R1": dataclasses.replace(GAN, loss="hinge", r1=1.0),
    "two discriminator steps": dataclasses.replace(GAN, discriminator_steps=2),
    "conditional": dataclasses.replace(GAN, model=CLASSES),
    "bfloat16": dataclasses.replace(GAN, compute_dtype="bfloat16"),
    "encoder": ENCODER,
    "context encoder": CONTEXT_ENCODER,
}
SEARCHES = {
    "default": dj.InpaintConfig(num_steps=5),
    "tolerance": dj.InpaintConfig(num_steps=5, tolerance=0.05),
} | {name: dj.InpaintConfig.preset(name) for name in ("yeh2017", "he2018", "best", "fast", "several")}
RECIPES = {recipe.config: recipe for recipe in (gan.RECIPE, encoder.RECIPE, context_encoder_training.RECIPE)}


def test_the_mesh_has_one_axis_named_data():
    mesh = sharding.data_mesh(jax.devices()[:1])
    assert mesh.axis_names == ("data",) and mesh.size == 1
    assert sharding.along_batch(mesh).spec == PartitionSpec("data")
    assert sharding.replicated(mesh).spec == PartitionSpec()
    assert sharding.data_mesh().size == len(jax.devices())


def test_put_batch_keeps_the_bytes():
    batch = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1), np.uint8)
    mesh = sharding.data_mesh(jax.devices()[:1])
    placed = sharding.put_batch(mesh, batch, np.array([2, 0]))
    assert placed.sharding == sharding.along_batch(mesh) and placed.dtype == np.uint8
    np.testing.assert_array_equal(placed, batch[[2, 0]])


def with_batch(config, size):
    return dataclasses.replace(config, batch_size=size)


def flops(function, mesh, *arguments):
    """FLOPs of one device. The first argument is replicated; arrays in the others are split along the batch."""

    def place(x, along):
        where = sharding.along_batch(mesh) if along and x.ndim else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    placed = [jax.tree.map(functools.partial(place, along=i > 0), x) for i, x in enumerate(arguments)]
    return jax.jit(function).lower(*placed).compile().cost_analysis()["flops"]


def training(config, mesh, told=True):
    """FLOPs of a training step on one device of the mesh."""
    recipe, key = RECIPES[type(config)], jax.random.key(0)
    state = jax.eval_shape(lambda: recipe.init(config, key))
    batch = jax.ShapeDtypeStruct((config.images_per_step, *config.image_shape), np.uint8)
    if config.num_classes:
        batch = batch, jax.ShapeDtypeStruct((config.images_per_step,), np.int32)
    if not told:
        return flops(recipe.make_step(config), mesh, state, batch, jax.eval_shape(lambda: key))
    step = loop.jit_step(recipe.make_step, config, mesh)
    return step.lower(state, batch, jax.eval_shape(lambda: key)).compile().cost_analysis()["flops"]


@functools.cache
def prior():
    state = jax.jit(lambda key: encoder.init_state(ENCODER, key))(jax.random.key(0))
    return encoder_prior(state, ENCODER)


def search_batch(size):
    images = jax.ShapeDtypeStruct((size, 32, 32, 1), np.uint8)
    return (
        images,
        jax.ShapeDtypeStruct((size, 32, 32), bool),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size)),
    )


def searching(config, mesh, size):
    """FLOPs of `inpaint` on one device of the mesh; one step of each loop is counted."""

    def run(prior, images, hole, keys):
        return inpaint_batch(prior, images, hole, keys, config, None)

    return flops(run, mesh, prior(), *search_batch(size))


def refilling(mesh, size):
    """FLOPs of the program of `inpaint_stream` with a tolerance, on one device of the mesh."""
    config, key = SEARCHES["tolerance"], jax.random.key(0)
    images, hole, _ = search_batch(size)
    number = jax.ShapeDtypeStruct((size,), np.int32)
    data = jax.eval_shape(lambda: jnp.zeros((size, *jax.random.key_data(key).shape), np.uint32))
    slots = stream._Item(number, images, hole, data, jax.ShapeDtypeStruct((size,), bool), number)
    _, searches = jax.eval_shape(lambda slots: stream._start(prior(), config, None, key, slots), slots)

    def run(prior, slots, fresh, searches):
        searches, _ = stream._advance(prior, config, None, key, slots, fresh, searches, 5)
        return stream._finish(prior, config, key, slots, searches)

    return flops(run, mesh, prior(), slots, jax.ShapeDtypeStruct((size,), bool), searches)


def restoring(mesh, size):
    """FLOPs of `restore` on one device of the mesh; one step of each loop is counted."""

    def run(prior, measured, keys):
        return restore_batch(prior, measured, LowResolution(4), keys, SEARCHES["best"], 0.1, None)

    return flops(run, mesh, prior(), jax.ShapeDtypeStruct((size, 8, 8, 1), jnp.float32), search_batch(size)[2])


FAULT = "latents that lie nowhere"
PROGRAMS = [*TRAININGS, *SEARCHES, "stream", "restore", FAULT]
SOME = ["hinge loss and R1", "best", FAULT]


def share(name, everyone, alone):
    """FLOPs of one of all devices, divided by the FLOPs of a single device with the same part of the batch."""
    part = BATCH // everyone.size
    if name == "stream":
        return refilling(everyone, BATCH) / refilling(alone, part)
    if name == "restore":
        return restoring(everyone, BATCH) / restoring(alone, part)
    if name in SEARCHES:
        return searching(SEARCHES[name], everyone, BATCH) / searching(SEARCHES[name], alone, part)
    config = TRAININGS.get(name, GAN)
    return training(config, everyone, told=name != FAULT) / training(with_batch(config, part), alone)


@pytest.mark.parametrize(
    ("count", "devices", "names"),
    [
        (1, 8, SOME),
        pytest.param(1, 8, [name for name in PROGRAMS if name not in SOME], marks=LONG),
        pytest.param(2, 1, ["hinge loss and R1", "encoder", "context encoder", FAULT], marks=LONG),
        pytest.param(4, 1, ["hinge loss and R1", FAULT], marks=LONG),
    ],
)
def test_every_device_computes_its_share(count, devices, names, tmp_path):
    started = processes.start(count, [__file__, tmp_path / "shares.json", *names], devices)
    statuses, _, errors = processes.finish(started, timeout=600)
    assert statuses == [0] * count, errors
    found = json.loads((tmp_path / "shares.json").read_text())
    assert list(found) == names
    if FAULT in found:  # this fault is made on purpose and must be noticed
        assert found.pop(FAULT) > 1.2
    assert {name: share for name, share in found.items() if not 0.9 < share <= MOST} == {}


if __name__ == "__main__":
    distributed.join(training=False)
    everyone, alone = sharding.data_mesh(), sharding.data_mesh(jax.local_devices()[:1])
    found = {name: share(name, everyone, alone) for name in sys.argv[2:]}
    if distributed.is_first():
        Path(sys.argv[1]).write_text(json.dumps(found))
