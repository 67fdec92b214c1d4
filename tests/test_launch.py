"""The launch scripts: the commands that they run, and SLURM's signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port

LAUNCH = Path(__file__).parents[1] / "launch"

# A stand-in for srun: starts two processes with SLURM's variables and writes their process ids to a file.
SRUN = """#!{python}
import os, subprocess, sys
assert sys.argv[1] == "--kill-on-bad-exit=0"
job = []
for number in range(2):
    step = {{
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number),
    }}
    job.append(subprocess.Popen(sys.argv[2:], env=os.environ | step))
with open("{pids}", "w") as file:
    file.write(" ".join(str(process.pid) for process in job))
sys.exit(max(process.wait() for process in job))
"""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (extra dev)")
@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")))
def test_shellcheck(script: str) -> None:
    subprocess.run(["shellcheck", "-x", f"launch/{script}"], check=True, cwd=LAUNCH.parent)


def test_the_job_set_is_a_valid_one() -> None:
    kubernetes_validate, yaml = pytest.importorskip("kubernetes_validate"), pytest.importorskip("yaml")
    jobs = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": replicated["template"]["spec"]}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    # The number of pods and the name of the first must agree in all places.
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert int(variables["JAX_NUM_PROCESSES"]) == spec["parallelism"] == spec["completions"]
    name, replica = jobs["metadata"]["name"], replicated["name"]
    assert variables["JAX_COORDINATOR_ADDRESS"].split(":")[0] == f"{name}-{replica}-0-0.{name}"
    assert (LAUNCH.parent / container["command"][0]).is_file()


def test_every_host_of_a_pod_gets_the_command(tmp_path: Path) -> None:
    (tmp_path / "gcloud").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "gcloud").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [LAUNCH / "tpu_pod.sh", "pod", "zone", "train", "--data", "gs://a b/c"]
    found = json.loads(subprocess.run(words, check=True, env=environment, capture_output=True, text=True).stdout)
    assert found[:8] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "zone", "--worker=all"]
    assert found[9].endswith("DCGAN_JAX_DISTRIBUTED=1 launch/local.sh train --data gs://a\\ b/c ")


@pytest.mark.long
def test_slurm(digits: Path, tmp_path: Path) -> None:
    """A job that gets SIGTERM saves its run, queues itself again, and resumes to the end."""
    tools, run, pids = tmp_path / "tools", tmp_path / "run", tmp_path / "pids"
    tools.mkdir()
    programs = {
        "srun": SRUN.format(python=sys.executable, pids=pids),
        "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n',
        "dcgan-jax": f'#!/bin/sh\nexec {sys.executable} -m dcgan_jax "$@"\n',
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    script = tmp_path / "slurm_script"  # SLURM runs a copy
    shutil.copy(LAUNCH / "slurm.sbatch", script)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(LAUNCH.parent),
        "SLURM_JOB_ID": "17",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "JAX_PLATFORMS": "cpu",
    }
    options = "--image-size 32 --channels 1 --base-width 2 --batch-size 8 --log-every 2 --sample-every 4 --quiet"
    options += " --measure-every 0"
    words = ["bash", script, "train", "--data", digits, "--run", run, *options.split(), "--num-steps"]
    job = subprocess.Popen([*words, "2000"], env=environment)
    while job.poll() is None and not (run / "samples" / "0000004.png").is_file():
        time.sleep(0.05)
    for pid in pids.read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    assert job.wait(timeout=60) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    (saved,) = (run / "checkpoints").iterdir()
    end = int(saved.name) + 3
    assert subprocess.run([*words, str(end)], env=environment, timeout=120).returncode == 0
    assert (run / "checkpoints" / str(end)).is_dir()
    # A mistake ends the job with the command's status and queues nothing.
    assert subprocess.run([*words, str(end), "--seed", "3"], env=environment, timeout=120).returncode == 2
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
