# shellcheck shell=bash
# Sourced by the launch scripts: what the programs find in their environment, and why. The package sets none of it.

# Compiled programs are kept from one start to the next.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dcgan_jax}"

# Overlaps communication with computation on GPUs (the latency-hiding scheduler); other backends ignore it.
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"

# GPUs that wait for one that is gone give up after ten minutes in place of never, and the job can be started again.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_nccl_termination_timeout_seconds=600"

# DETERMINISTIC=1: the same bits from run to run on a GPU, for an exact resume; slower. CPUs and TPUs need no flag for it.
if [ "${DETERMINISTIC:-0}" = 1 ]; then
  export XLA_FLAGS="$XLA_FLAGS --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
fi

# On CPUs: memory that is freed stays with the process, in pages of 2 MiB. Where it goes back to the system and is faulted
# in anew at every step, a training step took up to two fifths longer (benchmarks/README.md).
malloc="glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=8589934592"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$malloc}"
