"""Compiles every layer's three maps for an absent H100 and prints their FLOP, a line of JSON per layer.

One program has all layers of a type and a width. Start it with `absent_devices.environment("h100")`.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

import dcgan_jax as dj
from benchmarks import absent_devices, networks
from benchmarks.compiled import Program, text_of
from benchmarks.hlo import matched
from dcgan_jax.networks.convolution import conv_down, conv_up
from dcgan_jax.parallel import sharding

BATCH = 64
Layer = tuple[int, int, int]  # small side, outer and inner channels
SIZES, WIDTHS, DTYPES = (32, 64, 128, 256), (32, 64, 128), ("float32", "bfloat16")


def maps(layer: Layer, x: jax.Array, kernel: jax.Array, y: jax.Array) -> list[Any]:
    """The layer down, up, and the gradient of its kernel, each in its own named scope."""
    found = []
    for name, run in (
        ("down", lambda: conv_down(x, kernel)),
        ("up", lambda: conv_up(y, kernel)),
        ("kernel", lambda: jax.vjp(lambda kernel: conv_down(x, kernel), kernel)[1](y)),
    ):
        with jax.named_scope("layer_" + "_".join(map(str, layer)) + "_" + name):
            found.append(run())
    return found


def count(dtype: str, width: int, place: jax.sharding.Sharding) -> list[dict[str, Any]]:
    """Counts the FLOP of each layer of this type and width in networks of all sizes."""
    layers = sorted({x for n in SIZES for x in networks.layers(dj.ModelConfig(base_width=width, image_size=n))})

    def run(arguments: list[list[jax.Array]]) -> list[list[Any]]:
        return [maps(layer, *argument) for layer, argument in zip(layers, arguments, strict=True)]

    arguments = []
    for side, outer, inner in layers:
        shapes = (BATCH, 2 * side, 2 * side, outer), (5, 5, outer, inner), (BATCH, side, side, inner)
        arguments.append([jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes])
    program = jax.jit(run).lower(arguments).compile()
    parts: dict[Layer, dict[str, float]] = {layer: {"down": 0.0, "up": 0.0, "kernel": 0.0} for layer in layers}
    for kernel in Program(text_of(program)).count().whole().kernels:
        if kernel.flop:
            name = matched(r"layer_(\d+)_(\d+)_(\d+)_(\w+)", kernel.op_name)
            parts[int(name[1]), int(name[2]), int(name[3])][name[4]] += sum(kernel.flop.values())
    found = []
    for side, outer, inner in layers:
        asked = 2 * 25 * BATCH * side**2 * outer * inner  # FLOP of each of the three maps
        found.append({"layer": [dtype, side, outer, inner], "asked": asked, "multiplied": parts[side, outer, inner]})
    return found


def main() -> None:
    """Prints the layers of all types, widths and sizes."""
    place = sharding.replicated(sharding.data_mesh(absent_devices.devices("h100")))
    kinds = [(dtype, width, place) for dtype in DTYPES for width in WIDTHS]
    with ThreadPoolExecutor(2) as threads:  # one compilation leaves the second core idle
        for layers in threads.map(lambda kind: count(*kind), kinds):
            for layer in layers:
                print(json.dumps(layer))


if __name__ == "__main__":
    main()
