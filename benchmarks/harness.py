"""Measures cases in alternation, each in its own process.

A case's `build` function returns a `Ready` in that process. The processes take turns, so that other load on the machine
slows all of them alike. Compile time is separate, the first run is a warm-up, answers are checked, times are medians.
"""

import importlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

# On a GPU the processes share its memory. On a CPU a process keeps the memory that it frees, in pages of 2 MiB. If it
# returns the memory, each step faults it in again: steps of both frameworks took a sixth to two fifths longer.
# `launch/local.sh` sets the same.
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}" for name in ("hugetlb=1", "mmap_max=0", "arena_max=1", "trim_threshold=8589934592")
    ),
}


@dataclass
class Ready:
    """A case that is built and checked."""

    run: Callable[[], Any]  # does the work once and returns when all of it is done
    images: float = 0  # completed or trained on per run
    gflop: float = 0  # arithmetic per run; every tap of a convolution counts
    megabytes: float = 0  # moved per run
    steps: int = 1  # per run
    compile_seconds: float | None = None
    answer: dict[str, np.ndarray] = field(default_factory=dict)  # compared with the reference's answer
    figure: float | None = None  # another result, for `notes`


@dataclass(frozen=True)
class Case:
    """One way to do a piece of work. Cases of one `group` do the same work; the first is the reference."""

    group: str
    name: str
    build: str  # "module:function" in this package
    arguments: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-3  # largest error of the answer, relative to its largest value
    rounds: int | None = None  # at most so many rounds, for a long run; 0 takes no time


def measure(
    cases: list[Case], rounds: int, say: Callable[[str], None] = print, together: bool = False
) -> list[dict[str, Any]]:
    """Runs every case `rounds` times, in alternation, and returns a record for each.

    A case that fails or answers wrongly has an "error" in its record and no time.

    Args:
        say: receives progress messages.
        together: build all cases at the same time. It needs many cores, and compile times mean nothing.
    """
    os.environ.update(ENVIRONMENT)  # the new processes read it when they start
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[Case, BaseProcess, Connection, dict[str, Any]]] = []
    for case in cases:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, case), daemon=True)
        process.start()
        there.close()
        workers.append((case, process, here, {}))
        if not together:
            _await_built(*workers[-1], say)
    if together:
        for worker in workers:
            _await_built(*worker, say)
    references: dict[str, dict[str, np.ndarray]] = {}
    for case, _, _, record in workers:
        answer = record.pop("answer", {})
        if "error" in record:
            continue
        for name, expected in references.setdefault(case.group, answer).items() if answer else ():
            error = float(np.max(np.abs(answer[name] - expected)) / max(np.max(np.abs(expected)), 1e-30))
            if not error <= case.tolerance:
                record["error"] = f"wrong answer: {name} differs by {error:.1e}"
            else:
                record["answer_error"] = max(error, record.get("answer_error", 0.0))
    times: list[list[float]] = [[] for _ in workers]
    for number in range(rounds):
        for index, (case, process, here, record) in enumerate(workers):
            if "error" not in record and number < (rounds if case.rounds is None else case.rounds):
                here.send("run")
                reply = _receive(here, process)
                if "error" in reply:
                    record.update(reply)
                else:
                    times[index].append(reply["seconds"])
        say(f"  round {number + 1} of {rounds}")
    for _, process, here, _ in workers:
        here.close()
        process.join(timeout=10)
    return [_summary(case, record, seconds) for (case, _, _, record), seconds in zip(workers, times, strict=True)]


def _await_built(
    case: Case, process: BaseProcess, pipe: Connection, record: dict[str, Any], say: Callable[[str], None]
) -> None:
    record.update(_receive(pipe, process))
    say(f"  built {case.group}, {case.name}" + (f": {record['error']}" if "error" in record else ""))


def _work(pipe: Connection, case: Case) -> None:
    """The process of a case: builds it, then runs it each time that the pipe says so."""
    try:
        module, function = case.build.split(":")
        start = time.perf_counter()
        ready: Ready = getattr(importlib.import_module(f"benchmarks.{module}"), function)(**case.arguments)
        ready.run()  # warm-up
        pipe.send(
            {
                "images": ready.images,
                "gflop": ready.gflop,
                "megabytes": ready.megabytes,
                "steps": ready.steps,
                "compile_seconds": ready.compile_seconds,
                "build_seconds": time.perf_counter() - start,
                **({} if ready.figure is None else {"figure": ready.figure}),
                "answer": {name: np.asarray(value, np.float64) for name, value in ready.answer.items()},
            }
        )
        while pipe.recv() == "run":
            start = time.perf_counter()
            ready.run()
            pipe.send({"seconds": time.perf_counter() - start})
    except EOFError:
        pass
    except Exception as error:
        traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"})


def _receive(pipe: Connection, process: BaseProcess) -> dict[str, Any]:
    try:
        return pipe.recv()
    except EOFError:
        process.join(timeout=10)
        return {"error": f"its process ended with status {process.exitcode}"}


def _summary(case: Case, record: dict[str, Any], seconds: list[float]) -> dict[str, Any]:
    """A case's record with the statistics of its times."""
    found = {"group": case.group, "case": case.name, **record}
    if "error" in record or not seconds:
        return found
    median = statistics.median(seconds)
    found |= {"seconds": seconds, "median_seconds": median, "fastest_seconds": min(seconds)}
    found["spread"] = (max(seconds) - min(seconds)) / median
    found["milliseconds_per_step"] = 1000 * median / record["steps"]
    for name in ("images", "gflop", "megabytes"):
        if record[name]:
            found[f"{name}_per_second"] = record[name] / median
    return found


def machine() -> dict[str, Any]:
    """Describes the machine: processor, devices, versions, flags and revision."""
    import jax

    processor = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
    for name in ("jaxlib", "torch", "cv2", "scipy"):
        try:
            versions[name] = importlib.import_module(name).__version__
        except ImportError:
            versions[name] = "not installed"
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions,
        "environment": ENVIRONMENT | {name: os.environ[name] for name in ("XLA_FLAGS",) if name in os.environ},
        "revision": revision.stdout.strip() or "unknown",
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Formats the records as a table in Markdown."""
    columns = {
        "work": lambda r: r["group"],
        "by": lambda r: r["case"],
        "ms a step": lambda r: f"{r['milliseconds_per_step']:.3g}",
        "spread": lambda r: f"{100 * r['spread']:.0f} %",
        "images/s": lambda r: f"{r['images_per_second']:.4g}",
        "GFLOP/s": lambda r: f"{r['gflop_per_second']:.0f}",
        "of the limit": lambda r: f"{100 * r['fraction_of_limit']:.0f} %",
        "MB/s": lambda r: f"{r['megabytes_per_second']:.4g}",
        "compile s": lambda r: f"{r['compile_seconds']:.1f}",
        "over the best peer": lambda r: f"{r['over_best_peer']:.2f}",
    }
    rows = []
    for record in records:
        row = []
        for column in columns.values():
            try:
                row.append(column(record))
            except (KeyError, TypeError):
                row.append("")
        if "error" in record:
            row[2] = record["error"]
        rows.append(row)
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[list(columns)[i] for i in used], ["---"] * len(used), *[[row[i] for i in used] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare(records: list[dict[str, Any]]) -> None:
    """Adds "over_best_peer" and "fraction_of_limit" to the records.

    The first says how many times faster a case of this library is than the fastest peer of its group.
    """
    for record in records:
        if "seconds" not in record:
            continue
        peers = [
            other["median_seconds"] / other["steps"]
            for other in records
            if other["group"] == record["group"] and "seconds" in other and not other["case"].startswith("dcgan_jax")
        ]
        if peers and record["case"].startswith("dcgan_jax"):
            record["over_best_peer"] = min(peers) / (record["median_seconds"] / record["steps"])
        limits = [
            other["gflop_per_second"]
            for other in records
            if other["group"].startswith("limit") and other["group"].split(", ")[-1] == record["group"].split(", ")[-1]
            if "error" not in other and "gflop_per_second" in other
        ]
        if limits and record.get("gflop") and not record["group"].startswith("limit"):
            record["fraction_of_limit"] = record["gflop_per_second"] / max(limits)


def write(name: str, records: list[dict[str, Any]], notes: dict[str, Any], out: Path) -> str:
    """Writes NAME.json, NAME.md and NAME.png, and returns the table."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    text = table(records)
    (out / f"{name}.json").write_text(json.dumps({"machine": machine(), "notes": notes, "records": records}, indent=1))
    (out / f"{name}.md").write_text(text + "\n")
    good = [record for record in records if "seconds" in record]
    if not good:
        return text
    figure = Figure(figsize=(8, 0.6 + 0.28 * len(good)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:orange" if record["case"].startswith("dcgan_jax") else "tab:gray" for record in good]
    axes.barh(range(len(good)), [record["milliseconds_per_step"] for record in good], color=colours)
    axes.set_yticks(range(len(good)), [f"{record['group']}: {record['case']}" for record in good], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a step, median")
    figure.savefig(out / f"{name}.png", dpi=120)
    return text
