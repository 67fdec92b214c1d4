#!/usr/bin/env bash
# Runs an unchanged dcgan-jax command on every worker of a TPU VM pod. Start it on your own machine:
#
#   launch/tpu_pod.sh my-pod us-central2-b train --data gs://bucket/celeba --run gs://bucket/run --preset yeh2017
#
# Every worker needs the checkout in ~/dcgan_jax, with `pip install -e '.[tpu,buckets]'` in its .venv. If a worker is
# preempted, the run is saved and all workers exit with status 75. The same command resumes once the pod is back.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 POD ZONE COMMAND..." >&2
  exit 2
fi
pod=$1 zone=$2
shift 2
printf -v words '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$pod" --zone "$zone" --worker=all \
  --command "cd dcgan_jax && . .venv/bin/activate && DCGAN_JAX_DISTRIBUTED=1 launch/local.sh $words"
