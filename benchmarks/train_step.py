"""A training step of the DCGAN: one update of the discriminator and one of the generator."""

from typing import Any

import jax
import numpy as np

import dcgan_jax as dj
from benchmarks import networks
from benchmarks.harness import Case, Ready
from dcgan_jax.networks.dcgan import draw_latents

DTYPES, MODES = ("float32", "bfloat16"), ("eager", "channels_last", "compiled")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


def cases(base_width: int, batch_size: int) -> list[Case]:
    """All cases, and the limit of each type."""
    return step_cases(base_width, batch_size, steps=1, modes=MODES) + networks.limits(DTYPES)


def step_cases(base_width: int, batch_size: int, steps: int, modes: tuple[str, ...]) -> list[Case]:
    """This library and PyTorch in some modes, `steps` training steps per run."""
    same = {"base_width": base_width, "batch_size": batch_size, "steps": steps}
    found = []
    for dtype in DTYPES:
        group = f"training step, width {base_width}, batch {batch_size}, {dtype}"
        found.append(Case(group, "dcgan_jax", "train_step:ours", same | {"dtype": dtype}))
        for mode in modes:
            arguments = same | {"dtype": dtype, "mode": mode}
            found.append(Case(group, f"PyTorch, {mode}", "train_step:torch", arguments, TOLERANCE[dtype]))
    return found


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """Nothing."""
    del records
    return {}


def ours(base_width: int, batch_size: int, dtype: str, steps: int) -> Ready:
    """`make_train_step`."""
    config = networks.train_config(base_width, batch_size, dtype)
    batch, key = networks.images(batch_size), jax.random.key(networks.SEED)
    state = jax.tree.map(np.asarray, networks.state(config))
    step, seconds = networks.compiled(
        jax.jit(dj.make_train_step(config), donate_argnums=0), *jax.device_put((state, batch, key))
    )
    carried, metrics = step(*jax.device_put((state, batch, key)))
    placed = jax.device_put(batch)
    losses = {name: metrics[name] for name in ("discriminator_loss", "generator_loss")}
    answer = {name: np.asarray(value) for name, value in losses.items()}

    def run() -> None:
        nonlocal carried, metrics
        for _ in range(steps):
            carried, metrics = step(carried, placed, key)
        jax.block_until_ready(metrics)

    work = steps * networks.gflop_train_step(config)
    return Ready(run, steps * batch_size, work, steps=steps, compile_seconds=seconds, answer=answer)


def torch(base_width: int, batch_size: int, dtype: str, mode: str, steps: int) -> Ready:
    """The same step in PyTorch; `mode` is "eager", "channels_last" or "compiled"."""
    import torch

    from benchmarks import torch_peer

    config = networks.train_config(base_width, batch_size, dtype)
    state = networks.state(config)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(networks.SEED), 0), 3)  # as the step draws them
    first, second = (
        torch.from_numpy(np.array(draw_latents(config.model, key, batch_size))) for key in (keys[2], keys[1])
    )
    weights = {"generator": state.generator, "discriminator": state.discriminator}
    how = torch_peer.Mode(dtype, mode)
    step = torch_peer.train_step(config, weights, how)
    batch, first, second = (how.place(x) for x in (torch_peer.mirrored(networks.images(batch_size)), first, second))
    losses = step(batch, first, second)
    answer = {name: x.cpu().numpy() for name, x in zip(("discriminator_loss", "generator_loss"), losses, strict=True)}

    def run() -> None:
        for _ in range(steps):
            step(batch, first, second)
        how.finish()

    return Ready(run, steps * batch_size, steps * networks.gflop_train_step(config), steps=steps, answer=answer)
