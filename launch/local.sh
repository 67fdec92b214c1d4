#!/usr/bin/env bash
# Runs a dcgan-jax command, unchanged, on all devices of this host:
#
#   launch/local.sh train --data data/celeba --run runs/celeba --preset yeh2017
#
# CUDA_VISIBLE_DEVICES or JAX_PLATFORMS choose the devices; the batch size must be a multiple of their number.
set -euo pipefail

# Compiled programs are kept from one start to the next.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dcgan_jax}"
# Overlaps communication with computation on GPUs (the latency-hiding scheduler); other backends ignore it.
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"

# On CPUs: memory that is freed stays with the process, in pages of 2 MiB. Where it goes back to the system and is faulted
# in anew at every step, a training step took up to two fifths longer (benchmarks/README.md).
malloc="glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=8589934592"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$malloc}"

exec dcgan-jax "$@"
