"""The mesh of devices and the placement of arrays on it.

The mesh has one axis, "data". Batches are split along it, and weights are copied to every device. `jax.jit` with these
shardings replaces `jax.pmap`, for all devices of all hosts. Batch statistics cover the global batch.
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


# jax.Device comes from a compiled module, where pyright does not see that it is a class.
def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """Returns a mesh with one axis, "data", over `devices`; by default over all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of weights: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Returns the placement of batches: the first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def constrain(array: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Sets the placement of an array inside a program. None leaves the choice to the compiler.

    Random arrays that are drawn inside a program have no placement. Without this function, XLA draws them in full on
    every device, and repeats all computations with them on every device.
    """
    return array if sharding is None else jax.lax.with_sharding_constraint(array, sharding)


def put_batch(mesh: Mesh, images: np.ndarray, indices: np.ndarray) -> jax.Array:
    """Places a global batch along the mesh. Each process reads only the images of its own devices.

    Args:
        mesh: the result of `data_mesh`.
        images: all images of the set, in memory or on disk.
        indices: the numbers of the images in the batch.

    Raises:
        UserError: the batch does not divide evenly over the devices.
    """
    if len(indices) % mesh.size:
        raise UserError(
            f"a batch of {len(indices)} images cannot be split evenly over {mesh.size} devices: "
            f"make `batch_size` a multiple of {mesh.size}"
        )

    def read(index: Any) -> np.ndarray:
        return images[indices[index[0]]]

    return jax.make_array_from_callback((len(indices), *images.shape[1:]), along_batch(mesh), read)


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
    """Copies arrays to every device. Every process must hold the same arrays."""
    place = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, lambda index: x[index]), tree)


def spread(weights: W, batch: B) -> tuple[W, B]:
    """Splits a batch over this process's devices and copies the weights to each. With one device, does nothing.

    A batch that does not divide evenly is padded with copies of its first element.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        return weights, batch
    mesh = data_mesh(devices)
    missing = -jax.tree.leaves(batch)[0].shape[0] % mesh.size
    if missing:
        batch = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)]), batch)
    return jax.device_put(weights, replicated(mesh)), jax.device_put(batch, along_batch(mesh))


def in_shares(mesh: Mesh, tree: W) -> W:
    """Copies replicated arrays so that each device holds its share.

    An array is split along its first axis that the number of devices divides. Where there is none, every device has a
    copy of the whole array.

    Args:
        mesh: the result of `data_mesh`.
        tree: arrays as `put_everywhere` places them.
    """

    def placement(x: jax.Array) -> NamedSharding:
        fits = [i for i, size in enumerate(x.shape) if size and size % mesh.size == 0]
        return NamedSharding(mesh, PartitionSpec(*[None] * fits[0], "data") if fits else PartitionSpec())

    return jax.jit(_copy, out_shardings=jax.tree.map(placement, tree))(tree)


def _copy(tree: W) -> W:
    return jax.tree.map(jnp.copy, tree)
