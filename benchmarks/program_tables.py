"""Tables of the counted programs: Markdown, programs.json and programs.md, and the README's tables."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.absent_devices import TARGETS
from benchmarks.workloads import workloads

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "program, of one device": lambda r: r["program"],
    "GFLOP": lambda r: _digits(r["gflop"]) if r["gflop"] else "",
    "asked for": lambda r: _digits(r["asked_gflop"]),
    "ratio": lambda r: f"{r['ratio']:.2f}",
    "GB read and written": lambda r: _digits(r["bytes"] / 1e9),
    "MB an image": lambda r: _digits(r["bytes"] / 1e6 / r["images"]),
    "peak GB": lambda r: _digits(r["peak_bytes"] / 1e9),
    "kernels": lambda r: str(r["kernels"]),
    "of them sums of batch norm": lambda r: str(r["norm_reductions"]),
    "collectives": lambda r: ", ".join(
        f"{sent['count']} {kind}, {_digits(sent['bytes'] / 1e6)} MB" for kind, sent in r["collectives"].items()
    ),
    "least ms (prediction)": lambda r: _digits(r["predicted_least_milliseconds"]),
    "compiled in s": lambda r: f"{r['compile_seconds']:.0f}",
}


def cells(record: dict[str, Any]) -> list[str]:
    """Formats a record as a row of the table. A failure's error stands in the second cell."""
    row = []
    for column in COLUMNS.values():
        try:
            row.append(column(record))
        except KeyError:
            row.append("")
    if "error" in record:
        row[1] = record["error"]
    return row


def table(records: list[dict[str, Any]]) -> str:
    """Formats the records in Markdown: one table per target, without its empty columns."""
    parts = []
    for name, target in TARGETS.items():
        rows = [cells(record) for record in records if record["target"] == name]
        used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
        lines = [[list(COLUMNS)[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
        if rows:
            made = {f"jax {r['jax']}, revision {r['revision']}" for r in records if r["target"] == name}
            title = f"{target.title} ({' and '.join(sorted(made))})"
            parts.append(f"{title}:\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def write(records: list[dict[str, Any]], machine: dict[str, Any], out: Path) -> str:
    """Writes programs.json and programs.md and returns the tables. Earlier records of other programs are kept."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "programs.json"
    kept = json.loads(path.read_text())["records"] if path.exists() else []
    new = [record | {"revision": machine["revision"], "jax": machine["versions"]["jax"]} for record in records]
    again = {(r["target"], _program(r)) for r in new} | {(r["target"], "its process") for r in new}
    merged = [record for record in kept if (record["target"], _program(record)) not in again] + new
    programs = [(name, workload.name) for name, target in TARGETS.items() for workload in workloads(target)]
    order = {program: place for place, program in enumerate(programs)}
    merged.sort(key=lambda record: order.get((record["target"], _program(record)), len(order)))
    described = {"machine": machine, "targets": {name: asdict(target) for name, target in TARGETS.items()}}
    path.write_text(json.dumps(described | {"records": merged}, indent=1))
    text = table(merged) + "\n"
    (out / "programs.md").write_text(text)
    return text


def into_readme(text: str, path: Path) -> None:
    """Replaces the tables between the README's two marks. ValueError if a mark is missing."""
    before, _, rest = path.read_text().partition("<!-- programs -->\n")
    _, mark, after = rest.partition("<!-- end of programs -->\n")
    if not mark:
        raise ValueError(f"{path} lacks the lines `<!-- programs -->` and `<!-- end of programs -->`; put them back")
    path.write_text(f"{before}<!-- programs -->\n{text}{mark}{after}")


def _digits(x: float) -> str:
    """Formats three digits without an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}" if x >= 1e-4 else "0.0000"


def _program(record: dict[str, Any]) -> str:
    """The name of the whole program, also for a record of one part of it."""
    return record["program"].split(":")[0]
