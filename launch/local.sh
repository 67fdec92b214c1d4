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

exec dcgan-jax "$@"
