"""What the compilers make of the library for devices that are not here: counted, beside what the layers ask for.

`python -m benchmarks programs` compiles each program for each target in a process a target (`absent_devices`), counts
what one device does in it (`compiled`), and prints a row each as it comes. No time in it is measured: the least time is
a prediction, what the datasheet's peaks allow, and no program runs at them.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import absent_devices
from benchmarks.absent_devices import TARGETS, Target
from benchmarks.compiled import Counts, Program

WIDTH = 64
DTYPES = ("float32", "bfloat16")
TRAINED = (64, 128, 1024)  # images a device
SEARCHED = (64, 1024)  # images in all
LARGE = 8192  # images of a search that fills a GPU


@dataclass(frozen=True)
class Work:
    """A program to compile: `build(mesh)` gives a jitted function and the shapes of its arguments."""

    name: str
    build: Callable[[Any], tuple[Any, tuple[Any, ...]]]
    images: int  # of one device
    asked: float | None = None  # GFLOP of one device, or of one in a round of the program's loop
    loop: str = ""  # what a round of the loop that costs most is called; it is counted apart


def works(target: Target) -> list[Work]:
    """What is compiled for a target."""
    from benchmarks import networks

    n = target.count
    found = []
    for dtype in DTYPES:
        for images in TRAINED:
            config = networks.train_config(WIDTH, images * n, dtype)
            asked = networks.gflop_train_step(config) / n
            name = f"training step, {dtype}, {images} a device"
            found.append(Work(name, functools.partial(training_step, config), images, asked))
    if target.topology == "v5e:8x8":  # a pod trains; to search, its hosts need nothing of one another
        return [work for work in found if work.images == 1024]
    for preset in ("default", "best"):
        for images in (*SEARCHED, *([LARGE] if target.platform == "cuda" else [])):
            asked = images / n * networks.gflop_search_step(networks.train_config(WIDTH, images, "float32"))
            build = functools.partial(search, preset, images)
            found.append(Work(f"search, {preset}, {images} images", build, images // n, asked, "a step"))
    for blend in ("poisson_blend", "smooth_blend"):
        for images in SEARCHED:
            build = functools.partial(blending, blend, images)
            found.append(Work(f"{blend}, {images} images", build, images // n, None, "a round"))
    return found


def training_step(config, mesh):
    """As the trainer compiles it."""
    import jax

    import dcgan_jax as dj
    from dcgan_jax.training.loop import jit_step

    step = jit_step(dj.make_train_step, config, mesh)
    state = jax.eval_shape(lambda key: dj.init_state(config, key), _key())
    return step, (state, jax.ShapeDtypeStruct((config.images_per_step, *config.image_shape), "uint8"), _key())


def search(preset: str, images: int, mesh):
    """`inpaint` once its arguments have been checked, the blend included."""
    import jax

    import dcgan_jax as dj
    from benchmarks import networks
    from dcgan_jax.inpainting.inpaint import inpaint_batch
    from dcgan_jax.parallel import sharding
    from dcgan_jax.training import encoder
    from dcgan_jax.training.encoder import encoder_prior

    if preset == "default":
        train, config = networks.train_config(WIDTH, 64, "float32"), dj.InpaintConfig()
        prior = jax.eval_shape(lambda key: dj.prior_from_state(dj.init_state(train, key), train), _key())
    else:
        learn, config = encoder.EncoderConfig(model=networks.train_config(WIDTH, 64, "float32").model), None
        config = dj.InpaintConfig.preset(preset)
        prior = jax.eval_shape(lambda key: encoder_prior(encoder.init_state(learn, key), learn), _key())
    everywhere, split = sharding.replicated(mesh), sharding.along_batch(mesh)
    pixels, hole, keys = (
        _placed(split, jax.ShapeDtypeStruct((images, *shape), dtype))
        for shape, dtype in (((64, 64, 3), "float32"), ((64, 64), bool), ((), _key().dtype))
    )
    return inpaint_batch, (_placed(everywhere, prior), pixels, hole, keys, config, None)


def blending(name: str, images: int, mesh):
    """A blend of as many images as holes."""
    import jax

    from dcgan_jax.blending import poisson, smooth
    from dcgan_jax.parallel import sharding

    blend = {"poisson_blend": poisson.poisson_blend, "smooth_blend": smooth.smooth_blend}[name]
    pixels, hole = jax.ShapeDtypeStruct((images, 64, 64, 3), "float32"), jax.ShapeDtypeStruct((images, 64, 64), bool)
    return jax.jit(blend), tuple(_placed(sharding.along_batch(mesh), x) for x in (pixels, pixels, hole))


def _key():
    import jax

    return jax.eval_shape(lambda: jax.random.key(0))


def _placed(where, tree):
    import jax

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def measured(work: Work, target: Target, mesh) -> Iterator[dict[str, Any]]:
    """Compiles a program and counts it: a record, or one of a round of its loop and one of the rest."""
    start = time.perf_counter()
    function, arguments = work.build(mesh)
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
    counts = Program(program.as_text(), target.platform).count()
    if work.loop and counts.loops:
        loop = max(counts.loops, key=lambda loop: sum(loop.body.whole().flop.values()) or loop.body.whole().bytes)
        body = record(work, target, loop.body.whole(), work.asked)
        yield body | whole | {"program": f"{work.name}: {work.loop}", "rounds": loop.rounds}
        counts.loops = [other for other in counts.loops if other is not loop]
        yield record(work, target, counts.whole(), None) | {"program": f"{work.name}: the rest"}
    else:
        yield record(work, target, counts.whole(), work.asked) | whole


def record(work: Work, target: Target, counts: Counts, asked: float | None) -> dict[str, Any]:
    """What one device does."""
    gflop = sum(counts.flop.values()) / 1e9
    found: dict[str, Any] = {"program": work.name, "images": work.images, "gflop": gflop, "bytes": counts.bytes}
    if asked:
        found |= {"asked_gflop": asked, "ratio": gflop / asked}
    if target.platform == "cuda":
        found |= {"kernels": len(counts.kernels), "norm_reductions": counts.norm_reductions}
    found["collectives"] = {kind: {"count": len(x), "bytes": sum(x)} for kind, x in counts.collectives.items() if x}
    if target.device:
        found["predicted_least_milliseconds"] = 1000 * least_seconds(counts, target)
    costs: dict[str, list[float]] = {}
    for kernel in counts.kernels:
        cost = costs.setdefault(f"{kernel.kind} {kernel.op_name}", [0, 0, 0])
        cost[:] = cost[0] + 1, cost[1] + kernel.bytes, cost[2] + sum(kernel.flop.values())
    dearest = sorted(costs.items(), key=lambda item: -item[1][1])[:25]
    found["dearest"] = [{"kernel": name, "count": n, "bytes": b, "gflop": f / 1e9} for name, (n, b, f) in dearest]
    return found


def least_seconds(counts: Counts, target: Target) -> float:
    """What datasheet peaks allow: products and memory at once, and then the collectives, in a ring."""
    device, n = target.device, target.count
    assert device is not None
    products = sum(number / device.flops.get(dtype, device.flops["f32"]) for dtype, number in counts.flop.items())
    sent = 0.0
    for kind, sizes in counts.collectives.items():
        sent += sum(sizes) * (2 if kind == "all-reduce" else 1) * (n - 1) / n
    return max(products, counts.bytes / device.bandwidth) + sent / device.link


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


def _digits(x: float) -> str:
    """Three digits, without an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}" if x >= 1e-4 else "0.0000"


def cells(found: dict[str, Any]) -> list[str]:
    """A record as a row of the table."""
    row = []
    for column in COLUMNS.values():
        try:
            row.append(column(found))
        except KeyError:
            row.append("")
    if "error" in found:
        row[1] = found["error"]
    return row


def table(records: list[dict[str, Any]]) -> str:
    """In Markdown, a table for each target, without its empty columns."""
    parts = []
    for name, target in TARGETS.items():
        rows = [cells(found) for found in records if found["target"] == name]
        used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
        lines = [[list(COLUMNS)[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
        if rows:
            made = {f"jax {found['jax']}, revision {found['revision']}" for found in records if found["target"] == name}
            title = f"{target.title} ({' and '.join(sorted(made))})"
            parts.append(f"{title}:\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def run(name: str, only: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compiles for one target in a process of its own and returns its records."""
    command = [sys.executable, "-m", "benchmarks.programs", name, only]
    environment, records = absent_devices.environment(name), []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith('{"target"'):
                records.append(json.loads(line))
                say("  " + " | ".join(cells(records[-1])))
        if child.wait():
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["nothing was printed"])[-1]
            records.append({"target": name, "program": "its process", "error": f"status {child.returncode}: {last}"})
            say("  " + records[-1]["error"])
    return records


def main(arguments: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, which runs nothing: a plugin without its device complains
    from benchmarks import harness

    parser = argparse.ArgumentParser(prog="python -m benchmarks programs", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="(all)")
    parser.add_argument("--only", default="", metavar="TEXT", help='programs with it in their name, such as "search"')
    parser.add_argument("--details", action="store_true", help="print the kernels that move most, of each program")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder (benchmark-results)")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md too")
    options = parser.parse_args(arguments)
    names = sorted({work.name for name in options.targets for work in works(TARGETS[name])})
    if not any(options.only in name for name in names):
        parser.error(f"no program has {options.only!r} in its name; there are {'; '.join(names)}")
    records = []
    for name in options.targets:
        wheels = absent_devices.missing(name)
        if wheels:
            print(f"{TARGETS[name].title}: skipped, {wheels} is not installed: pip install -e '.[devices]'", flush=True)
            continue
        print(f"{TARGETS[name].title}: {' | '.join(COLUMNS)}", flush=True)
        found = run(name, options.only, functools.partial(print, flush=True))
        records += found
        for one in found if options.details else ():
            print(f"\n{one['program']}: count, MB, GFLOP of the kernels that move most")
            for cost in one.get("dearest", ()):
                megabytes = cost["bytes"] / 1e6
                print(f"  {cost['count']:4d} {megabytes:10.2f} {cost['gflop']:10.2f}  {cost['kernel']}")
    machine = harness.machine()
    write(records, machine, options.out)
    text = (options.out / "programs.md").read_text()
    print(text)
    if options.readme:
        into_readme(text, Path(__file__).with_name("README.md"))


def _work(found: dict[str, Any]) -> str:
    """The program of a row, without the part of it that the row is about."""
    return found["program"].split(":")[0]


def write(records: list[dict[str, Any]], machine: dict[str, Any], out: Path) -> None:
    """Writes programs.json and programs.md; what an earlier call left of other programs stays in both."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "programs.json"
    kept = json.loads(path.read_text())["records"] if path.exists() else []
    new = [found | {"revision": machine["revision"], "jax": machine["versions"]["jax"]} for found in records]
    again = {(found["target"], _work(found)) for found in new} | {(found["target"], "its process") for found in new}
    merged = [found for found in kept if (found["target"], _work(found)) not in again] + new
    order = {(name, work.name): i for i, (name, work) in enumerate((n, w) for n in TARGETS for w in works(TARGETS[n]))}
    merged.sort(key=lambda found: order.get((found["target"], _work(found)), len(order)))
    described = {"machine": machine, "targets": {name: asdict(target) for name, target in TARGETS.items()}}
    path.write_text(json.dumps(described | {"records": merged}, indent=1))
    (out / "programs.md").write_text(table(merged) + "\n")


def into_readme(text: str, path: Path) -> None:
    """Replaces the tables between the two marks in the README."""
    before, _, rest = path.read_text().partition("<!-- programs -->\n")
    _, mark, after = rest.partition("<!-- end of programs -->\n")
    if not mark:
        raise ValueError(f"{path} lacks the lines `<!-- programs -->` and `<!-- end of programs -->`: put them back")
    path.write_text(f"{before}<!-- programs -->\n{text}{mark}{after}")


def _main(name: str, only: str) -> None:
    from dcgan_jax.parallel import sharding

    target = TARGETS[name]
    mesh = sharding.data_mesh(absent_devices.devices(name))
    for work in works(target):
        if only not in work.name:
            continue
        try:
            for found in measured(work, target, mesh):
                print(json.dumps({"target": name} | found), flush=True)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            failed = {"target": name, "program": work.name, "error": f"{type(error).__name__}: {lines[0]}"}
            print(json.dumps(failed), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
