"""Devices that are not here, for which programs can be compiled all the same: environment, topology, datasheet peaks.

The compilers for NVIDIA GPUs and TPUs come as wheels (`pip install -e '.[devices]'`) and need no device. Their
variables must be set before JAX starts, so whatever compiles runs in a process of its own with `environment(name)`.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Device:
    """What a datasheet says of one device."""

    name: str
    flops: dict[str, float]  # a second at the most, by element type of what is multiplied
    bandwidth: float  # bytes a second between the device and its memory
    link: float  # bytes a second that it sends to the others, while it receives as many


@dataclass(frozen=True)
class Target:
    """One or several devices that a program is compiled for."""

    title: str
    platform: str
    count: int
    device: Device | None = None  # None where no datasheet says anything, on pretended devices
    topology: str = ""


# NVIDIA H100 Tensor Core GPU datasheet, SXM, without sparsity; NVLink 900 GB/s, both ways added. A float32 product is
# computed in TF32, which is what XLA does by default.
H100 = Device("H100 SXM", {"f32": 494.5e12, "bf16": 989e12, "f16": 989e12}, 3.35e12, 450e9)
# Google Cloud, "TPU v5e": 197 TFLOP/s in bfloat16, 819 GB/s, 1,600 Gbit/s between chips. A float32 product at JAX's
# default precision is one pass in bfloat16.
V5E = Device("TPU v5e", {"f32": 197e12, "bf16": 197e12}, 819e9, 200e9)

TARGETS = {
    "h100": Target("one H100", "cuda", 1, H100, "1x1x8"),
    "h100x8": Target("eight H100s", "cuda", 8, H100, "1x1x8"),
    "v5e": Target("TPU v5e 2×4", "tpu", 8, V5E, "v5e:2x4"),
    "v5e-64": Target("TPU v5e-64, a pod of 16 hosts", "tpu", 64, V5E, "v5e:8x8"),
    "cpu": Target("eight pretended CPU devices", "cpu", 8),
}


def missing(name: str) -> str:
    """The wheels that compiling for this target wants and that are not installed; "" where none is."""
    wheels = {
        "cuda": {"jax-cuda12-plugin": "jax_cuda12_plugin", "nvidia-cuda-nvcc-cu12": "nvidia.cuda_nvcc"},
        "tpu": {"libtpu": "libtpu"},
        "cpu": {},
    }[TARGETS[name].platform]
    return ", ".join(wheel for wheel, module in wheels.items() if not _installed(module))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def environment(name: str) -> dict[str, str]:
    """What a process that compiles for this target must find when it starts."""
    target = TARGETS[name]
    # A program out of the cache has no text.
    found = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if target.platform == "cuda":
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
        assert spec is not None and spec.submodule_search_locations
        folder = Path(next(iter(spec.submodule_search_locations)))
        found["PATH"] = f"{folder / 'bin'}{os.pathsep}{found.get('PATH', '')}"  # ptxas
        # Without a device there is nothing to time kernels on.
        flags = f"{found.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={folder} --xla_gpu_autotune_level=0"
        found["XLA_FLAGS"] = flags.strip()
    elif target.platform == "tpu":
        # No host of TPUs answers here, and none is to be asked.
        found |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"v5litepod-{target.count}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no device of which only one process can have hold
        }
    else:
        found["JAX_NUM_CPU_DEVICES"] = str(target.count)
    return found


def devices(name: str) -> list[Any]:
    """The target's devices, in a process that has its environment."""
    import jax
    from jax.experimental import topologies

    target = TARGETS[name]
    if target.platform == "cpu":
        return jax.devices()
    if target.platform == "tpu":
        described = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    else:
        config = (Path(__file__).parent / "h100.txtpb").read_text()
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=config, topology=target.topology
        )
    return list(described.devices[: target.count])
