"""The same networks, training step and search in PyTorch, as a good PyTorch user would write them.

PyTorch pads a 5×5 stride-2 convolution by 2 on either side, this library by 1 before and 2 after. Seen in a mirror
(rows and columns reversed) the one is the other, so weights from here give the same losses there on mirrored images,
and neither side pays for an explicit padding.
"""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.networks.layers import LEAK, STATISTICS_DECAY
from dcgan_jax.training.config import TrainConfig


class Generator(nn.Module):
    def __init__(self, config: TrainConfig):
        super().__init__()
        model = config.model
        widths = [*model.widths[::-1], model.channels]
        self.dense = nn.Linear(model.latent_dim, 16 * widths[0], bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-5) for width in widths[:-1])
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1, bias=b == model.channels)
            for a, b in itertools.pairwise(widths)
        )

    def forward(self, z):
        x = self.dense(z).view(len(z), -1, 4, 4)
        for norm, up in zip(self.norms, self.ups, strict=True):
            x = up(F.relu(norm(x), inplace=True))
        return torch.tanh(x.float())


class Discriminator(nn.Module):
    def __init__(self, config: TrainConfig):
        super().__init__()
        model = config.model
        widths = [model.channels, *model.widths]
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=2, padding=2, bias=a == model.channels) for a, b in itertools.pairwise(widths)
        )
        momentum = 1 - STATISTICS_DECAY
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-5, momentum=momentum) for width in widths[2:])
        self.dense = nn.Linear(16 * widths[-1], 1)

    def forward(self, x):
        x = F.leaky_relu(self.downs[0](x), LEAK, inplace=True)
        for down, norm in zip(list(self.downs)[1:], self.norms, strict=True):
            x = F.leaky_relu(norm(down(x)), LEAK, inplace=True)
        return self.dense(x.flatten(1))[:, 0].float()


class Mode:
    """How PyTorch runs: in which precision, "eager", "channels_last" or "compiled" (channels last too)."""

    def __init__(self, dtype: str, name: str):
        self.dtype = dtype
        self.compiles = name == "compiled"
        self.layout = torch.contiguous_format if name == "eager" else torch.channels_last
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as XLA has it
        torch.backends.cudnn.benchmark = True

    def precision(self):
        """bfloat16 as PyTorch offers it: weights and optimiser in float32, products in bfloat16."""
        if self.dtype == "bfloat16":
            return torch.autocast(self.device, torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, x):
        images = isinstance(x, nn.Module) or x.ndim == 4
        return x.to(self.device, memory_format=self.layout) if images else x.to(self.device)

    def finish(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def load(generator: Generator, discriminator: Discriminator, weights: dict[str, Any]) -> None:
    """Copies weights of this library: the parameters "generator" and "discriminator", and "..._statistics" if any."""
    g, d = weights["generator"], weights["discriminator"]
    with torch.no_grad():
        width = generator.norms[0].num_features
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


def mirrored(images: np.ndarray) -> torch.Tensor:
    """[n, h, w, c] -> [n, c, h, w], rows and columns reversed."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(images)[:, ::-1, ::-1].transpose(0, 3, 1, 2)))


def train_step(config: TrainConfig, weights: dict[str, Any], mode: Mode) -> Callable:
    """step(batch uint8 [n, c, h, w], z, z) -> (discriminator loss, generator loss), updating its own weights."""
    generator, discriminator = Generator(config), Discriminator(config)
    load(generator, discriminator, weights)
    generator, discriminator = mode.place(generator), mode.place(discriminator)
    adam = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
    generator_adam = torch.optim.Adam(generator.parameters(), **adam)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), **adam)
    average = [x.detach().clone() for x in generator.parameters()]
    run_generator = torch.compile(generator) if mode.compiles else generator
    run_discriminator = torch.compile(discriminator) if mode.compiles else discriminator

    def step(batch, first, second):
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
        torch._foreach_lerp_(average, list(generator.parameters()), 1 - config.average_decay)
        return loss.detach(), generator_loss.detach()

    return step


def search_step(config: TrainConfig, search: InpaintConfig, weights: dict[str, Any], mode: Mode) -> Callable:
    """start(latents [n, latent_dim]) -> step(images [n, c, h, w], importance weights [n, 1, h, w]) -> losses [n].

    Each start has an optimiser and a best iterate of its own, which its steps move.
    """
    generator, discriminator = Generator(config), Discriminator(config)
    load(generator, discriminator, weights)
    generator, discriminator = (mode.place(x).eval().requires_grad_(False) for x in (generator, discriminator))

    def losses(z, images, importance):
        completion = generator(z)
        context = (importance * (completion - images).abs()).sum(dim=(1, 2, 3))
        return context - search.prior_weight * F.softplus(discriminator(completion))

    run = torch.compile(losses) if mode.compiles else losses

    def start(latents):
        z = latents.to(mode.device).clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=search.learning_rate)
        best, best_loss = z.detach().clone(), torch.full((len(z),), float("inf"), device=mode.device)

        def step(images, importance):
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


def _set(parameter: nn.Parameter, value) -> None:
    parameter.copy_(torch.from_numpy(np.array(value, np.float32)))


def _set_norm(norm: nn.BatchNorm2d, params, statistics) -> None:
    _set(norm.weight, params["scale"])
    _set(norm.bias, params["bias"])
    if statistics is not None:
        _set(norm.running_mean, statistics["mean"])
        _set(norm.running_var, statistics["var"])
