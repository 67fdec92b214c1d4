"""The mesh of devices and where arrays lie on it.

One axis, "data": batches are split along it, weights are on every device. `jax.jit` with these shardings does what
`jax.pmap` used to do, for all devices of all hosts, and its batch statistics are those of the global batch.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dcgan_jax.errors import UserError


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """A mesh with the one axis "data" over `devices`, by default all there are."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Where weights lie: whole, on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Where batches lie: the first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """Places a batch of the host along the mesh.

    Raises:
        UserError: the devices do not divide it evenly.
    """
    if batch.shape[0] % mesh.size:
        raise UserError(
            f"a batch of {batch.shape[0]} images does not divide over {mesh.size} devices: "
            f"make `batch_size` a multiple of {mesh.size}"
        )
    return jax.device_put(batch, along_batch(mesh))
