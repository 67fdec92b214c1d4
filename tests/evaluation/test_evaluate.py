"""Evaluation on held-out images: holes, scores, resuming, tables and wrong input."""

import csv
import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import processes
import pytest
from PIL import Image
from tiny import tanh_prior

import dcgan_jax as dj
from dcgan_jax.baselines import library
from dcgan_jax.baselines.low_rank import low_rank
from dcgan_jax.baselines.nearest import nearest
from dcgan_jax.baselines.patch_match import patch_match
from dcgan_jax.baselines.total_variation import total_variation
from dcgan_jax.command import main
from dcgan_jax.command.inpaint import Job, inpaint_folder
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation import evaluate as evaluate_module
from dcgan_jax.evaluation import tables
from dcgan_jax.evaluation.evaluate import evaluate, png_pixels
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.evaluation.methods import ImageSet, prepare_method
from dcgan_jax.storage.files import locked

SIZE, COUNT = 12, 5
NUMBERS = [str(i) for i in range(COUNT)]  # images without names are named by their number
CONFIG = dj.InpaintConfig(num_steps=3, learning_rate=0.1)
PRIOR, OTHER_PRIOR = (tanh_prior((SIZE, SIZE, 3), seed) for seed in range(2))
MASKS = ("center", "half", "random", "pattern")
RNG = np.random.default_rng(9)
IMAGES = RNG.integers(30, 226, (COUNT, SIZE, SIZE, 3), np.uint8)
TRAINING = RNG.integers(30, 226, (20, SIZE, SIZE, 3), np.uint8)
SET = ImageSet("noise", "celeba", IMAGES, TRAINING, "checksum", PRIOR)
OPTIONS = {"search": CONFIG, "batch_size": 3, "progress": False}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def lines(out):
    return evaluate([SET], {"search": None, "nearest": None, "telea": 2}, out, **OPTIONS)


def of(lines, **names):
    return [line for line in lines if all(line[name] == value for name, value in names.items())]


def test_each_image_has_a_line_in_order(lines):
    expected = [
        (mask, method, i)
        for mask in MASKS
        for method, n in (("search", COUNT), ("nearest", COUNT), ("telea", 2))
        for i in range(n)
    ]
    assert [(line["mask"], line["method"], line["image"]) for line in lines] == expected
    assert {line["num_steps"] for line in of(lines, method="search")} == {CONFIG.num_steps}
    assert all(line["seconds"] > 0 for line in lines)


def test_scores_agree_with_scores_by_hand(lines):
    """Calls one baseline and scores its results by hand; also compares the stored pictures."""
    for mask in MASKS:
        holes = draw_holes(mask, NUMBERS, SIZE, 0)
        results = np.asarray(nearest(IMAGES, holes, TRAINING))
        for line in of(lines, mask=mask, method="nearest"):
            i = line["image"]
            squares = (results[i].astype(float) - IMAGES[i]) ** 2
            assert line["psnr"] == pytest.approx(10 * np.log10(255**2 / squares.mean()), abs=1e-3)
            assert line["psnr_hole"] == pytest.approx(10 * np.log10(255**2 / squares[holes[i]].mean()), abs=1e-3)
            hole_ssim = dj.ssim(results[i : i + 1], IMAGES[i : i + 1], where=holes[i : i + 1])
            assert line["ssim_hole"] == pytest.approx(float(hole_ssim[0]), abs=1e-5)
            assert line["ssim"] == pytest.approx(float(dj.ssim(results[i : i + 1], IMAGES[i : i + 1])[0]), abs=1e-5)
            assert ("picture" in line) == (i < evaluate_module.FIGURE_IMAGES)
            if "picture" in line:
                assert (png_pixels(line["picture"]) == results[i]).all()


def test_holes_follow_the_mask_and_do_not_depend_on_the_count():
    holes = {mask: draw_holes(mask, NUMBERS, SIZE, 0) for mask in MASKS}
    assert (holes["center"] == np.asarray(dj.masks.center(SIZE))).all()
    assert (holes["half"].sum((1, 2)) == SIZE**2 // 2).all()
    assert (holes["pattern"].sum((1, 2)) == SIZE**2 // 4).all()
    assert len({hole.tobytes() for hole in holes["random"]}) == COUNT  # each image has its own hole
    for mask in MASKS:
        assert (draw_holes(mask, NUMBERS[:2], SIZE, 0) == holes[mask][:2]).all()
    assert (draw_holes("random", NUMBERS, SIZE, 1) != holes["random"]).any()


def test_inpaint_draws_the_same_hole(digits, tmp_path, monkeypatch):
    """The hole depends on the image's name and the seed."""
    drawn = {}

    def record(mask, names, size, seed):
        holes = draw_holes(mask, names, size, seed)
        drawn.update(zip(names, holes, strict=True))
        return holes

    monkeypatch.setattr(evaluate_module, "draw_holes", record)
    shared = ("--split", "test", "--count", "3", "--seed", "4")
    given = ("--data", str(digits), "--out", str(tmp_path / "scores"), "--methods", "telea", "--masks", "pattern")
    assert main.main(["evaluate", *given, *shared, "--quiet"]) == 0
    options = {"split": "test", "count": 3, "seed": 4, "batch_size": 3, "progress": False}
    config = dj.InpaintConfig(num_steps=1)
    inpaint_folder(tanh_prior((32, 32, 1)), Job(digits, "pattern", tmp_path / "out", config, **options))
    assert len(drawn) == 3
    for name, hole in drawn.items():
        with Image.open(tmp_path / "out" / "strips" / f"{name}.png") as file:
            strip = np.asarray(file.convert("L"))
        assert (strip[:, 34:66] == np.where(hole, 255, strip[:, :32])).all()


def strip_times(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_finished_work_is_not_repeated(lines, out, monkeypatch):
    """Not when a method is added either. Only work that an interruption cut off is repeated."""
    calls = []
    complete = evaluate_module.score_unit
    monkeypatch.setattr(evaluate_module, "score_unit", lambda unit, seed: calls.append(unit) or complete(unit, seed))
    methods = {"search": None, "nearest": None, "telea": 2}
    assert evaluate([SET], methods, out, **OPTIONS) == lines and not calls
    more = evaluate([SET], {**methods, "navier-stokes": 1}, out, **OPTIONS)
    assert {unit.name for unit in calls} == {"navier-stokes"}
    assert [line for line in more if line["method"] != "navier-stokes"] == lines
    # A call with fewer masks and methods returns a part, and loses no result.
    calls.clear()
    assert (
        evaluate([SET], {"telea": 1}, out, mask_names=("half",), **OPTIONS)
        == of(lines, mask="half", method="telea")[:1]
    )
    assert evaluate([SET], methods, out, **OPTIONS) == lines and not calls
    # Killed while a line was written.
    path = out / "scores.jsonl"
    text = path.read_text()
    path.write_text(text[: len(text) * 2 // 3])
    assert strip_times(evaluate([SET], methods, out, **OPTIONS)) == strip_times(lines)
    assert 0 < len(calls) < 24


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"set": dataclasses.replace(SET, prior=OTHER_PRIOR)}, {"search"}),
        ({"set": dataclasses.replace(SET, version="other")}, {"search", "nearest"}),
        ({"search": dataclasses.replace(CONFIG, num_steps=2)}, {"search"}),
        ({"seed": 1}, {"search", "nearest"}),
    ],
)
def test_only_results_that_a_change_affects_are_computed_again(changed, again, tmp_path, monkeypatch):
    methods = {"search": 3, "nearest": 3}
    options = OPTIONS | {"mask_names": ("random",)}
    before = evaluate([SET], methods, tmp_path, **options)
    calls, complete = [], evaluate_module.score_unit
    monkeypatch.setattr(
        evaluate_module, "score_unit", lambda unit, seed: calls.append(unit.name) or complete(unit, seed)
    )
    images = changed.pop("set", SET)
    after = evaluate([images], methods, tmp_path, **options | changed)
    assert set(calls) == again
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 6  # outdated lines are removed
    for a, b in zip(before, after, strict=True):
        assert (a == b) == (a["method"] not in again)


def test_a_method_that_does_not_apply_is_marked(tmp_path):
    lines = evaluate([SET], {"patch-match": 1}, tmp_path, mask_names=("random", "pattern"), **OPTIONS)
    assert lines[0]["applies"] is False and "psnr" not in lines[0]
    text = tables.table(tables.cells(lines), {"noise": None})
    assert "| patch-match | — | " in text and "no whole patch is known" in text


def test_statistics_agree_with_scipy_and_numpy():
    values = RNG.normal(20, 3, 17)
    mean, interval = tables.statistic(values.tolist())
    assert mean == pytest.approx(values.mean())
    # From a published table: Student's t for 16 degrees of freedom is 2.1199.
    assert interval == pytest.approx(2.1199 * values.std(ddof=1) / 17**0.5, rel=1e-4)
    assert tables.statistic([1.0, None, 3.0]).mean == 2.0
    assert np.isnan(tables.statistic([None]).mean) and np.isnan(tables.statistic([1.0]).interval)


def test_tables_figures_and_charts_are_written(lines, tmp_path):
    settings = {"seed": 0, "search": CONFIG.to_json()}
    text = tables.save(lines, [SET], settings, tmp_path)
    assert (tmp_path / "table.md").read_text() == text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    record = json.loads((tmp_path / "table.json").read_text())
    assert dj.InpaintConfig.from_json(record["search"]) == CONFIG and record["seed"] == 0
    with (tmp_path / "scores.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == len(lines)
    header, *body = rows[: rows.index(next(row for row in rows if row[0].startswith("PSNR of the whole")))]
    assert header == ["PSNR of the hole, dB", *MASKS]
    for row in body[1:4]:
        for mask, text in zip(MASKS, row[1:], strict=True):
            scores = [float(x["psnr_hole"]) for x in images if (x["mask"], x["method"]) == (mask, row[0])]
            mean, interval = map(float, text.split(" ± "))
            assert mean == pytest.approx(np.mean(scores), abs=0.0051)
            (cell,) = (c for c in record["cells"] if (c["mask"], c["method"]) == (mask, row[0]))
            assert cell["psnr_hole"]["interval"] == pytest.approx(interval, abs=0.0051) and cell["count"] == len(scores)
    # The published figures stand beside ours, in the order of our masks.
    assert body[-1] == ["*Yeh et al., published*", "*19.4*", "*13.7*", "*22.8*", "*17.4*"]
    with Image.open(tmp_path / "figure-noise.png") as figure, Image.open(tmp_path / "chart.png") as chart:
        pixels, size = np.asarray(figure), chart.size
    assert size[0] > 300
    top, left, step = pixels.shape[0] - (8 * 26 - 2), pixels.shape[1] - (5 * 26 - 2), 26  # 12 pixels twice, and a gap
    shown = draw_holes("half", NUMBERS, SIZE, 0)[1]
    row = top + 3 * step  # the second image under the second mask
    for column, expected in (
        (0, IMAGES[1]),
        (1, np.where(shown[..., None], 255, IMAGES[1])),
        (3, png_pixels(of(lines, mask="half", method="nearest", image=1)[0]["picture"])),
    ):
        x = left + column * step
        assert (pixels[row : row + 24 : 2, x : x + 24 : 2] == expected).all()


def test_failed_searches_are_counted(tmp_path):
    broken = dataclasses.replace(SET, prior=dataclasses.replace(PRIOR, params=PRIOR.params * np.nan))
    lines = evaluate([broken], {"search": 3}, tmp_path, mask_names=("center",), **OPTIONS)
    (cell,) = tables.cells(lines)
    assert cell.not_finite == 3 and np.isfinite(cell.scores["psnr"].mean)


def test_every_method_completes_the_images_under_the_holes(tmp_path):
    """Under one mask: the stored pictures equal the results of the methods called by hand."""
    size = 20
    images = np.asarray(jax.image.resize(RNG.uniform(0, 255, (2, 5, 5, 3)), (2, size, size, 3), "cubic").clip(0, 255))
    images = images.astype(np.uint8)
    prior = tanh_prior((size, size, 3))
    names = ("total-variation", "low-rank", "patch-match", "telea", "navier-stokes", "biharmonic", "he2018")
    given = ImageSet("smooth", None, images, images, "smooth", prior)
    lines = evaluate([given], dict.fromkeys(names), tmp_path, mask_names=("center",), **OPTIONS)
    holes, key = draw_holes("center", NUMBERS[:2], size, 0), jax.random.fold_in(jax.random.key(0), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(2))
    expected = {
        "total-variation": total_variation(images, holes),
        "low-rank": low_rank(images, holes),
        "patch-match": patch_match(images, holes, keys),
        "telea": library.telea(images, holes),
        "navier-stokes": library.navier_stokes(images, holes),
        "biharmonic": library.biharmonic(images, holes),
        "he2018": dj.inpaint(prior, images, holes, keys, dj.InpaintConfig.preset("he2018")).images,
    }
    assert set(expected) == set(names)
    for line in lines:
        assert (png_pixels(line["picture"]) == np.asarray(expected[line["method"]])[line["image"]]).all(), line[
            "method"
        ]
        assert 10 < line["psnr_hole"] < 60 and line["ssim_hole"] > 0


def test_an_exact_completion_has_the_psnr_of_rounding(tmp_path):
    grey = dataclasses.replace(SET, images=np.full_like(IMAGES, 90))
    lines = evaluate([grey], {"total-variation": 1}, tmp_path, mask_names=("center",), **OPTIONS)
    assert lines[0]["psnr_hole"] == lines[0]["psnr"] == pytest.approx(58.92, abs=0.01)


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.pop("psnr"),
        lambda line: line.pop("seconds"),
        lambda line: line.update(picture="AAAA"),
        lambda line: line.pop("picture"),
        lambda line: line.update(set=[]),
        lambda line: line.update(ssim="good"),
    ],
)
def test_a_damaged_line_is_computed_again_and_other_files_stay(lines, out, damage, tmp_path):
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "scores.jsonl"
    (tmp_path / "scores-notes.jsonl").write_text('{"note": "mine"}\n')
    found = [json.loads(text) for text in path.read_text().splitlines()]
    damage(of(found, method="telea", mask="half", image=0)[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    methods = {"search": None, "nearest": None, "telea": 2}
    assert strip_times(evaluate([SET], methods, tmp_path, **OPTIONS)) == strip_times(lines)
    assert (tmp_path / "scores-notes.jsonl").read_text() == '{"note": "mine"}\n'


def test_two_evaluations_of_one_folder_are_refused(tmp_path):
    with locked(tmp_path / ".scores.jsonl.lock"), pytest.raises(UserError, match="another process uses"):
        evaluate([SET], {"telea": 1}, tmp_path, **OPTIONS)


def test_a_missing_library_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(UserError, match=r"needs scikit-image: pip install 'dcgan-jax\[baselines\]'"):
        evaluate([SET], {"search": 1, "biharmonic": 1}, tmp_path / "out", **OPTIONS)
    assert not list(tmp_path.glob("out/scores*"))


@pytest.mark.parametrize(
    ("sets", "methods", "masks", "message"),
    [
        ([SET], {"search": None}, ("center", "circle"), "`masks` has 'circle'.* center, half, random, pattern"),
        ([SET], {"magic": None}, ("center",), "`methods` has 'magic'.* nearest, total-variation"),
        ([SET, SET], {"telea": None}, ("center",), "share a name"),
        ([SET], {}, ("center",), "nothing to evaluate"),
        ([dataclasses.replace(SET, images=IMAGES[:, :8])], {"telea": None}, ("center",), "`images` of noise"),
        (
            [dataclasses.replace(SET, images=IMAGES[..., :1])],
            {"search": 1},
            ("half",),
            "12x12x1, but the prior is for 12x12x3",
        ),
        ([dataclasses.replace(SET, prior=None)], {"he2018": 1}, ("half",), "noise has no prior"),
        ([dataclasses.replace(SET, images=IMAGES[:0])], {"telea": None}, ("center",), "`images` of noise"),
        ([dataclasses.replace(SET, training=TRAINING[:0])], {"nearest": None}, ("center",), "no training images"),
        ([SET], {"context-encoder": None}, ("center",), "noise has no context encoder: train one"),
        ([SET], {"telea": 0}, ("center",), "`telea` is 0"),
        ([SET], {"telea": None}, ("half", "half"), "a mask twice"),
        ([dataclasses.replace(SET, name="a\udcff")], {"telea": None}, ("half",), "rename its folder"),
    ],
)
def test_wrong_input_is_refused_by_name(sets, methods, masks, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate(sets, methods, tmp_path / "out", mask_names=masks, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_search_does_not_depend_on_how_images_are_shared_out():
    holes, keys = draw_holes("half", NUMBERS, SIZE, 0), jax.random.split(jax.random.key(7), COUNT)
    method = prepare_method("search", SET, CONFIG, 3)
    whole, _ = method.complete(IMAGES[:3], holes[:3], keys[:3])
    part, notes = method.complete(IMAGES[1:3], holes[1:3], keys[1:3])
    assert (part == whole[1:3]).all() and len(notes) == 2


def command(data, prior, out, *more):
    return [
        "evaluate",
        *(
            "--data",
            str(data),
            "--prior",
            str(prior),
            "--out",
            str(out),
            "--split",
            "test",
            "--masks",
            "half",
            "center",
        ),
        *("--count", "6", "--batch-size", "2", "--num-steps", "2", "--quiet", *more),
    ]


@pytest.mark.long
def test_one_process_and_two_find_the_same(digits_run, tmp_path):
    methods = ("--methods", "search", "nearest:4")
    for count, name in ((1, "one"), (2, "two")):  # in new processes, so that both compile in the same way
        arguments = ["-m", "dcgan_jax", *command(digits_run.data, digits_run.run, tmp_path / name, *methods)]
        statuses, outputs, errors = processes.finish(processes.start(count, arguments))
        assert statuses == [0] * count, errors
        table = (tmp_path / name / "table.md").read_text()
        assert outputs[0].endswith(table) and "Images: 6: search; 4: nearest." in table
    assert "|" not in outputs[1]  # only the first process prints the table
    scores = []
    for count in ("one", "two"):
        with (tmp_path / count / "scores.csv").open() as file:
            scores.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert scores[0] == scores[1] and len(scores[0]) == 20
    shares = [(tmp_path / f"two/scores-{i}.jsonl").read_text().splitlines() for i in range(2)]
    assert sum(map(len, shares)) == 20 and min(map(len, shares)) > 5
    assert (tmp_path / "two/figure-data.png").read_bytes() == (tmp_path / "one/figure-data.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "nearest:0"), "`methods` has 'nearest:0'"),
        (("--methods", "magic"), "`methods` has 'magic'"),
        (("--prior", "faces-64", "digits-64"), "`prior` has 2 values for 1 sets"),
        (("--prior", "faces-64"), "are 32x32x1, but the prior is for 64x64x3: give one that was trained at their size"),
        (("--context-encoder", "faces-64", "--methods", "context-encoder"), "but the context encoder is for 64x64x3"),
        (("--split", "nowhere"), "no split 'nowhere'"),
        (("--methods", "context-encoder"), "has no context encoder"),
        (("--methods", "nearest", "--training-split", "nowhere"), "no training images"),
    ],
)
def test_wrong_options_are_refused_by_name(digits_run, tmp_path, capsys, more, message):
    assert main.main(command(digits_run.data, digits_run.run, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
