"""A step of the latent search: forward through generator and discriminator, and back to the latents."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dcgan_jax as dj
from benchmarks import networks
from benchmarks.harness import Case, Ready
from dcgan_jax.images.pixels import to_float
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.search import Search, init, step

DTYPES = ("float32", "bfloat16")
# The loss after ten steps of Adam, which magnifies the rounding of small gradients: 1.4e-3 was seen.
TOLERANCE = {"float32": 5e-3, "bfloat16": 3e-2}
STEPS = 10  # per run
WHOLE_STEPS = 300
WHOLE = f"search of {WHOLE_STEPS} steps and blend"
CONFIG = dj.InpaintConfig()


def cases(base_width: int, batch_size: int) -> list[Case]:
    """All cases, and the limit of each type."""
    # The whole search is half as wide as the others, like the priors in the package.
    half = {"base_width": base_width // 2, "batch_size": batch_size}
    whole = [
        Case(WHOLE, "dcgan_jax, its steps alone", "search:ours", half | {"dtype": "float32"}),
        Case(WHOLE, "dcgan_jax", "search:whole", half, rounds=2),
    ]
    return step_cases(base_width, batch_size) + whole + networks.limits(DTYPES)


def step_cases(base_width: int, batch_size: int) -> list[Case]:
    """This library and PyTorch in each mode, `STEPS` search steps per run."""
    same = {"base_width": base_width, "batch_size": batch_size}
    found = []
    for dtype in DTYPES:
        group = f"search step, width {base_width}, batch {batch_size}, {dtype}"
        found.append(Case(group, "dcgan_jax", "search:ours", same | {"dtype": dtype}))
        for mode in ("eager", "channels_last", "compiled"):
            arguments = same | {"dtype": dtype, "mode": mode}
            found.append(Case(group, f"PyTorch, {mode}", "search:torch", arguments, TOLERANCE[dtype]))
    return found


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """Time of a step in a whole search, over the time of a step alone."""
    timed = [r["median_seconds"] / r["steps"] for r in records if r["group"] == WHOLE and "median_seconds" in r]
    if len(timed) < 2:
        return {}
    alone, whole = timed
    return {"whole search over the sum of its steps": whole / alone}


def prior_of(base_width: int, dtype: str) -> dj.Prior:
    """An untrained prior, the same for all cases."""
    config = networks.train_config(base_width, 64, "float32")
    return dj.with_compute_dtype(dj.prior_from_state(networks.state(config), config), dtype)


def problem(batch_size: int) -> tuple[np.ndarray, np.ndarray, jax.Array]:
    """Images in [−1, 1], holes and keys."""
    hole = np.asarray(dj.masks.center(networks.IMAGE_SIZE))
    holes = np.broadcast_to(hole, (batch_size, *hole.shape))
    images = to_float(networks.images(batch_size))
    return np.where(holes[..., None], 0, images), holes, jax.random.split(jax.random.key(networks.SEED), batch_size)


def ours(base_width: int, batch_size: int, dtype: str) -> Ready:
    """`search.step` of a batch, `STEPS` times in one program."""
    prior, (images, holes, keys) = prior_of(base_width, dtype), problem(batch_size)
    weights = dj.importance_weights(jnp.asarray(holes), window=CONFIG.window)
    latents = jax.vmap(lambda key: prior.sample_latents(key, 1)[0])(keys)
    problems = Problem(jnp.asarray(images), weights)
    searches = jax.vmap(lambda latent: init(CONFIG, Point(latent)))(latents)

    @jax.jit
    def advance(prior: dj.Prior, problems: Problem, searches: Search) -> Search:
        def move(_: jax.Array, searches: Search) -> Search:
            return jax.vmap(lambda problem, search: step(prior, CONFIG, problem, search))(problems, searches)

        return jax.lax.fori_loop(0, STEPS, move, searches)

    program, seconds = networks.compiled(advance, prior, problems, searches)
    answer = {"least loss": program(prior, problems, searches).best.loss}
    work = STEPS * batch_size * networks.gflop_search_step(networks.train_config(base_width, 64, dtype))

    def run() -> None:
        jax.block_until_ready(program(prior, problems, searches))

    return Ready(run, batch_size * STEPS, work, steps=STEPS, compile_seconds=seconds, answer=answer)


def torch(base_width: int, batch_size: int, dtype: str, mode: str) -> Ready:
    """The same steps in PyTorch; `mode` is "eager", "channels_last" or "compiled"."""
    import torch

    from benchmarks import torch_peer

    prior, (images, holes, keys) = prior_of(base_width, "float32"), problem(batch_size)
    latents = jax.vmap(lambda key: prior.sample_latents(key, 1)[0])(keys)
    importance = dj.importance_weights(jnp.asarray(holes), window=CONFIG.window)
    config = networks.train_config(base_width, batch_size, dtype)
    how = torch_peer.Mode(dtype, mode)
    weights = {name: prior.params[name]["params"] for name in ("generator", "discriminator")} | {
        f"{name}_statistics": prior.params[name]["batch_stats"] for name in ("generator", "discriminator")
    }
    start = torch_peer.search_step(config, CONFIG, weights, how)
    images = how.place(torch_peer.mirrored(images))
    importance = how.place(torch_peer.mirrored(importance[..., None]))
    latents = torch.from_numpy(np.array(latents))

    def advance() -> torch.Tensor:
        step = start(latents)
        losses = [step(images, importance) for _ in range(STEPS)]
        how.finish()
        return torch.stack(losses)

    answer = {"least loss": advance().amin(0).float().cpu().numpy()}
    work = STEPS * batch_size * networks.gflop_search_step(config)
    return Ready(advance, batch_size * STEPS, work, steps=STEPS, answer=answer)


def whole(base_width: int, batch_size: int) -> Ready:
    """`inpaint` as users call it, including the blend."""
    prior, (images, holes, keys) = prior_of(base_width, "float32"), problem(batch_size)
    config = dj.InpaintConfig(num_steps=WHOLE_STEPS)

    def run() -> None:
        jax.block_until_ready(dj.inpaint(prior, images, holes, keys, config))

    return Ready(run, batch_size, steps=WHOLE_STEPS)
