"""Shared by the benchmarks of the networks: inputs, arithmetic per step, and the limit of matrix products."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dcgan_jax as dj
from benchmarks.harness import Case, Ready
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import GANState

SEED = 7
IMAGE_SIZE = 64


def train_config(base_width: int, batch_size: int, dtype: str) -> TrainConfig:
    """The default settings at this width, batch size and compute type."""
    return TrainConfig(
        model=ModelConfig(image_size=IMAGE_SIZE, base_width=base_width), batch_size=batch_size, compute_dtype=dtype
    )


@functools.cache
def state(config: TrainConfig) -> GANState:
    """A new training state, the same for all cases."""
    return jax.jit(lambda key: dj.init_state(config, key))(jax.random.key(SEED))


def images(count: int) -> np.ndarray:
    """Random images: uint8 [count, h, w, 3]."""
    return np.random.default_rng(SEED).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def layers(model: ModelConfig) -> list[tuple[int, int, int]]:
    """Lists a network's 5×5 stride-2 layers from the image inwards: (small side, outer channels, inner channels).

    A layer has three maps: down, up, and the gradient of its kernel. Each asks for 25 taps x outer channels x inner
    channels at every pixel of the smaller image, also for taps on padding. A multiplication with its addition is two.
    """
    channels = [model.channels, *model.widths]
    sides = [model.image_size // 2 ** (i + 1) for i in range(len(model.widths))]
    return list(zip(sides, channels[:-1], channels[1:], strict=True))


def gflop_forward(config: TrainConfig) -> tuple[float, float, float]:
    """GFLOP of one image through a network: all convolutions; the convolution at the image; the dense layer."""
    model = config.model
    passes = [2 * 25 * outer * inner * side**2 / 1e9 for side, outer, inner in layers(model)]
    return sum(passes), passes[0], 2 * model.latent_size * 16 * model.widths[-1] / 1e9


def gflop_train_step(config: TrainConfig, penalised: bool = False) -> float:
    """GFLOP of a training step. Every tap counts, also on padding.

    It omits the discriminator's dense layer, which is less than a thousandth.

    Args:
        penalised: the step penalises the discriminator's gradient at real images (R1).
    """
    network, first, dense = gflop_forward(config)
    # G forward. D forward on real and generated images, and back to its kernels and, except in layer 1, to its inputs.
    discriminator = network + dense + 2 * (3 * network - first)
    if penalised:
        # D forward and backward to the image. Then the gradient of that in the kernels: through the backward pass to
        # kernels and inputs, and through the forward pass, because batch norm's derivative depends on its input.
        discriminator += 6 * network - first
    # G and D forward, backward through D to the image, and backward to G's kernels and inputs.
    generator = 5 * network + 2 * dense
    return config.batch_size * (config.discriminator_steps * discriminator + generator)


def gflop_search_step(config: TrainConfig) -> float:
    """GFLOP of a search step per image: through both networks and back to the latent. Refinement costs no more."""
    network, _, dense = gflop_forward(config)
    return 4 * network + 2 * dense


def limits(dtypes: tuple[str, ...]) -> list[Case]:
    """A large matrix product in each framework. Cases of a type are compared with the faster one."""
    return [
        Case(f"limit, {dtype}", name, "networks:product", {"dtype": dtype, "framework": framework}, tolerance=1e-2)
        for dtype in dtypes
        for name, framework in (("jax product", "jax"), ("torch product", "torch"))
    ]


def product(dtype: str, framework: str) -> Ready:
    """A 2048×2048 product in "jax" or "torch"."""
    n = 2048
    a = np.random.default_rng(SEED).standard_normal((n, n)).astype(np.float32)
    if framework == "jax":
        x = jnp.asarray(a, dtype)
        multiply = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))
        answer = np.asarray(multiply(x, x))[:8]
        return Ready(lambda: multiply(x, x).block_until_ready(), gflop=2 * n**3 / 1e9, answer={"product": answer})
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    y = torch.from_numpy(a).to(device, getattr(torch, dtype))
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def run() -> None:
        torch.mm(y, y)
        wait()

    return Ready(run, gflop=2 * n**3 / 1e9, answer={"product": torch.mm(y, y)[:8].float().cpu().numpy()})


def compiled(function: jax.stages.Wrapped, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """Compiles a jitted function for its arguments; returns the program and the seconds that it took."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - start
