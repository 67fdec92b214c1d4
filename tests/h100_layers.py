"""Compiles every layer's three maps for an H100 that is not here, and prints what each multiplies, a line of JSON each.

A program for all layers of a type and a width; where it runs, `absent_devices.environment("h100")` is set.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

import dcgan_jax as dj
from benchmarks import absent_devices, networks
from benchmarks.compiled import Program
from dcgan_jax.networks.convolution import conv_down, conv_up
from dcgan_jax.parallel import sharding

BATCH = 64
SIZES, WIDTHS, DTYPES = (32, 64, 128, 256), (32, 64, 128), ("float32", "bfloat16")


def maps(layer, x, kernel, y):
    """The layer down, up, and the gradient of its kernel, each under its own name."""
    found = []
    for name, run in (
        ("down", lambda: conv_down(x, kernel)),
        ("up", lambda: conv_up(y, kernel)),
        ("kernel", lambda: jax.vjp(lambda kernel: conv_down(x, kernel), kernel)[1](y)),
    ):
        with jax.named_scope("layer_" + "_".join(map(str, layer)) + "_" + name):
            found.append(run())
    return found


def count(dtype: str, width: int, place) -> list[dict]:
    """What each layer of this type and width multiplies, of networks of all sizes."""
    layers = sorted({x for n in SIZES for x in networks.layers(dj.ModelConfig(base_width=width, image_size=n))})

    def run(arguments):
        return [maps(layer, *argument) for layer, argument in zip(layers, arguments, strict=True)]

    arguments = []
    for side, outer, inner in layers:
        shapes = (BATCH, 2 * side, 2 * side, outer), (5, 5, outer, inner), (BATCH, side, side, inner)
        arguments.append([jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes])
    text = jax.jit(run).lower(arguments).compile().as_text()
    assert text is not None
    parts = {layer: dict.fromkeys(("down", "up", "kernel"), 0.0) for layer in layers}
    for kernel in Program(text).count().whole().kernels:
        if kernel.flop:
            name = re.search(r"layer_(\d+)_(\d+)_(\d+)_(\w+)", kernel.op_name)
            assert name is not None, f"{kernel.name} has lost its layer: {kernel.op_name!r}"
            parts[tuple(int(number) for number in name.groups()[:3])][name[4]] += sum(kernel.flop.values())
    found = []
    for side, outer, inner in layers:
        asked = 2 * 25 * BATCH * side**2 * outer * inner  # of each of the three
        found.append({"layer": [dtype, side, outer, inner], "asked": asked, "multiplied": parts[side, outer, inner]})
    return found


def main() -> None:
    place = sharding.replicated(sharding.data_mesh(absent_devices.devices("h100")))
    kinds = [(dtype, width, place) for dtype in DTYPES for width in WIDTHS]
    with ThreadPoolExecutor(2) as threads:  # the compiler leaves the second core idle
        for layers in threads.map(lambda kind: count(*kind), kinds):
            for layer in layers:
                print(json.dumps(layer))


if __name__ == "__main__":
    main()
