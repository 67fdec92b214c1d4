"""The same networks, training step and search in PyTorch, as a good PyTorch user would write them.

PyTorch pads a 5×5 stride-2 convolution by 2 on either side, this library by 1 before and 2 after. With rows and columns
reversed, the first becomes the second. This library's weights, mirrored, therefore give the same losses on mirrored
images, and neither side needs an explicit padding.
"""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.networks.layers import LEAK, STATISTICS_DECAY
from dcgan_jax.training.config import TrainConfig

Network = TypeVar("Network", bound=nn.Module)
TrainStep = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
SearchStep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SearchStart = Callable[[torch.Tensor], SearchStep]


class Generator(nn.Module):
    """Latents [n, latent_dim] -> images [n, c, h, w] in [−1, 1]."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        model = config.model
        widths = [*model.widths[::-1], model.channels]
        self.dense = nn.Linear(model.latent_dim, 16 * widths[0], bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-5) for width in widths[:-1])
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1, bias=b == model.channels)
            for a, b in itertools.pairwise(widths)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.dense(z).view(len(z), -1, 4, 4)
        for norm, up in zip(self.norms, self.ups, strict=True):
            x = up(F.relu(norm(x), inplace=True))
        return torch.tanh(x.float())


class Discriminator(nn.Module):
    """Images [n, c, h, w] -> logits [n]."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        model = config.model
        widths = [model.channels, *model.widths]
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=2, padding=2, bias=a == model.channels) for a, b in itertools.pairwise(widths)
        )
        momentum = 1 - STATISTICS_DECAY
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-5, momentum=momentum) for width in widths[2:])
        self.dense = nn.Linear(16 * widths[-1], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.downs[0](x), LEAK, inplace=True)
        for down, norm in zip(list(self.downs)[1:], self.norms, strict=True):
            x = F.leaky_relu(norm(down(x)), LEAK, inplace=True)
        return self.dense(x.flatten(1))[:, 0].float()


class Mode:
    """How PyTorch runs: "float32" or "bfloat16"; "eager", "channels_last" or "compiled" (also channels last)."""

    def __init__(self, dtype: str, name: str) -> None:
        self.dtype = dtype
        self.compiles = name == "compiled"
        self.layout = torch.contiguous_format if name == "eager" else torch.channels_last
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, like XLA
        torch.backends.cudnn.benchmark = True

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """PyTorch's bfloat16: weights and optimiser in float32, products in bfloat16."""
        if self.dtype == "bfloat16":
            return torch.autocast(self.device, torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, x: torch.Tensor) -> torch.Tensor:
        """Moves an array to the device, images in this mode's memory layout."""
        return x.to(self.device, memory_format=self.layout) if x.ndim == 4 else x.to(self.device)

    def place_network(self, network: Network) -> Network:
        """Moves a network to the device, in this mode's memory layout."""
        # PyTorch's stubs lack `memory_format` for a module, though its documentation has it.
        return network.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]

    def finish(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def load(generator: Generator, discriminator: Discriminator, weights: dict[str, Any]) -> None:
    """Loads this library's "generator" and "discriminator" parameters, and their "..._statistics" if present."""
    g, d = weights["generator"], weights["discriminator"]
    with torch.no_grad():
        width = len(g["norm_0"]["scale"])
        dense = np.asarray(g["dense"]["kernel"]).reshape(-1, 4, 4, width)[:, ::-1, ::-1]  # [latent, h, w, c]
        _set(generator.dense.weight, dense.transpose(3, 1, 2, 0).reshape(16 * width, -1))
        for i, (norm, up) in enumerate(zip(generator.norms, generator.ups, strict=True)):
            _set_norm(norm, g[f"norm_{i}"], weights.get("generator_statistics", {}).get(f"norm_{i}"))
            _set(up.weight, np.asarray(g[f"up_{i}"])[::-1, ::-1].transpose(3, 2, 0, 1))
        _set(generator.ups[-1].bias, g["bias"])
        for i, down in enumerate(discriminator.downs):
            _set(down.weight, np.asarray(d[f"down_{i}"])[::-1, ::-1].transpose(3, 2, 0, 1))
        _set(discriminator.downs[0].bias, d["bias"])
        for i, norm in enumerate(discriminator.norms, 1):
            _set_norm(norm, d[f"norm_{i}"], weights.get("discriminator_statistics", {}).get(f"norm_{i}"))
        dense = np.asarray(d["dense"]["kernel"]).reshape(4, 4, -1)[::-1, ::-1]
        _set(discriminator.dense.weight, dense.transpose(2, 0, 1).reshape(1, -1))
        _set(discriminator.dense.bias, d["dense"]["bias"])


def mirrored(images: np.ndarray | jax.Array) -> torch.Tensor:
    """Reverses rows and columns: [n, h, w, c] -> [n, c, h, w]."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(images)[:, ::-1, ::-1].transpose(0, 3, 1, 2)))


def train_step(config: TrainConfig, weights: dict[str, Any], mode: Mode) -> TrainStep:
    """Returns step(batch uint8 [n, c, h, w], z, z) -> (discriminator loss, generator loss). It updates its weights."""
    generator, discriminator = Generator(config), Discriminator(config)
    load(generator, discriminator, weights)
    generator, discriminator = mode.place_network(generator), mode.place_network(discriminator)
    betas = config.beta1, config.beta2
    generator_adam = torch.optim.Adam(generator.parameters(), config.learning_rate, betas)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), config.learning_rate, betas)
    average = [x.detach().clone() for x in generator.parameters()]
    run_generator = torch.compile(generator) if mode.compiles else generator
    run_discriminator = torch.compile(discriminator) if mode.compiles else discriminator

    def step(batch: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = mode.place(batch.float() / 127.5 - 1)
        with mode.precision():
            with torch.no_grad():
                generated = run_generator(first)
            real_logits, generated_logits = run_discriminator(real), run_discriminator(generated)
            loss = F.softplus(-real_logits).mean() + F.softplus(generated_logits).mean()
        discriminator_adam.zero_grad()
        loss.backward()
        discriminator_adam.step()
        discriminator.requires_grad_(False)
        with mode.precision():
            generator_loss = F.softplus(-run_discriminator(run_generator(second))).mean()
        generator_adam.zero_grad()
        generator_loss.backward()
        generator_adam.step()
        discriminator.requires_grad_(True)
        # PyTorch's own averaging (`torch.optim.swa_utils`) uses this function, which has no public name.
        torch._foreach_lerp_(average, list(generator.parameters()), 1 - config.average_decay)  # type: ignore
        return loss.detach(), generator_loss.detach()

    return step


def search_step(config: TrainConfig, search: InpaintConfig, weights: dict[str, Any], mode: Mode) -> SearchStart:
    """Returns start(latents [n, latent_dim]) -> step(images [n, c, h, w], weights [n, 1, h, w]) -> losses [n].

    The importance weights are `weights`. Each start has its own optimiser and best iterate, which its steps update.
    """
    generator, discriminator = Generator(config), Discriminator(config)
    load(generator, discriminator, weights)
    generator, discriminator = (mode.place_network(x).eval().requires_grad_(False) for x in (generator, discriminator))

    def losses(z: torch.Tensor, images: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        completion = generator(z)
        context = (importance * (completion - images).abs()).sum(dim=(1, 2, 3))
        return context - search.prior_weight * F.softplus(discriminator(completion))

    run = torch.compile(losses) if mode.compiles else losses

    def start(latents: torch.Tensor) -> SearchStep:
        z = latents.to(mode.device).clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=search.learning_rate)
        best, best_loss = z.detach().clone(), torch.full((len(z),), float("inf"), device=mode.device)

        def step(images: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
            with mode.precision():
                loss = run(z, images, importance)
            adam.zero_grad()
            loss.sum().backward()
            with torch.no_grad():
                better = loss < best_loss
                best.copy_(torch.where(better[:, None], z, best))
                best_loss.copy_(torch.where(better, loss, best_loss))
                adam.step()
                z.clamp_(-1, 1)
            return loss.detach()

        return step

    return start


def _set(parameter: Any, value: Any) -> None:
    parameter.copy_(torch.from_numpy(np.array(value, np.float32)))


def _set_norm(norm: Any, params: dict[str, Any], statistics: dict[str, Any] | None) -> None:
    _set(norm.weight, params["scale"])
    _set(norm.bias, params["bias"])
    if statistics is not None:
        _set(norm.running_mean, statistics["mean"])
        _set(norm.running_var, statistics["var"])
