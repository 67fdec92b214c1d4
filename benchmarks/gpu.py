"""Every figure of a GPU in one call: training, search and blending, at the sizes that fill it.

Cases are built together, which wants a dozen cores.
"""

from benchmarks import networks, poisson, search, train_step
from benchmarks.harness import Case

STEPS = 20  # a run, so that the launch of one step does not count


def cases(base_width: int, batch_size: int) -> list[Case]:
    found = []
    for width in (64, 128):
        for batch in (64, 128, 1024):
            # PyTorch's compiler takes a minute a case: at the batch that the aim is about.
            modes = train_step.MODES if batch == 128 else train_step.MODES[:2]
            found += train_step.step_cases(width, batch, STEPS, modes)
    for batch in (64, 1024, 8192):
        found += search.step_cases(64, batch)
    return found + poisson.cases(base_width, batch_size) + networks.limits(train_step.DTYPES)


def notes(records) -> dict:
    """Images a second that searches of 200 steps would complete, from the time of a step."""
    steps = {
        r["group"]: r["images_per_second"] for r in records if r["case"] == "dcgan_jax" and "images_per_second" in r
    }
    return {f"images/s of 200 steps, {group}": speed / 200 for group, speed in steps.items() if "search" in group}
