"""`python -m benchmarks programs`: its tables, its predicted times, and the GFLOP of programs compiled for an H100."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dcgan_jax as dj
from benchmarks import absent_devices, costs, networks, program_tables, programs
from benchmarks.compiled import Counts, Kernel


@pytest.fixture(scope="module", autouse=True)
def compiled_as_users_compile() -> Iterator[None]:
    """Processes that compile for other devices do not inherit the tests' settings of JAX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
        patch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
        yield


def test_the_least_time_is_the_datasheets() -> None:
    counts = Counts([Kernel("a", "dot", "", 3.35e9, {"f32": 494.5e9, "bf16": 989e9}, False)])
    assert costs.least_seconds(counts, absent_devices.TARGETS["h100"]) == pytest.approx(2e-3)
    counts.collectives["all-reduce"] = [450e6]
    assert costs.least_seconds(counts, absent_devices.TARGETS["h100x8"]) == pytest.approx(2e-3 + 2 * 7 / 8 * 1e-3)


def test_a_table_for_each_target_and_a_row_for_each_program(tmp_path: Path) -> None:
    machine = {"revision": "abc", "versions": {"jax": "1"}}
    step = {"target": "h100", "program": "a step", "images": 64, "gflop": 250.0, "asked_gflop": 125.0, "ratio": 2.0}
    step |= {"bytes": 2e9, "collectives": {}, "kernels": 31, "norm_reductions": 7}
    step |= {"predicted_least_milliseconds": 1.25, "compile_seconds": 9.2, "peak_bytes": 5e8}
    failed = {"target": "v5e", "program": "a step", "error": "no such topology"}
    search = step | {"program": "search, best, 64 images", "error": "out of memory"}
    program_tables.write([step, failed, search], machine, tmp_path)
    # New records replace the rows of the same program, failures included. Other rows keep their revision.
    again = [step | {"program": f"search, best, 64 images: {part}"} for part in ("a step", "the rest")]
    text = program_tables.write([*again, step | {"kernels": 30}], machine | {"revision": "def"}, tmp_path)
    assert text == (tmp_path / "programs.md").read_text()
    first, second = text.split("TPU v5e 2×4 (jax 1, revision abc):")
    assert first.startswith("one H100 (jax 1, revision def):")
    assert "| a step | 250 | 125 | 2.00 | 2 | 31.2 | 0.5 | 30 | 7 | 1.25 | 9 |" in first
    assert "out of memory" not in first and first.count("search, best, 64 images: ") == 2
    assert "collectives" not in first and "| a step | no such topology |" in second
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- programs -->\nold\n<!-- end of programs -->\nbelow\n")
    program_tables.into_readme("new\n", readme)
    new = "above\n<!-- programs -->\nnew\n<!-- end of programs -->\nbelow\n"
    assert readme.read_text() == new


def test_a_blend_for_pretended_devices() -> None:
    turn, rest = programs.run("cpu", "poisson_blend, 64", lambda line: None)
    assert turn["program"].endswith("a round") and rest["program"].endswith("the rest")
    assert turn["images"] == 8 and not turn["collectives"]
    image = 4 * 8 * 64 * 64 * 3
    assert turn["peak_bytes"] > 3 * image and min(turn["bytes"], rest["bytes"]) > 2 * image


@pytest.fixture(scope="module")
def h100() -> dict[tuple[Any, ...], dict[str, Any]]:
    """FLOP of each layer's maps on one H100, by `tests/h100_layers.py`; by type, side and channels."""
    needs_h100()
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "h100_layers.py")]
    printed = subprocess.run(command, env=absent_devices.environment("h100"), capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr[-2000:]
    return {tuple(layer["layer"]): layer for layer in map(json.loads, printed.stdout.splitlines())}


def needs_h100() -> None:
    """Skips the test if the compiler for an H100 is not installed."""
    wheels = absent_devices.missing("h100")
    if wheels:
        pytest.skip(f"{wheels} is not installed: pip install -e '.[devices]'")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_an_h100_multiplies_what_the_layers_ask_for(
    h100: dict[tuple[Any, ...], dict[str, Any]], dtype: str, width: int, size: int
) -> None:
    """The three maps of all layers of a network: at most 1.05 times 25 taps at each pixel of the smaller image."""
    model = dj.ModelConfig(base_width=width, image_size=size)
    layers = [h100[dtype, *layer] for layer in networks.layers(model)]
    asked = sum(3 * layer["asked"] for layer in layers)
    multiplied = sum(sum(layer["multiplied"].values()) for layer in layers)
    ratios = [
        f"{side}×{side}, {outer} and {inner} channels, {name}: {flop / layer['asked']:.2f}"
        for layer in layers
        for (_, side, outer, inner), parts in [(layer["layer"], layer["multiplied"])]
        for name, flop in parts.items()
    ]
    assert multiplied <= 1.05 * asked, f"{multiplied / asked:.2f} times; " + "; ".join(ratios)


@pytest.mark.parametrize(
    ("devices", "program"),
    [
        ("h100", "training step, float32, 64 a device"),
        ("h100", "training step, bfloat16, 64 a device"),
        ("h100", "search, default, 64"),
        ("h100x8", "training step, float32, 64 a device"),
    ],
)
def test_an_h100_multiplies_what_a_step_asks_for(devices: str, program: str) -> None:
    needs_h100()
    records = programs.run(devices, program, lambda line: None)
    assert "error" not in records[0], records
    assert records[0]["ratio"] <= 1.05, f"{records[0]['program']}: {records[0]['ratio']:.2f} times"
