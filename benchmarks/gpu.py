"""All measurements of a GPU in one call: training, search and blending, at sizes that fill it.

All cases are built at the same time, which needs a dozen cores.
"""

from typing import Any

from benchmarks import networks, poisson, search, train_step
from benchmarks.harness import Case

STEPS = 20  # per run, so that the launch of the first step does not count


def cases(base_width: int, batch_size: int) -> list[Case]:
    """All cases. They use sizes of their own and ignore both arguments."""
    found = []
    for width in (64, 128):
        for batch in (64, 128, 1024):
            # PyTorch's compiler takes a minute per case, so only batch 128 is compiled.
            modes = train_step.MODES if batch == 128 else train_step.MODES[:2]
            found += train_step.step_cases(width, batch, STEPS, modes)
    for batch in (64, 1024, 8192):
        found += search.step_cases(64, batch)
    return found + poisson.cases(base_width, batch_size) + networks.limits(train_step.DTYPES)


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """Images per second of a search of 200 steps, computed from the time of a step."""
    steps = {
        r["group"]: r["images_per_second"] for r in records if r["case"] == "dcgan_jax" and "images_per_second" in r
    }
    return {f"images/s of 200 steps, {group}": speed / 200 for group, speed in steps.items() if "search" in group}
