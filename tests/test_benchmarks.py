"""The benchmarks: every case of this library runs, and a wrong answer has no time."""

import jax
import numpy as np
import pytest

import dcgan_jax as dj
from benchmarks import data, harness, networks, poisson
from benchmarks.harness import Case
from dcgan_jax.networks.dcgan import draw_latents


def test_the_dense_blend_agrees_with_scipy():
    completion, image, holes = poisson.problem("pattern")
    found = poisson.spsolve(completion[:2], image[:2], holes[:2])
    for i in range(2):
        np.testing.assert_allclose(poisson.dense(completion[i], image[i], holes[i]), found[i], atol=1e-9)
    pasted = np.where(holes[0][..., None], completion[0], image[0])
    assert poisson.residual(pasted, completion[0], image[0], holes[0]) == 1
    assert poisson.residual(found[0], completion[0], image[0], holes[0]) < 1e-12


def test_cases_are_timed_and_wrong_ones_are_not():
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


def test_a_fed_loop_sees_every_pixel_once(monkeypatch):
    """With and without the thread the sum is that of the pixels of its batches."""
    monkeypatch.setattr(data, "STEP", 1)
    monkeypatch.setattr(data, "FED_STEPS", 3)
    order = np.concatenate([data.batch_indices(t, 64, 2000, seed=0) for t in range(3)])
    expected = np.random.default_rng(0).integers(0, 256, (2000, 64, 64, 3), np.uint8)[order].sum(dtype=np.int64)
    for options in ({}, {"ahead": False}, {"awaited": True}):
        ready = data.fed((1, 2), **options)
        assert ready.answer["sum"] == expected and ready.run() == expected


def test_the_torch_peer_computes_the_same():
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
