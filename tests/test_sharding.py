"""Eight devices compute what one computes, and where arrays lie."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dcgan_jax import sharding

# Runs steps on eight pretended devices and on the first of them, and prints the largest relative differences.
COMPARISON = """
import json

import jax
import jax.numpy as jnp
import numpy as np

from dcgan_jax import sharding
from dcgan_jax.config import ModelConfig, TrainConfig
from dcgan_jax.errors import UserError
from dcgan_jax.training import init_state, make_train_step

model = ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=6)
config = TrainConfig(model=model, batch_size=16, flip=True, noise=0.1)
start = jax.device_get(jax.jit(lambda key: init_state(config, key))(jax.random.key(0)))


def steps(devices, dtype, count):
    mesh = sharding.data_mesh(devices)
    everywhere, split = sharding.replicated(mesh), sharding.along_batch(mesh)
    state = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, start)
    state = jax.device_put(state, everywhere)
    step = jax.jit(
        make_train_step(config),
        in_shardings=(everywhere, split, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    rng = np.random.default_rng(0)
    for _ in range(count):
        batch = sharding.put_batch(mesh, rng.integers(0, 256, (16, 32, 32, 1), np.uint8), np.arange(16))
        assert len(batch.addressable_shards) == len(devices)
        assert batch.addressable_shards[0].data.shape[0] == 16 // len(devices)
        state, metrics = step(state, batch, jax.random.key(1))
    assert all(x.sharding.is_fully_replicated and len(x.devices()) == len(devices) for x in jax.tree.leaves(state))
    return jax.device_get((state, metrics))


def difference(one, other):
    def relative(a, b):
        assert a.dtype == b.dtype
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(relative, one, other)))


eight = jax.devices()
assert len(eight) == 8
report = {}

one, many = (steps(devices, jnp.float32, 1)[0] for devices in (eight[:1], eight))
# After one step Adam's first moment is (1 - beta1) times the gradient of the last update.
report["gradients"] = difference(
    *[(s.discriminator_optimizer[0].mu, s.generator_optimizer[0].mu) for s in (one, many)]
)
with jax.enable_x64(True):
    one, many = (steps(devices, jnp.float64, 5) for devices in (eight[:1], eight))
    assert one[0].generator["up_0"].dtype == np.float64 and one[0].step == 5
    report["float64"] = difference(one, many)
try:
    sharding.put_batch(sharding.data_mesh(), np.zeros((12, 2), np.uint8), np.arange(12))
except UserError as error:
    report["refusal"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def comparison():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
    }
    run = subprocess.run([sys.executable, "-c", COMPARISON], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_gradients_on_eight_devices_are_those_on_one(comparison):
    assert comparison["gradients"] < 1e-5


def test_five_steps_on_eight_devices_are_those_on_one_in_float64(comparison):
    assert comparison["float64"] < 1e-8


def test_a_batch_the_devices_do_not_divide_is_refused(comparison):
    assert "12 images" in comparison["refusal"] and "multiple of 8" in comparison["refusal"]


def test_the_mesh_has_the_one_axis_data():
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
