"""What the benchmarks of the networks share: the same inputs for everybody, the arithmetic counted, and the limits."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import dcgan_jax as dj
from benchmarks.harness import Case, Ready
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training.config import TrainConfig

SEED = 7


def train_config(base_width: int, batch_size: int, dtype: str) -> TrainConfig:
    return TrainConfig(model=ModelConfig(base_width=base_width), batch_size=batch_size, compute_dtype=dtype)


@functools.cache
def state(config: TrainConfig):
    return jax.jit(lambda key: dj.init_state(config, key))(jax.random.key(SEED))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 256, (count, 64, 64, 3), np.uint8)


def layers(model: ModelConfig) -> list[tuple[int, int, int]]:
    """The 5×5 stride-2 layers of a network from the image inwards: small side, outer and inner channels.

    What a layer asks for is defined here: in each of its three maps, down, up and the gradient of its kernel, 25 taps x
    outer channels x inner channels at every place of the smaller image, those taps that lie on padding too. A
    multiplication and its addition are two FLOPs.
    """
    channels = [model.channels, *model.widths]
    sides = [model.image_size // 2 ** (i + 1) for i in range(len(model.widths))]
    return list(zip(sides, channels[:-1], channels[1:], strict=True))


def gflop_forward(config: TrainConfig) -> tuple[float, float, float]:
    """Of an image through the convolutions of a network, all of them; the layer at the image alone; the dense layer."""
    model = config.model
    passes = [2 * 25 * outer * inner * side**2 / 1e9 for side, outer, inner in layers(model)]
    return sum(passes), passes[0], 2 * model.latent_size * 16 * model.widths[-1] / 1e9


def gflop_train_step(config: TrainConfig, penalised: bool = False) -> float:
    """Of a training step; every tap counts, those on padding too.

    The discriminator's dense layer, less than a thousandth, is left out.

    Args:
        penalised: whether it is one of the steps that penalise the discriminator's gradient at real images (R1).
    """
    network, first, dense = gflop_forward(config)
    # G forward; D forward on real and generated images and back to its kernels and, but for the first layer, inputs.
    discriminator = network + dense + 2 * (3 * network - first)
    if penalised:
        # D forward and back to the image; the gradient of that in the kernels: back through the way back, to kernels
        # and inputs, and, as batch norm's derivative depends on its input, through the way there too.
        discriminator += 6 * network - first
    # G and D forward; back through D to the image; back to G's kernels and inputs.
    generator = 5 * network + 2 * dense
    return config.batch_size * (config.discriminator_steps * discriminator + generator)


def gflop_search_step(config: TrainConfig) -> float:
    """Forward through both networks and back to the latent, for an image; refined features cost no more."""
    network, _, dense = gflop_forward(config)
    return 4 * network + 2 * dense


def limits(dtypes: tuple[str, ...]) -> list[Case]:
    """A large matrix product in each framework; cases of a type are compared with the better one."""
    return [
        Case(f"limit, {dtype}", name, "networks:product", {"dtype": dtype, "framework": framework}, tolerance=1e-2)
        for dtype in dtypes
        for name, framework in (("jax product", "jax"), ("torch product", "torch"))
    ]


def product(dtype: str, framework: str) -> Ready:
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

    def run():
        torch.mm(y, y)
        wait()

    return Ready(run, gflop=2 * n**3 / 1e9, answer={"product": torch.mm(y, y)[:8].float().cpu().numpy()})


def compiled(function, *arguments):
    """A compiled program and the seconds that took, with nothing cached."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - start
