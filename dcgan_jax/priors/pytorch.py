"""Priors made from the weights of a PyTorch DCGAN in the layout of pytorch/examples."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Array, PRNGKeyArray

from dcgan_jax.errors import UserError
from dcgan_jax.networks.convolution import conv_down, conv_up
from dcgan_jax.networks.direct import KERNEL_SIZE
from dcgan_jax.networks.layers import LEAK
from dcgan_jax.networks.normalization import EPSILON
from dcgan_jax.priors.prior import Prior

_Layer = dict[str, np.ndarray]


def prior_from_pytorch(generator: str | Path, discriminator: str | Path | None = None) -> Prior:
    """Makes a prior from the weights of a PyTorch DCGAN in the layout of pytorch/examples.

    The files hold `netG.state_dict()` and `netD.state_dict()` as safetensors. All kernels are 4×4, without biases.
    The shapes tell the number and widths of the layers, the channels, and the sizes of images and latents. One layer
    fewer makes images of 32×32 pixels in place of 64×64. Batch norm uses its running statistics, as after
    `netG.eval()`. Latents are standard normal. A search may refine the features before each ReLU.

    Args:
        generator: the generator's weights, a .safetensors file.
        discriminator: the discriminator's weights, a .safetensors file; None without a discriminator. The prior's
            logits are its values before the sigmoid.

    Raises:
        UserError: a file cannot be read or has another layout, or the discriminator takes images of another shape.

    Source:
        https://github.com/pytorch/examples/tree/main/dcgan

    Example:
        >>> import dcgan_jax as dj
        >>> prior = dj.prior_from_pytorch("netG.safetensors", "netD.safetensors")  # doctest: +SKIP
    """
    up = _read_layers(Path(generator), "netG")
    image_shape = _image_shape(len(up), up[-1])
    params = {"generator": [up[0], *map(_pad, up[1:])]}
    if discriminator is not None:
        down = _read_layers(Path(discriminator), "netD")
        if _image_shape(len(down), down[0]) != image_shape:
            raise UserError(
                f"{discriminator} takes images of shape {_image_shape(len(down), down[0])}, but {generator} makes "
                f"{image_shape}: give networks that were trained together"
            )
        params["discriminator"] = [*map(_pad, down[:-1]), down[-1]]
    return Prior(
        params=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params),
        generate=_generate,
        sample_latents=_sampler(up[0]["kernel"].shape[3]),
        discriminate=None if discriminator is None else _discriminate,
        feature_shapes=tuple((4 << i, 4 << i, len(layer["bias"])) for i, layer in enumerate(up[:-1])),
        image_shape=image_shape,
    )


# One object for each network and size, because priors compare functions by identity.
def _generate(params: Any, z: Array, shifts: Sequence[Array] = ()) -> Array:
    first, *others = params["generator"]
    x = jnp.einsum("nd,hwcd->nhwc", z.astype(first["kernel"].dtype), first["kernel"]) + first["bias"]
    for i, layer in enumerate(others):
        if shifts:
            x = x + shifts[i].astype(x.dtype)
        x = conv_up(jax.nn.relu(x), layer["kernel"]) + layer["bias"]
    return jnp.tanh(x)


def _discriminate(params: Any, x: Array) -> Array:
    *others, last = params["discriminator"]
    x = x.astype(last["kernel"].dtype)
    for layer in others:
        x = jax.nn.leaky_relu(conv_down(x, layer["kernel"]) + layer["bias"], LEAK)
    return jnp.einsum("nhwc,hwco->n", x, last["kernel"])


@functools.cache
def _sampler(latent_dim: int) -> Callable[[PRNGKeyArray, int], Array]:
    return lambda key, n: jax.random.normal(key, (n, latent_dim))


def _read_layers(path: Path, network: str) -> list[_Layer]:
    """Reads the layers of "netG" or "netD", with batch norm multiplied into kernels and biases.

    Returns:
        For each layer "kernel", [4, 4, output, input] of netG and [4, 4, input, output] of netD, and "bias" [output].
    """
    tensors = _read_tensors(path, network)

    def take(name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Takes an array out of `tensors`; None stands for any size."""
        wanted = "×".join("any" if size is None else str(size) for size in shape)
        if name not in tensors:
            raise UserError(f"{path} has no {name} ({wanted}): give a {network}.state_dict() of pytorch/examples")
        x = tensors.pop(name)
        if x.ndim != len(shape) or any(size not in (None, n) for n, size in zip(x.shape, shape, strict=True)):
            raise UserError(
                f"{name} in {path} has the shape {'×'.join(map(str, x.shape))}, but the layout of {network} in "
                f"pytorch/examples has {wanted}: give another file"
            )
        return x

    # The convolutions' places in `main`. Batch norm and ReLU follow each but the last. The first of netD has no norm.
    up = network == "netG"
    last = max(1, sum(x.ndim == 4 for x in tensors.values()) - 1)
    places = range(0, 3 * last + 1, 3) if up else (0, *range(2, 3 * last, 3))
    layers, width = [], None
    for i, place in enumerate(places):
        outputs = 1 if i == last and not up else None
        kernel = take(f"main.{place}.weight", (width, outputs, 4, 4) if up else (outputs, width, 4, 4))
        kernel = kernel.transpose(2, 3, 1, 0)
        width = kernel.shape[2 if up else 3]
        bias = np.zeros(width)
        if i < last and (up or i > 0):
            norm = ("weight", "bias", "running_mean", "running_var")
            scale, shift, mean, variance = (take(f"main.{place + 1}.{name}", (width,)) for name in norm)
            with np.errstate(invalid="ignore"):  # a negative variance is found below
                scale = scale / np.sqrt(variance + EPSILON)
            kernel = kernel * (scale[:, None] if up else scale)
            bias = shift - mean * scale
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(f"main.{place} in {path}, or its batch norm, is not finite everywhere: give another file")
        layers.append({"kernel": kernel, "bias": bias})
    if tensors:
        raise UserError(
            f"{path} also has {min(tensors)}, which {network} of pytorch/examples does not have: give another file"
        )
    return layers


def _read_tensors(path: Path, network: str) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name.removeprefix("module."): file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give another file") from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} cannot be read ({error}): give a .safetensors file. This makes one from a .pth file: "
            f'`safetensors.torch.save_file(torch.load("{network}.pth", weights_only=True), "{network}.safetensors")`'
        ) from error
    return {name: x.astype(np.float64) for name, x in tensors.items() if not name.endswith("num_batches_tracked")}


def _image_shape(depth: int, layer: _Layer) -> tuple[int, int, int]:
    """Returns the shape of the images on one side of `layer`. All layers but that at 4×4 double or halve the side."""
    return 2 << depth, 2 << depth, layer["kernel"].shape[2]


def _pad(layer: _Layer) -> _Layer:
    """Pads a kernel to the 5×5 of `conv_up` and `conv_down`, which are fast on each platform.

    A stride-2 convolution of a 4×4 kernel with padding 1 starts at the same pixel as "SAME" with 5×5.
    """
    gap = KERNEL_SIZE - 4
    return {**layer, "kernel": np.pad(layer["kernel"], ((0, gap), (0, gap), (0, 0), (0, 0)))}
