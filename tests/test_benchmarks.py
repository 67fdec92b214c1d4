"""The benchmarks: every case of this library runs, and a wrong answer has no time."""

import contextlib
import dataclasses
import importlib
import inspect
import io
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tanh_prior

import dcgan_jax as dj
from benchmarks import data, gpu, harness, networks, poisson, scaling, search, stream, train_step
from benchmarks.harness import Case, Ready
from dcgan_jax.networks.dcgan import draw_latents

CASES = [
    (module, case)
    for module in (train_step, search, stream, poisson, data, scaling, gpu)
    for case in module.cases(base_width=64, batch_size=64)
]


RUN: list[tuple[str, dict[str, Any]]] = [
    ("train_step:ours", {"dtype": "float32"}),
    ("search:ours", {"dtype": "float32"}),
    ("search:whole", {}),
    ("stream:streamed", {}),
    ("stream:in_batches", {"tolerance": 0.0}),
    ("poisson:small", {"by": "dcgan_jax, device", "kind": "pattern"}),
    ("poisson:small", {"by": "dcgan_jax, sparse", "kind": "center"}),
    ("poisson:large", {"by": "dcgan_jax, sparse"}),
    ("data:batches", {}),
    ("data:opening", {}),
    ("data:fed", {"ahead": False}),
    ("scaling:devices", {}),
    ("networks:product", {"framework": "jax", "dtype": "bfloat16"}),
]


def builder(case: Case) -> Callable[..., Ready]:
    """The function that builds a case."""
    module, function = case.build.split(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)


def test_every_case_names_a_function_that_takes_its_arguments() -> None:
    for _, case in CASES:
        inspect.signature(builder(case)).bind(**case.arguments)
    assert {module for module, case in CASES if case.name.startswith("dcgan_jax")} == {module for module, _ in CASES}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Reduces the benchmarks' own sizes and runs `scaling` in this process. Returns small arguments of cases."""
    config = dataclasses.replace(stream.CONFIG, num_steps=2)

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            scaling.measure_step(*map(int, command[-3:]))
        return SimpleNamespace(stdout=printed.getvalue())

    sizes: list[tuple[ModuleType, dict[str, Any]]] = [
        (networks, {"IMAGE_SIZE": 32}),
        (scaling.subprocess, {"run": run}),
        (search, {"STEPS": 1, "WHOLE_STEPS": 1}),
        (stream, {"COUNT": 4, "CONFIG": config}),
        (dj, {"load_prior": lambda name: tanh_prior((16, 16, 3))}),
        (poisson, {"BATCH": 2, "SIDE": 8, "LARGE": 6}),
        (data, {"COUNT": 64, "OPENED": 64, "BATCH": 4, "STEPS": 2, "FED_STEPS": 2, "STEP": 1}),
    ]
    for module, values in sizes:
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    return {"base_width": 2, "batch_size": 2, "steps": 1, "slots": 2, "count": jax.device_count(), "reads": (1, 1)}


@pytest.mark.parametrize("build, chosen", RUN)
def test_a_case_of_this_library_runs(tiny: dict[str, Any], build: str, chosen: dict[str, Any]) -> None:
    """Each builds and runs once at a tiny size; those that check their own answers do so."""
    case = next(case for _, case in CASES if case.build == build and chosen.items() <= case.arguments.items())
    arguments = {name: tiny.get(name, value) for name, value in case.arguments.items()}
    ready = builder(case)(**arguments)
    ready.run()
    assert ready.steps > 0 and all(np.isfinite(value).all() for value in ready.answer.values())


def test_every_builder_of_this_library_has_run() -> None:
    ours = {case.build for _, case in CASES if case.name.startswith(("dcgan_jax", "inpaint", "jax"))}
    assert ours == {build for build, _ in RUN}


def test_the_dense_blend_agrees_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poisson, "SIDE", 24)
    completion, image, holes = poisson.problem("pattern")
    found = poisson.spsolve(completion[:2], image[:2], holes[:2])
    for i in range(2):
        np.testing.assert_allclose(poisson.dense(completion[i], image[i], holes[i]), found[i], atol=1e-9)
    pasted = np.where(holes[0][..., None], completion[0], image[0])
    assert poisson.residual(pasted, completion[0], image[0], holes[0]) == 1
    assert poisson.residual(found[0], completion[0], image[0], holes[0]) < 1e-12


def test_cases_are_timed_and_wrong_ones_are_not() -> None:
    exact, rounded = {"framework": "jax", "dtype": "float32"}, {"framework": "jax", "dtype": "bfloat16"}
    cases = [
        Case("product", "dcgan_jax", "networks:product", exact),
        Case("product", "a peer", "networks:product", rounded, tolerance=0.1),
        Case("product", "too coarse", "networks:product", rounded, tolerance=1e-6),
        Case("product", "unknown", "networks:quotient"),
        Case("product", "untimed", "networks:product", exact, rounds=0),
    ]
    records = harness.measure(cases, rounds=2, say=lambda line: None)
    harness.compare(records)
    assert [len(record.get("seconds", [])) for record in records] == [2, 2, 0, 0, 0]
    assert "wrong answer: product" in records[2]["error"] and "AttributeError" in records[3]["error"]
    ours, theirs = records[:2]
    assert ours["over_best_peer"] == pytest.approx(theirs["median_seconds"] / ours["median_seconds"])
    table = harness.table(records)
    assert (
        table.count("\n") == 6
        and "| product | untimed |" in table
        and "wrong answer" in table
        and "over the best peer" in table
    )


def test_a_fed_loop_sees_every_pixel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over all batches is the same with and without the thread."""
    monkeypatch.setattr(data, "STEP", 1)
    monkeypatch.setattr(data, "FED_STEPS", 3)
    order = np.concatenate([data.batch_indices(t, 64, 2000, seed=0) for t in range(3)])
    expected = np.random.default_rng(0).integers(0, 256, (2000, 64, 64, 3), np.uint8)[order].sum(dtype=np.int64)
    for options in ({}, {"ahead": False}, {"awaited": True}):
        ready = data.fed((1, 2), **options)
        assert ready.answer["sum"] == expected and ready.run() == expected


def test_the_torch_peer_computes_the_same() -> None:
    torch_peer = pytest.importorskip("benchmarks.torch_peer", exc_type=ImportError)
    import torch

    config = networks.train_config(base_width=4, batch_size=4, dtype="float32")
    state, batch, key = networks.state(config), networks.images(4), jax.random.key(1)
    _, metrics = jax.jit(dj.make_train_step(config))(state, batch, key)
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)
    first, second = (torch.from_numpy(np.array(draw_latents(config.model, k, 4))) for k in (keys[2], keys[1]))
    weights = {"generator": state.generator, "discriminator": state.discriminator}
    step = torch_peer.train_step(config, weights, torch_peer.Mode("float32", "eager"))
    losses = step(torch_peer.mirrored(batch), first, second)
    expected = metrics["discriminator_loss"], metrics["generator_loss"]
    np.testing.assert_allclose([float(x) for x in losses], [float(x) for x in expected], rtol=1e-4)
