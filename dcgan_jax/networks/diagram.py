"""A table and a diagram of the networks: layers, shapes and numbers of parameters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.dcgan import init_gan


class Layer(NamedTuple):
    """A layer of a network."""

    name: str  # name of its parameters
    operation: str
    shape: tuple[int, ...]  # shape of its result for one image
    parameters: int  # number of parameters


def layers(model: ModelConfig) -> dict[str, list[Layer]]:
    """Lists the layers of "generator" and "discriminator" in the order of computation. No network is run.

    Example:
        >>> import dcgan_jax as dj
        >>> layers(dj.ModelConfig(image_size=32, base_width=8))["generator"][0]
        Layer(name='dense', operation='dense', shape=(4, 4, 32), parameters=51200)
    """
    widths, size, channels = model.widths, model.image_size, model.channels
    generator: list[tuple[str, str, tuple[int, ...]]] = [("dense", "dense", (4, 4, widths[-1]))]
    side = 4
    for i, width in enumerate((*widths[-2::-1], channels)):
        generator.append((f"norm_{i}", "batch norm, ReLU", generator[-1][2]))
        side *= 2
        generator.append((f"up_{i}", "transposed convolution", (side, side, width)))
    generator.append(("bias", "bias, tanh", (size, size, channels)))

    discriminator: list[tuple[str, str, tuple[int, ...]]] = []
    for i, width in enumerate(widths):
        side = size // 2 ** (i + 1)
        discriminator.append((f"down_{i}", "convolution", (side, side, width)))
        name, operation = ("bias", "bias, LeakyReLU") if i == 0 else (f"norm_{i}", "batch norm, LeakyReLU")
        discriminator.append((name, operation, (side, side, width)))
    discriminator.append(("dense", "dense", (1,)))
    if model.num_classes:
        discriminator.append(("embedding", "projection on the label's embedding", (1,)))

    weights = jax.eval_shape(lambda: init_gan(model))
    networks = {
        "generator": (generator, weights["generator"]["params"]),
        "discriminator": (discriminator, weights["discriminator"]["params"]),
    }
    return {
        network: [Layer(name, operation, shape, _size(params[name])) for name, operation, shape in rows]
        for network, (rows, params) in networks.items()
    }


def table(model: ModelConfig) -> str:
    """Returns the layers of both networks as Markdown tables, with totals."""
    text = []
    for network, rows in layers(model).items():
        text += [f"### {network}", "", "| layer | operation | output | parameters |", "|---|---|---|---:|"]
        text += [f"| {x.name} | {x.operation} | {_times(x.shape)} | {x.parameters:,} |" for x in rows]
        text += [f"| **total** | | | **{sum(x.parameters for x in rows):,}** |", ""]
    return "\n".join(text)


_GAP, _TOP, _BLOCK_WIDTH, _LINE = 20, 30, 150, 18  # pixels


def draw(model: ModelConfig) -> UInt8[np.ndarray, "h w 3"]:
    """Draws both networks, one in each row.

    Each feature shape is a block. The height of a block grows with the logarithm of the side, its width with the
    logarithm of the number of channels. The captions below a block are the layers that lead to it, with their numbers
    of parameters.
    """
    inputs = {"generator": (model.latent_size,), "discriminator": (model.image_size, model.image_size, model.channels)}
    networks = layers(model)
    rows = {network: _blocks(inputs[network], networks[network]) for network in networks}
    lines = max(len(captions) for blocks in rows.values() for _, captions in blocks)
    block_height = _extent(model.image_size)
    height = _TOP + block_height + (lines + 1) * _LINE + _GAP
    width = max(map(len, rows.values())) * _BLOCK_WIDTH + _GAP
    canvas = Image.new("RGB", (width, len(rows) * height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, (network, blocks) in enumerate(rows.items()):
        top = row * height
        total = sum(layer.parameters for layer in networks[network])
        pen.text((_GAP, top + 8), f"{network}: {total:,} parameters", fill="black", font=font)
        middle, previous = top + _TOP + block_height / 2, 0.0
        for column, (shape, captions) in enumerate(blocks):
            centre = column * _BLOCK_WIDTH + (_GAP + _BLOCK_WIDTH) / 2
            side, channels = (shape[0], shape[2]) if len(shape) == 3 else (1, shape[0])
            tall, wide = _extent(side) / 2, _extent(channels) / 2
            box = (centre - wide, middle - tall, centre + wide, middle + tall)
            pen.rectangle(box, fill=("#9ecae1", "#fdae6b")[row], outline="black")
            if column:
                start, end = centre - _BLOCK_WIDTH + previous, centre - wide - 3
                pen.line((start, middle, end, middle), fill="black")
                pen.polygon((end, middle, end - 6, middle - 4, end - 6, middle + 4), fill="black")
            previous = wide + 3
            for i, caption in enumerate([_times(shape), *captions]):
                place = (centre, top + _TOP + block_height + (i + 0.7) * _LINE)
                pen.text(place, caption, fill="black", font=font, anchor="mm")
    return np.asarray(canvas)


def _blocks(shape: tuple[int, ...], rows: Sequence[Layer]) -> list[tuple[tuple[int, ...], list[str]]]:
    """Lists the feature shapes of a network, input first, each with captions of the layers that lead to it."""
    blocks: list[tuple[tuple[int, ...], list[str]]] = [(shape, ["input"])]
    for layer in rows:
        if layer.shape != blocks[-1][0]:
            blocks.append((layer.shape, []))
        blocks[-1][1].append(f"{layer.name}: {layer.parameters:,}")
    return blocks


def _extent(n: int) -> int:
    """Returns the length of a block in pixels, for a side or a number of channels."""
    return 8 + round(10 * math.log2(max(n, 1)))


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _size(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
