"""The mesh of devices and where arrays lie on it.

One axis, "data": batches are split along it, weights are on every device. `jax.jit` with these shardings does what
`jax.pmap` used to do, for all devices of all hosts, and its batch statistics are those of the global batch.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dcgan_jax.errors import UserError

W = TypeVar("W")
B = TypeVar("B")


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


def constrain(array: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Tells the compiler how an array inside a program lies on the devices; None leaves it to the compiler.

    What is drawn inside a program has no placement of its own. Without this, XLA draws it whole on every device, and
    then computes on every device all that follows from it.
    """
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def put_batch(mesh: Mesh, images: np.ndarray, indices: np.ndarray) -> jax.Array:
    """Places the images of a global batch along the mesh; each process reads those of its own devices alone.

    Args:
        images: all there are, in memory or on disk.
        indices: which of them make the batch.

    Raises:
        UserError: the devices do not divide it evenly.
    """
    if len(indices) % mesh.size:
        raise UserError(
            f"a batch of {len(indices)} images does not divide over {mesh.size} devices: "
            f"make `batch_size` a multiple of {mesh.size}"
        )

    def read(index):
        return images[indices[index[0]]]

    return jax.make_array_from_callback((len(indices), *images.shape[1:]), along_batch(mesh), read)


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
    """Places arrays that every process has whole onto every device."""
    place = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, lambda index: x[index]), tree)


def spread(weights: W, batch: B) -> tuple[W, B]:
    """Pads a batch to a multiple of this process's devices and spreads it over them; one device changes nothing."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return weights, batch
    mesh = data_mesh(devices)
    missing = -jax.tree.leaves(batch)[0].shape[0] % mesh.size
    if missing:
        batch = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)]), batch)
    return jax.device_put(weights, replicated(mesh)), jax.device_put(batch, along_batch(mesh))
