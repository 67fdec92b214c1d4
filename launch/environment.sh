# shellcheck shell=bash
# Environment variables for all launch scripts, which source this file. The package itself sets none of them.

# Caches compiled programs between starts.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dcgan_jax}"

# Overlaps communication with computation on GPUs (the latency-hiding scheduler); other backends ignore it.
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"

# GPUs that wait for a lost one give up after ten minutes instead of never, so that the job can be restarted.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_nccl_termination_timeout_seconds=600"

# DETERMINISTIC=1: the same bits from run to run on a GPU, for an exact resume; slower. CPUs and TPUs need no flag for it.
if [ "${DETERMINISTIC:-0}" = 1 ]; then
  export XLA_FLAGS="$XLA_FLAGS --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
fi

# On CPUs: the process keeps the memory that it frees, in pages of 2 MiB. If it returns the memory and faults it in again
# at every step, a training step takes up to two fifths longer (benchmarks/README.md).
malloc="glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=8589934592"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$malloc}"
