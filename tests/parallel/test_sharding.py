"""Where arrays lie."""

import jax
import numpy as np
from jax.sharding import PartitionSpec

from dcgan_jax.parallel import sharding


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
