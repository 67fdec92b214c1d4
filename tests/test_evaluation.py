"""Scores of held-out images, against the pictures in the strips."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny import tanh_prior

import dcgan_jax as dj
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation import evaluate, save, table

SIZE, COUNT = 12, 3
CONFIG = dj.InpaintConfig(num_steps=3, learning_rate=0.1)
PRIOR, OTHER_PRIOR = (tanh_prior((SIZE, SIZE, 3), seed) for seed in range(2))
MASKS = ("center", "half", "random", "pattern")


IMAGES = np.random.default_rng(9).integers(30, 226, (COUNT, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def evaluations():
    return evaluate(PRIOR, IMAGES, CONFIG, batch_size=2, progress=False)


def columns(evaluation):
    """Original, masked, completion and blended, [n, h, w, 3] each, cut out of the strips."""
    assert evaluation.strips.shape == (COUNT * SIZE + 4, 4 * SIZE + 6, 3)
    step = SIZE + 2
    rows = [evaluation.strips[i * step : i * step + SIZE] for i in range(COUNT)]
    return [np.stack([row[:, j * step : j * step + SIZE] for row in rows]) for j in range(4)]


def holes_of(evaluation):
    return (columns(evaluation)[1] == 255).all(axis=-1)  # the images hold no white of their own


def test_scores_are_those_of_the_pictures(evaluations):
    assert [e.mask for e in evaluations] == list(MASKS)
    for e in evaluations:
        original, _, _, blended = columns(e)
        holes = holes_of(e)
        assert (original == IMAGES).all() and (blended[~holes] == IMAGES[~holes]).all()
        squares = (blended.astype(float) - IMAGES) ** 2
        for i in range(COUNT):
            assert e.psnr[i] == pytest.approx(10 * np.log10(255**2 / squares[i].mean()), abs=1e-3)
            assert e.psnr_hole[i] == pytest.approx(10 * np.log10(255**2 / squares[i][holes[i]].mean()), abs=1e-3)
        np.testing.assert_allclose(e.ssim, dj.ssim(blended, IMAGES), atol=1e-6)
        np.testing.assert_allclose(e.ssim_hole, dj.ssim(blended, IMAGES, where=holes), atol=1e-6)
        assert e.not_finite == 0


def test_holes_are_those_of_the_masks(evaluations):
    holes = {e.mask: holes_of(e) for e in evaluations}
    assert (holes["center"] == np.asarray(dj.masks.center(SIZE))).all()
    assert (holes["half"].sum((1, 2)) == SIZE**2 // 2).all()
    assert (holes["pattern"].sum((1, 2)) == SIZE**2 // 4).all()
    assert len({hole.tobytes() for hole in holes["random"]}) == COUNT  # a hole of its own for each image


def test_every_prior_and_search_meets_the_same_holes(evaluations):
    other = evaluate(OTHER_PRIOR, IMAGES, CONFIG, MASKS, batch_size=2, progress=False)
    for a, b in zip(evaluations, other, strict=True):
        assert (holes_of(a) == holes_of(b)).all()
        assert (columns(a)[3] != columns(b)[3]).any()
    seeded = evaluate(PRIOR, IMAGES, CONFIG, ("random",), seed=1, batch_size=2, progress=False)
    assert (holes_of(seeded[0]) != holes_of(evaluations[2])).any()


def test_files_and_means(evaluations, tmp_path):
    out = tmp_path / "deep" / "evaluation"
    save(evaluations, CONFIG, out)
    record = json.loads((out / "scores.json").read_text())
    assert dj.InpaintConfig.from_json(record["search"]) == CONFIG
    lines = (out / "table.md").read_text().splitlines()
    assert lines == table(evaluations).splitlines() and len(lines) == 2 + len(MASKS)
    for line, mask in zip(lines[2:], MASKS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == mask
        scores = record["masks"][mask]
        for cell, name in zip(cells[1:5], ("psnr", "psnr_hole", "ssim", "ssim_hole"), strict=True):
            assert len(scores[name]) == COUNT
            mean = sum(scores[name]) / COUNT
            assert float(cell) == pytest.approx(mean, abs=0.0051 if "psnr" in name else 0.00051)
        assert scores["not_finite"] == 0
        assert scores["num_steps"] == [CONFIG.num_steps] * COUNT and cells[5] == str(CONFIG.num_steps)
        assert float(cells[6]) == pytest.approx(scores["seconds"] / COUNT, abs=0.003)
    with Image.open(out / "figure.png") as figure:
        pixels = np.asarray(figure)
    strips = np.concatenate([e.strips for e in evaluations], axis=1)
    assert (pixels[-2 * len(strips) :: 2, ::2] == strips).all()  # enlarged twice, below the columns' labels


def test_failed_searches_are_counted():
    broken = dataclasses.replace(PRIOR, params=PRIOR.params * np.nan)
    (evaluation,) = evaluate(broken, IMAGES, CONFIG, ("center",), batch_size=2, progress=False)
    assert evaluation.not_finite == COUNT and np.isfinite(evaluation.psnr).all()


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (IMAGES, ("center", "circle"), "`masks` has 'circle'.* center, half, random, pattern"),
        (IMAGES[:, :8], ("center",), "`images`"),
        (IMAGES[..., :1], ("center",), "`images`"),
        (IMAGES[:0], ("center",), "`images`"),
    ],
)
def test_wrong_input_is_named(images, masks, message):
    with pytest.raises(UserError, match=message):
        evaluate(PRIOR, images, CONFIG, masks, progress=False)


def test_a_mask_s_holes_do_not_depend_on_the_other_masks():
    together = evaluate(PRIOR, IMAGES, CONFIG, ("center", "random"), progress=False)[1]
    alone = evaluate(PRIOR, IMAGES, CONFIG, ("random",), progress=False)[0]
    assert together.psnr_hole.tolist() == alone.psnr_hole.tolist()
