"""Devices that programs are compiled for without having them: environment, topology and datasheet peaks.

The compilers for NVIDIA GPUs and TPUs come as wheels (`pip install -e '.[devices]'`) and need no device. They read
their environment variables when JAX starts. Compile in a new process that is started with `environment(name)`.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import topologies


@dataclass(frozen=True)
class Device:
    """The peaks of one device by its datasheet."""

    name: str
    flops: dict[str, float]  # peak FLOP/s by element type of the factors
    bandwidth: float  # bytes/s between the device and its memory
    link: float  # bytes/s that it sends to other devices; it receives as many at once


@dataclass(frozen=True)
class Target:
    """The devices that a program is compiled for."""

    title: str
    platform: str
    count: int
    device: Device | None = None  # None for pretended devices, which have no datasheet
    topology: str = ""


# NVIDIA H100 Tensor Core GPU datasheet, SXM, without sparsity. NVLink has 900 GB/s, both directions together. XLA
# multiplies float32 in TF32 by default.
H100 = Device("H100 SXM", {"f32": 494.5e12, "bf16": 989e12, "f16": 989e12}, 3.35e12, 450e9)
# Google Cloud, "TPU v5e": 197 TFLOP/s in bfloat16, 819 GB/s, 1,600 Gbit/s between chips. At JAX's default precision
# a float32 product is one pass in bfloat16.
V5E = Device("TPU v5e", {"f32": 197e12, "bf16": 197e12}, 819e9, 200e9)

TARGETS = {
    "h100": Target("one H100", "cuda", 1, H100, "1x1x8"),
    "h100x8": Target("eight H100s", "cuda", 8, H100, "1x1x8"),
    "v5e": Target("TPU v5e 2×4", "tpu", 8, V5E, "v5e:2x4"),
    "v5e-64": Target("TPU v5e-64, a pod of 16 hosts", "tpu", 64, V5E, "v5e:8x8"),
    "cpu": Target("eight pretended CPU devices", "cpu", 8),
}


def missing(name: str) -> str:
    """Names the wheels that this target needs and that are not installed; "" if none is missing."""
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
    """Returns the environment variables of a process that compiles for this target.

    RuntimeError if NVIDIA's compiler is needed and not installed.
    """
    target = TARGETS[name]
    # A program from the compilation cache has no text.
    found = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if target.platform == "cuda":
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"{missing(name)} is not installed, which {name!r} needs: pip install -e '.[devices]'")
        folder = Path(next(iter(spec.submodule_search_locations)))
        found["PATH"] = f"{folder / 'bin'}{os.pathsep}{found.get('PATH', '')}"  # ptxas
        # Autotuning times kernels on the device, which is not here.
        flags = f"{found.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={folder} --xla_gpu_autotune_level=0"
        found["XLA_FLAGS"] = flags.strip()
    elif target.platform == "tpu":
        # Ask no metadata server of a TPU host: there is none.
        found |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"v5litepod-{target.count}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock protects a device, which is not here
        }
    else:
        found["JAX_NUM_CPU_DEVICES"] = str(target.count)
    return found


# jax.Device comes from a compiled module, where pyright does not see that it is a class.
def devices(name: str) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Returns the target's devices. The process must have been started with `environment(name)`."""
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
