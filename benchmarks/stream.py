"""Searches of many images that stop early: `inpaint_stream`, which refills free slots, beside fixed batches."""

import dataclasses
from typing import Any

import jax
import numpy as np

import dcgan_jax as dj
from benchmarks import networks
from benchmarks.harness import Case, Ready

COUNT = 64
CONFIG = dj.InpaintConfig(tolerance=0.05)


def cases(base_width: int, batch_size: int) -> list[Case]:
    """All cases. The prior in the package sets the width."""
    del base_width
    slots = min(batch_size, 16)
    group = f"{COUNT} images, {slots} slots, tolerance {CONFIG.tolerance}"
    return [
        Case(group, "dcgan_jax", "stream:streamed", {"slots": slots}),
        Case(group, "inpaint, batch by batch", "stream:in_batches", {"slots": slots}, tolerance=0.0),
        Case(group, f"the same, all {CONFIG.num_steps} steps", "stream:in_batches", {"slots": slots, "tolerance": 0.0}),
    ]


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean number of search steps per image."""
    return {f"steps an image, {record['case']}": record["figure"] for record in records if "figure" in record}


def problem() -> tuple[dj.Prior, np.ndarray, np.ndarray, jax.Array]:
    """The prior `faces-64`, images that it generates, holes of every kind in turn, and keys."""
    prior = dj.load_prior("faces-64")
    keys = jax.random.split(jax.random.key(networks.SEED), COUNT)
    images = np.asarray(dj.generate(prior, dj.sample_latents(prior, jax.random.key(1), COUNT)))
    kinds = np.stack([dj.masks.by_name(name, keys, prior.image_shape[0]) for name in dj.masks.NAMES])
    holes = kinds[np.arange(COUNT) % len(kinds), np.arange(COUNT)]
    return prior, images, holes, keys


def streamed(slots: int) -> Ready:
    """`inpaint_stream`."""
    prior, images, holes, keys = problem()

    def run() -> list[dj.InpaintResult]:
        return list(dj.inpaint_stream(prior, zip(images, holes, keys, strict=True), keys[0], CONFIG, slots))

    items = run()
    steps = [item.num_steps for item in items]
    return Ready(run, COUNT, answer={"images": np.stack([item.images for item in items])}, figure=float(np.mean(steps)))


def in_batches(slots: int, tolerance: float = CONFIG.tolerance) -> Ready:
    """`inpaint` of batches of `slots` images; a batch ends with its slowest image."""
    prior, images, holes, keys = problem()
    config = dataclasses.replace(CONFIG, tolerance=tolerance)

    def run() -> list[dj.InpaintResult]:
        rows = [slice(i, i + slots) for i in range(0, COUNT, slots)]
        return [jax.device_get(dj.inpaint(prior, images[r], holes[r], keys[r], config)) for r in rows]

    batches = run()
    found, steps = (np.concatenate([getattr(b, name) for b in batches]) for name in ("images", "num_steps"))
    return Ready(run, COUNT, answer={"images": found} if tolerance else {}, figure=float(np.mean(steps)))
