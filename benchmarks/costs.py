"""Compiles a workload and counts what one device does in it: a record of arithmetic, bytes, kernels and collectives."""

import time
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from benchmarks.absent_devices import Target
from benchmarks.compiled import Counts, Program, text_of
from benchmarks.workloads import Workload


def compile_and_count(workload: Workload, target: Target, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Compiles a workload and yields its record. If it names a loop: one of a round of it, one of the rest."""
    start = time.perf_counter()
    function, arguments = workload.build(mesh)
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    whole = {
        "compile_seconds": seconds,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    }
    counts = Program(text_of(program), target.platform).count()
    if workload.loop and counts.loops:
        loop = max(counts.loops, key=lambda loop: sum(loop.body.whole().flop.values()) or loop.body.whole().bytes)
        body = record(workload, target, loop.body.whole(), workload.asked)
        yield body | whole | {"program": f"{workload.name}: {workload.loop}", "rounds": loop.rounds}
        counts.loops = [other for other in counts.loops if other is not loop]
        yield record(workload, target, counts.whole(), None) | {"program": f"{workload.name}: the rest"}
    else:
        yield record(workload, target, counts.whole(), workload.asked) | whole


def record(workload: Workload, target: Target, counts: Counts, asked: float | None) -> dict[str, Any]:
    """Returns the counts of one device as a dictionary. `asked` is the GFLOP that the layers ask for."""
    gflop = sum(counts.flop.values()) / 1e9
    found: dict[str, Any] = {"program": workload.name, "images": workload.images}
    found |= {"gflop": gflop, "bytes": counts.bytes}
    if asked:
        found |= {"asked_gflop": asked, "ratio": gflop / asked}
    if target.platform == "cuda":
        found |= {"kernels": len(counts.kernels), "norm_reductions": counts.norm_reductions}
    found["collectives"] = {kind: {"count": len(x), "bytes": sum(x)} for kind, x in counts.collectives.items() if x}
    least = least_seconds(counts, target)
    if least is not None:
        found["predicted_least_milliseconds"] = 1000 * least
    costs: dict[str, list[float]] = {}
    for kernel in counts.kernels:
        cost = costs.setdefault(f"{kernel.kind} {kernel.op_name}", [0, 0, 0])
        cost[:] = cost[0] + 1, cost[1] + kernel.bytes, cost[2] + sum(kernel.flop.values())
    dearest = sorted(costs.items(), key=lambda item: -item[1][1])[:25]
    found["dearest"] = [{"kernel": name, "count": n, "bytes": b, "gflop": f / 1e9} for name, (n, b, f) in dearest]
    return found


def least_seconds(counts: Counts, target: Target) -> float | None:
    """Predicts the least time from the datasheet; None without one.

    Arithmetic and memory traffic overlap. The collectives follow, each around a ring.
    """
    device, n = target.device, target.count
    if device is None:
        return None
    products = sum(number / device.flops.get(dtype, device.flops["f32"]) for dtype, number in counts.flop.items())
    sent = 0.0
    for kind, sizes in counts.collectives.items():
        sent += sum(sizes) * (2 if kind == "all-reduce" else 1) * (n - 1) / n
    return max(products, counts.bytes / device.bandwidth) + sent / device.link
