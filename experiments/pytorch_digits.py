"""`python -m experiments.pytorch_digits --out DIR [--num-steps N]`: trains the DCGAN of pytorch/examples on digits.

The networks, initial weights and losses are those of pytorch/examples/dcgan, for images of 32×32 pixels: one layer
fewer, with ngf = ndf = 8. The images are the first 1,500 digits of scikit-learn. It writes netG.safetensors and
netD.safetensors, which `docs/notebooks/pytorch` has, and record.safetensors: latents, PyTorch's images and its
probabilities of "real", with which `tests/priors` compares. It needs PyTorch (extra `benchmark`).
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

LATENT, WIDTHS, BATCH = 32, (8, 16, 32), 64


def generator() -> nn.Module:
    deep = WIDTHS[::-1]
    layers = [nn.ConvTranspose2d(LATENT, deep[0], 4, 1, 0, bias=False), nn.BatchNorm2d(deep[0]), nn.ReLU(True)]
    for a, b in pairwise(deep):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
    return _named([*layers, nn.ConvTranspose2d(deep[-1], 1, 4, 2, 1, bias=False), nn.Tanh()])


def discriminator() -> nn.Module:
    layers = [nn.Conv2d(1, WIDTHS[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for a, b in pairwise(WIDTHS):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
    return _named([*layers, nn.Conv2d(WIDTHS[-1], 1, 4, 1, 0, bias=False), nn.Sigmoid()])


def _named(layers: list[nn.Module]) -> nn.Module:
    """Puts layers into a module as `main`, where the names of the weights begin."""
    network = nn.Module()
    network.main = nn.Sequential(*layers)
    network.forward = network.main.forward
    return network


def initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)


def training_images() -> torch.Tensor:
    digits = (load_digits().images[:1500] * 255 / 16).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(x).resize((32, 32), Image.Resampling.LANCZOS)) for x in digits])
    return torch.from_numpy(large.astype(np.float32) / 127.5 - 1)[:, None]


def train(make: nn.Module, judge: nn.Module, num_steps: int) -> None:
    images, loss = training_images(), nn.BCELoss()
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999)) for network in (make, judge)]
    real, generated = torch.ones(BATCH), torch.zeros(BATCH)
    for step in range(num_steps):
        x = images[torch.randint(len(images), (BATCH,))]
        judge.zero_grad()
        fake = make(torch.randn(BATCH, LATENT, 1, 1))
        judged = loss(judge(x).flatten(), real) + loss(judge(fake.detach()).flatten(), generated)
        judged.backward()
        optimizers[1].step()
        make.zero_grad()
        fooled = loss(judge(fake).flatten(), real)
        fooled.backward()
        optimizers[0].step()
        if step % 1000 == 0:
            print(f"step {step}: losses {judged.item():.3f}, {fooled.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-steps", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, judge = generator(), discriminator()
    initialise(make)
    initialise(judge)
    train(make, judge, options.num_steps)
    make.eval()
    judge.eval()
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(make.state_dict(), options.out / "netG.safetensors")
    save_file(judge.state_dict(), options.out / "netD.safetensors")
    z = torch.randn(8, LATENT)
    with torch.no_grad():
        images = make(z[:, :, None, None])
        record = {"latents": z, "images": images, "probabilities": judge(images).flatten()}
    save_file(record, options.out / "record.safetensors")


if __name__ == "__main__":
    main()
