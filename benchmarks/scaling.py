"""A training step on 1, 2, 4 and 8 devices: the loss, and what each device computes and sends.

The devices are pretended CPU devices: they show that the work is correct and evenly split, not how fast it is.
`programs` counts the same for devices that are not here and predicts their times.
"""

import os
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import networks, workloads
from benchmarks.compiled import Program, text_of
from benchmarks.harness import Case, Ready
from dcgan_jax.parallel import sharding

DEVICES = (1, 2, 4, 8)


def cases(base_width: int, batch_size: int) -> list[Case]:
    """A case for each number of devices. They must agree; they have no times."""
    return [
        Case("training step, one batch", f"dcgan_jax, {n} devices", "scaling:devices",
             {"count": n, "base_width": base_width, "batch_size": batch_size}, 1e-4, rounds=0)
        for n in DEVICES
    ]  # fmt: skip


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """What a device sends, and how much it computes beyond an equal share of the work of one device."""
    found, whole = {}, None
    for record in records:
        if "figure" not in record:
            continue
        count = int(record["case"].split(", ")[1].split()[0])
        whole = whole or record["gflop"] * count
        found[f"bytes all-reduced a step, {record['case']}"] = int(record["figure"])
        found[f"what a device computes over its share, {record['case']}"] = record["gflop"] / (whole / count)
    return found


def devices(count: int, base_width: int, batch_size: int) -> Ready:
    """Runs `measure_step` in a new process, because the number of devices must be set before JAX starts."""
    command = [sys.executable, "-m", "benchmarks.scaling", str(count), str(base_width), str(batch_size)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    seconds, loss, sent, gflop = map(float, printed.split()[-4:])
    return Ready(
        lambda: None, gflop=gflop, compile_seconds=seconds, answer={"generator loss": np.array(loss)}, figure=sent
    )


def measure_step(count: int, base_width: int, batch_size: int) -> None:
    """Prints compile seconds, generator loss, bytes that a device sends, and its GFLOP."""
    if jax.device_count() != count:
        raise RuntimeError(f"JAX has {jax.device_count()} devices, not {count}; set JAX_NUM_CPU_DEVICES")
    config = networks.train_config(base_width, batch_size, "float32")
    mesh = sharding.data_mesh()
    step, _ = workloads.training_step(config, mesh)
    state, batch, key = networks.state(config), networks.images(batch_size), jax.random.key(networks.SEED)
    start = time.perf_counter()
    program = step.lower(state, batch, key).compile()
    seconds = time.perf_counter() - start
    everywhere = sharding.replicated(mesh)
    batch = sharding.put_batch(mesh, batch, np.arange(batch_size))
    placed = jax.device_put(state, everywhere), batch, jax.device_put(key, everywhere)
    loss = float(program(*placed)[1]["generator_loss"])
    sent = Program(text_of(program), "cpu").count().whole().collectives["all-reduce"]
    print(seconds, loss, sum(sent), program.cost_analysis()["flops"] / 1e9)


if __name__ == "__main__":
    measure_step(*map(int, sys.argv[1:]))
