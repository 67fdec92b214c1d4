"""A training step over 1, 2, 4 and 8 devices: what its compiled program sends, and what links would make of that.

On a CPU the devices are pretended: they show that the program is right, not how fast it is.
"""

import os
import re
import subprocess
import sys

from benchmarks.harness import Case, Ready

DEVICES = (1, 2, 4, 8)
LINKS = {"NVLink of an H200 (450 GB/s each way)": 450e9, "a TPU v5e's links (200 GB/s each way)": 200e9}


def cases(base_width: int, batch_size: int) -> list[Case]:
    return [
        Case("training step, one batch", f"dcgan_jax, {n} devices", "scaling:devices",
             {"count": n, "base_width": base_width, "batch_size": batch_size}, 1e-4, rounds=0)
        for n in DEVICES
    ]  # fmt: skip


def notes(records) -> dict:
    found = {}
    for record in records:
        if "figure" not in record:
            continue
        found[f"bytes all-reduced a step, {record['case']}"] = int(record["figure"])
    largest = max(found.values(), default=0)
    for link, speed in LINKS.items():
        # A ring sends each byte twice, but for one part in n; a step of 5 ms is that of 128 images on an H200.
        seconds = 2 * (DEVICES[-1] - 1) / DEVICES[-1] * largest / speed
        found[f"predicted efficiency of {DEVICES[-1]} devices with steps of 5 ms over {link}"] = 0.005 / (
            0.005 + seconds
        )
    return found


def devices(count: int, base_width: int, batch_size: int) -> Ready:
    """In a process of its own, because the number of devices is set before JAX starts."""
    command = [sys.executable, "-m", "benchmarks.scaling", str(count), str(base_width), str(batch_size)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    seconds, loss, sent = map(float, printed.split()[-3:])
    return Ready(lambda: None, compile_seconds=seconds, answer={"generator loss": loss}, figure=sent)


def _main(count: int, base_width: int, batch_size: int) -> None:
    import time

    import jax
    import numpy as np

    import dcgan_jax as dj
    from benchmarks import networks
    from dcgan_jax import sharding

    assert jax.device_count() == count
    config = networks.train_config(base_width, batch_size, "float32")
    mesh = sharding.data_mesh()
    everywhere, split = sharding.replicated(mesh), sharding.along_batch(mesh)
    step = jax.jit(
        dj.make_train_step(config, split),
        in_shardings=(everywhere, split, everywhere),
        out_shardings=(everywhere, everywhere),
    )
    arguments = networks.state(config), networks.images(batch_size), jax.random.key(networks.SEED)
    start = time.perf_counter()
    program = step.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    state, batch, key = arguments
    batch = sharding.put_batch(mesh, batch, np.arange(batch_size))
    placed = jax.device_put(state, everywhere), batch, jax.device_put(key, everywhere)
    loss = float(program(*placed)[1]["generator_loss"])
    print(seconds, loss, bytes_reduced(program.as_text()))


def bytes_reduced(text: str) -> int:
    """Of all results of all-reduce in a compiled program."""
    total = 0
    for results in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for width, shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", results):
            size = int(width) // 8
            for side in filter(None, shape.split(",")):
                size *= int(side)
            total += size
    return total


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
