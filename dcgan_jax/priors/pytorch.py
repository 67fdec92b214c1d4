"""Priors made from the weights of a PyTorch DCGAN in the layout of pytorch/examples.

Its layers are those of `networks.dcgan`, but its kernels have 4×4 taps. Along each axis its convolutions compute
y[i] = Σ_k x[2i + k − 1] w[k] over k = 0 to 3, and its transposed convolutions are the transposes of these. That is
`conv_down` and `conv_up` with a fifth tap of 0. So the weights become those of an ordinary DCGAN.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import IMAGE_SIZES, ModelConfig
from dcgan_jax.networks.direct import KERNEL_SIZE
from dcgan_jax.priors.dcgan import prior_from_params
from dcgan_jax.priors.prior import Prior


class _Layer(NamedTuple):
    """A convolution from a large image to a small one, or its transpose, and the batch norm of the small image."""

    kernel: np.ndarray  # [4, 4, channels of the large image, channels of the small image]
    norm: dict[str, np.ndarray]  # "scale", "bias", "mean" and "var" of the small image's channels; {} for none


def prior_from_pytorch(generator: str | Path, discriminator: str | Path | None = None) -> Prior:
    """Makes a prior from the weights of a PyTorch DCGAN in the layout of pytorch/examples.

    The prior is an ordinary DCGAN: `save_prior` writes it, the commands take that file, and an encoder can be trained
    for it. Latents are standard normal. Batch norm uses its running statistics, as after `netG.eval()`. The images are
    those of PyTorch up to rounding, which is least under `jax.default_matmul_precision("highest")`.

    The files hold `netG.state_dict()` and `netD.state_dict()` as safetensors. All kernels are 4×4, without biases.
    The shapes tell the number and widths of the layers, the channels, and the sizes of images and latents. One layer
    fewer makes images of 32×32 pixels in place of 64×64, one more makes 128×128.

    A layer that is narrower than `ModelConfig.widths` is filled up with channels of 0. They change no image and no
    logit, but take time. So the base width is that of the wider network (ngf or ndf).

    Args:
        generator: the generator's weights, a .safetensors file.
        discriminator: the discriminator's weights, a .safetensors file; None without a discriminator, which training an
            encoder needs. The prior's logits are its values before the sigmoid.

    Raises:
        UserError: a file cannot be read or has another layout, the images have a size that `ModelConfig` does not
            have, or the discriminator takes images of another shape.

    Source:
        https://github.com/pytorch/examples/tree/main/dcgan

    Example:
        >>> import dcgan_jax as dj
        >>> prior = dj.prior_from_pytorch("netG.safetensors", "netD.safetensors")  # doctest: +SKIP
        >>> dj.save_prior(prior, "prior.safetensors")  # doctest: +SKIP
    """
    layers = {"generator": _read_layers(Path(generator), "netG")}
    shape = _image_shape(layers["generator"])
    if shape[0] not in IMAGE_SIZES or shape[2] not in (1, 3):
        raise UserError(
            f"{generator} makes images of shape {shape}, but a DCGAN of this library has sides of "
            f"{', '.join(map(str, IMAGE_SIZES))} and 1 or 3 channels: write the generator as a function for `dj.Prior`"
        )
    if discriminator is not None:
        layers["discriminator"] = _read_layers(Path(discriminator), "netD")
        if _image_shape(layers["discriminator"]) != shape:
            raise UserError(
                f"{discriminator} takes images of shape {_image_shape(layers['discriminator'])}, but {generator} makes "
                f"{shape}: give networks that were trained together, or the generator alone"
            )
    model = ModelConfig(
        image_size=shape[0],
        channels=shape[2],
        latent_dim=layers["generator"][-1].kernel.shape[3],
        base_width=max(map(_base_width, layers.values())),
        latent="normal",
    )
    params = {name: _network(name, network, model) for name, network in layers.items()}
    return prior_from_params(jax.tree.map(jnp.asarray, params), model)


def _image_shape(layers: list[_Layer]) -> tuple[int, int, int]:
    side = 2 << len(layers)
    return side, side, layers[0].kernel.shape[2]


def _base_width(layers: list[_Layer]) -> int:
    """Returns the least base width of a model whose layers are nowhere narrower."""
    factors = ModelConfig(image_size=_image_shape(layers)[0], base_width=1).widths
    return max(-(-layer.kernel.shape[3] // factor) for layer, factor in zip(layers[:-1], factors, strict=True))


def _network(name: str, layers: list[_Layer], model: ModelConfig) -> dict[str, Any]:
    """Returns the parameters and statistics of "generator" or "discriminator", padded to the model's widths."""
    is_generator = name == "generator"
    *convolutions, last = layers
    numbers = range(len(convolutions))
    if is_generator:
        numbers = reversed(numbers)  # a network numbers its layers from its input on
    params, statistics = {}, {}
    widths = pairwise((model.channels, *model.widths))
    for number, layer, (large, small) in zip(numbers, convolutions, widths, strict=True):
        kernel = _pad(layer.kernel, (KERNEL_SIZE, KERNEL_SIZE, large, small))
        params[f"{'up' if is_generator else 'down'}_{number}"] = kernel
        if layer.norm:
            norm = {key: _pad(x, (small,)) for key, x in layer.norm.items()}
            params[f"norm_{number}"] = {key: norm[key] for key in ("scale", "bias")}
            statistics[f"norm_{number}"] = {key: norm[key] for key in ("mean", "var")}
    outer = last.kernel.shape[3]  # entries of a latent, or 1 for the logit
    dense = _pad(last.kernel, (4, 4, model.widths[-1], outer)).reshape(-1, outer)
    if is_generator:
        params["dense"] = {"kernel": dense.T}
        params["bias"] = np.zeros(model.channels, np.float32)
    else:
        params["dense"] = {"kernel": dense, "bias": np.zeros(1, np.float32)}
        params["bias"] = np.zeros(model.base_width, np.float32)
    return {"params": params, "batch_stats": statistics}


def _pad(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Appends zeros along each axis."""
    return np.pad(x, [(0, after - before) for before, after in zip(x.shape, shape, strict=True)])


def _read_layers(path: Path, network: str) -> list[_Layer]:
    """Reads the layers of "netG" or "netD", beginning at the image."""
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
        if not np.isfinite(x).all() or (name.endswith("running_var") and (x < 0).any()):
            raise UserError(f"{name} in {path} has values that are not finite, or below 0: give another file")
        return x

    # The convolutions' places in `main`, beginning at the image, and the way from each to its batch norm.
    last = max(1, sum(x.ndim == 4 for x in tensors.values()) - 1)
    places, norm_at = (range(3 * last, -1, -3), -2) if network == "netG" else ((0, *range(2, 3 * last, 3)), 1)
    layers, large = [], None
    for i, place in enumerate(places):
        kernel = take(f"main.{place}.weight", (1 if network == "netD" and i == last else None, large, 4, 4))
        large = kernel.shape[0]
        norm = {}
        if i < last and (network == "netG" or i > 0):  # the discriminator's input has no batch norm
            names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
            norm = {key: take(f"main.{place + norm_at}.{name}", (large,)) for key, name in names.items()}
        layers.append(_Layer(kernel.transpose(2, 3, 1, 0), norm))
    if tensors:
        raise UserError(
            f"{path} also has {min(tensors)}, which {network} of pytorch/examples does not have: give another file"
        )
    return layers


def _read_tensors(path: Path, network: str) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            # `nn.DataParallel` puts "module." before each name.
            tensors = {name.removeprefix("module."): file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give another file") from error
    except (AttributeError, TypeError) as error:  # NumPy has no type of 8 bits
        raise UserError(f"{path} cannot be read ({error}): save its weights in float32") from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} cannot be read ({error}): give a .safetensors file. This makes one from a .pth file: "
            f'`safetensors.torch.save_file(torch.load("{network}.pth", weights_only=True), "{network}.safetensors")`'
        ) from error
    return {name: x.astype(np.float32) for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
