"""Starts a job of several processes on this machine, as the launch scripts do on several machines."""

import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(count, arguments, devices=1, **environment):
    """Starts `count` Python processes with the same arguments and `devices` pretended devices each."""
    common = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "DCGAN_JAX_DISTRIBUTED": "1",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=common | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def as_users_compile(devices, *arguments):
    """Starts a Python process with `devices` pretended devices, XLA's default code generator and default precision."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": ""}
    environment.pop("JAX_DEFAULT_MATMUL_PRECISION", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, text=True, **pipes)


def finish(processes, timeout=240):
    """Waits for all processes and returns their exit statuses, outputs and errors."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], *map(list, zip(*outputs, strict=True))
