"""Compiles the library for devices that are not here, counts the programs, and compares them with the layers' demand.

`python -m benchmarks programs` starts one process per target (`absent_devices`). The process compiles each program
(`workloads`), counts what one device does in it (`costs`), and prints a row per program (`program_tables`). No time
is measured. The least time is predicted from the datasheet's peaks, which no program reaches.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import absent_devices, harness
from benchmarks.absent_devices import TARGETS
from benchmarks.costs import compile_and_count
from benchmarks.program_tables import COLUMNS, cells, into_readme, write
from benchmarks.workloads import workloads
from dcgan_jax.parallel import sharding


def main(arguments: Sequence[str]) -> None:
    """Runs `python -m benchmarks programs`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks programs", description=__doc__)
    parser.add_argument(
        "--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="devices to compile for (all)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help='only programs named so, such as "search" (all)')
    parser.add_argument("--details", action="store_true", help="print each program's kernels that move most bytes")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="folder of the results (benchmark-results)"
    )
    parser.add_argument("--readme", action="store_true", help="also replace the tables in benchmarks/README.md")
    options = parser.parse_args(arguments)
    names = sorted({workload.name for target in options.targets for workload in workloads(TARGETS[target])})
    if not any(options.only in name for name in names):
        parser.error(f"no program has {options.only!r} in its name; choose from {'; '.join(names)}")
    records = []
    for name in options.targets:
        wheels = absent_devices.missing(name)
        if wheels:
            print(f"{TARGETS[name].title}: skipped, {wheels} is not installed: pip install -e '.[devices]'", flush=True)
            continue
        print(f"{TARGETS[name].title}: {' | '.join(COLUMNS)}", flush=True)
        found = run(name, options.only, functools.partial(print, flush=True))
        records += found
        for record in found if options.details else ():
            print(f"\n{record['program']}: count, MB, GFLOP of the kernels that move most bytes")
            for cost in record.get("dearest", ()):
                megabytes = cost["bytes"] / 1e6
                print(f"  {cost['count']:4d} {megabytes:10.2f} {cost['gflop']:10.2f}  {cost['kernel']}")
    text = write(records, harness.machine(), options.out)
    print(text)
    if options.readme:
        into_readme(text, Path(__file__).with_name("README.md"))


def run(target: str, only: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compiles for one target in a new process and returns its records.

    Args:
        only: compile the programs with this text in their names; "" compiles all.
        say: receives a line per record.
    """
    command = [sys.executable, "-m", "benchmarks.programs", target, only]
    records = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=absent_devices.environment(target), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child,
    ):
        for line in child.stdout or ():
            if line.startswith('{"target"'):
                records.append(json.loads(line))
                say("  " + " | ".join(cells(records[-1])))
        if child.wait():
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it printed nothing"])[-1]
            records.append({"target": target, "program": "its process", "error": f"status {child.returncode}: {last}"})
            say("  " + records[-1]["error"])
    return records


def _compile_all(name: str, only: str) -> None:
    """Compiles the programs of a target and prints a record per line; `run` starts a process for it."""
    target = TARGETS[name]
    mesh = sharding.data_mesh(absent_devices.devices(name))
    for workload in workloads(target):
        if only not in workload.name:
            continue
        try:
            for found in compile_and_count(workload, target, mesh):
                print(json.dumps({"target": name} | found), flush=True)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            failed = {"target": name, "program": workload.name, "error": f"{type(error).__name__}: {lines[0]}"}
            print(json.dumps(failed), flush=True)


if __name__ == "__main__":
    _compile_all(*sys.argv[1:])
