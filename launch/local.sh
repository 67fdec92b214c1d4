#!/usr/bin/env bash
# Runs an unchanged dcgan-jax command on all devices of this host:
#
#   launch/local.sh train --data data/celeba --run runs/celeba --preset yeh2017
#
# CUDA_VISIBLE_DEVICES or JAX_PLATFORMS selects the devices. The batch size must be a multiple of their number.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh"
exec dcgan-jax "$@"
