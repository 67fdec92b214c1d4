"""The command `dcgan-jax`: training to evaluation on the digits, wrong input, options and presets."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import main
from PIL import Image

import dcgan_jax as dj
from dcgan_jax import config as config_module
from dcgan_jax.baselines.context_encoder import ContextEncoderConfig
from dcgan_jax.command import inpaint as inpaint_module
from dcgan_jax.command.inpaint import Report
from dcgan_jax.command.main import run
from dcgan_jax.data import cropping
from dcgan_jax.errors import DivergedError
from dcgan_jax.storage.runs import read_run
from dcgan_jax.training import loop

COMMANDS = "prepare train train-context-encoder plot sample export inpaint evaluate serve demo".split()
TINY = "--image-size 32 --channels 1 --base-width 4 --latent-dim 8 --batch-size 8 --num-steps 4 --log-every 2"
SEARCH = ("--num-steps", "2", "--batch-size", "2", "--quiet")


@pytest.fixture(scope="module")
def prior_file(digits_prior, tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "digits.safetensors"
    dj.save_prior(digits_prior, path)
    return path


# ------------------------------------------------------------------------------------------ from training to evaluation


def test_training_writes_a_run(digits_run):
    record = read_run(digits_run.run)
    config, images = record.settings(dj.TrainConfig), record.data
    assert config == dj.TrainConfig(
        model=dj.ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=8),
        batch_size=8,
        num_steps=4,
        log_every=2,
        measure_every=0,
    )
    assert images["kind"] == "digits" and int(digits_run.state.step) == 4
    lines = (digits_run.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert (digits_run.run / "samples" / "0000004.png").is_file()


def test_the_module_runs_as_the_command_does(prior_file, tmp_path):
    command = ["sample", "--prior", prior_file, "--count", "3"]
    assert main(*command, "--out", tmp_path / "here.png") == 0
    there = [sys.executable, "-m", "dcgan_jax", *map(str, command), "--out", str(tmp_path / "there.png")]
    compiled_alike = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(there, capture_output=True, text=True, check=True, env=compiled_alike)
    assert done.stdout == ""
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()


def test_inpaint_and_evaluate_write_their_results(digits_run, prior_file, tmp_path, capsys):
    out = tmp_path / "results"
    images = ("--images", digits_run.data, "--split", "test", "--count", 3, "--masks", tmp_path / "mask.png")
    Image.fromarray(np.asarray(dj.masks.center(32))).save(tmp_path / "mask.png")
    assert main("inpaint", "--prior", prior_file, *images, "--out", out, *SEARCH) == 0
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(results) == 3 and all(line["num_steps"] == 2 and line["missing"] == 256 for line in results)
    assert all((out / f"{line['name']}.png").is_file() for line in results)
    capsys.readouterr()
    images = ("--data", digits_run.data, "--split", "test", "--count", 2, "--masks", "half")
    assert main("evaluate", "--prior", prior_file, *images, "--out", tmp_path / "scores", *SEARCH) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "scores" / "table.md").read_text() and "| half |" in table and "center" not in table
    record = json.loads((tmp_path / "scores" / "table.json").read_text())
    (cell,) = record["cells"]
    assert record["search"]["num_steps"] == 2 and (cell["mask"], cell["count"]) == ("half", 2)


def test_failed_searches_give_exit_status_1(digits_run, digits_prior, tmp_path, capsys):
    broken = dataclasses.replace(digits_prior, params=jax.tree.map(lambda x: x * np.nan, digits_prior.params))
    dj.save_prior(broken, tmp_path / "broken.safetensors")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    images = ("--images", digits_run.data, "--count", 2, "--masks", tmp_path / "mask.png")
    out = ("--out", tmp_path / "results", *SEARCH)
    assert main("inpaint", "--prior", tmp_path / "broken.safetensors", *images, *out) == 1
    error = capsys.readouterr().err
    assert "2 searches reached a loss that is not finite" in error and error.count("\n") == 1


def test_skipped_images_are_named_and_give_exit_status_1(prior_file, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(13):
        (tmp_path / "images" / f"{i:02d}.jpg").write_text("no picture")
    Image.new("LA", (32, 32)).save(tmp_path / "images" / "good.png")
    Image.new("L", (32, 32)).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    images = ("--images", tmp_path / "images", "--masks", tmp_path / "mask.png")
    assert main("inpaint", "--prior", prior_file, *images, "--out", out, *SEARCH) == 1
    first, *skipped, last = capsys.readouterr().err.splitlines()
    assert first == ("dcgan-jax: good: transparent parts became white; no pixel is missing, so the image is unchanged")
    assert [line.split(" is skipped: ")[0] for line in skipped] == [f"dcgan-jax: {i:02d}" for i in range(10)]
    assert last == f"dcgan-jax: and 3 more such images, see {out / 'results.jsonl'}"
    assert (out / "good.png").is_file()


# ------------------------------------------------------------------------------------------ a fast start


@pytest.mark.parametrize("command", ["--help", "inpaint --help", "evaluate --help", "inpaint --imagse a"])
def test_help_and_mistyped_options_import_nothing_heavy(command):
    code = f"""
import contextlib, io, sys
import dcgan_jax
from dcgan_jax.command.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    with contextlib.suppress(SystemExit):
        main({command.split()})
print({{"jax", "flax", "optax", "numpy", "scipy", "PIL", "fsspec", "orbax"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_package_offers_its_public_names():
    assert set(dj.__all__) <= set(dir(dj)) and {"inpaint", "masks", "load_prior", "TrainConfig"} <= set(dj.__all__)
    modules = {"masks", "measurements"}
    assert all(getattr(dj, name).__module__.startswith("dcgan_jax.") for name in set(dj.__all__) - modules)
    assert dj.masks is sys.modules["dcgan_jax.masks"]
    with pytest.raises(AttributeError):
        dj.impaint  # noqa: B018


def test_choices_of_options_match_the_modules():
    assert config_module.MASK_NAMES == dj.masks.NAMES and config_module.SET_CROPS == tuple(cropping.CROP_DESCRIPTIONS)


# ------------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prepare NOWHERE --out new", "NOWHERE does not exist"),
        ("prepare here --out new", "here contains no images"),
        ("prepare text --out new", "more than 1 % of the images cannot be read"),
        ("prepare digits --out here/note.txt/new", "note.txt"),
        ("prepare digits --out DATA", "exists already"),
        ("prepare digits --out new --crop round", "`crop`"),
        ("prepare digits --out new --validation-fraction 2", "`validation_fraction`"),
        ("train --data here --run new", "here is not a prepared set"),
        ("train --data DATA --run new", "image_size 32 and channels 1"),
        ("train --data DATA --run here --image-size 32 --channels 1", "here is not empty"),
        ("train --data DATA --run RUN --image-size 32 --channels 1", "model.base_width (4 there, 64 here)"),
        ("train --data DATA --run new --image-size 32 --channels 1 --batch-size 5000", "a batch of 5000"),
        ("train --data DATA --run new --preset he2019", "unknown preset 'he2019'"),
        ("train --data DATA --run new --learning-rate -1", "`learning_rate`"),
        ("train --data DATA --run new --split night", "no split 'night'"),
        ("train --data DATA --run new --profile-steps 3", "`profile_steps` is '3'"),
        ("train --data DATA --run new --profile-steps 3:3", "`profile_steps` is '3:3'"),
        ("train --data DATA --run new --profile-steps=-1:3", "`profile_steps` is '-1:3'"),
        ("train --data DATA --run new --profile-steps 1:5 TINY", "`profile_steps` is 1:5; choose steps among 0:4"),
        ("train --data DATA --run RUN --profile-steps 1:3 TINY", "choose steps among 4:4"),
        ("plot NOWHERE", "NOWHERE is not a run's folder (there is no such folder)"),
        ("plot here", "here is not a run's folder (it has no metrics.jsonl)"),
        ("sample --prior NOWHERE --out new.png", "no prior 'NOWHERE'"),
        ("sample --prior here --out new.png", "not a run's folder"),
        ("sample --prior here/note.txt --out new.png", "note.txt is not a prior"),
        ("sample --prior PRIOR --out new.png --count 0", "`count`"),
        ("sample --prior PRIOR --out here", "here is not empty: give another folder"),
        ("sample --prior NOWHERE --out new.jpg", "`out` is new.jpg; it takes a .png (a grid), a .npz"),
        ("sample --prior PRIOR --out here/note.txt/new", "note.txt"),
        ("sample --prior PRIOR --out here/note.txt/new.npz", "note.txt"),
        ("sample --prior PRIOR --out PLAIN", "PLAIN is not a folder"),
        ("sample --prior PRIOR --out here/note.txt/new.png", "note.txt"),
        ("inpaint --prior PRIOR --images NOWHERE --masks center --out new", "NOWHERE does not exist"),
        ("inpaint --prior PRIOR --images here --masks center --out new", "holds no image"),
        ("inpaint --prior PRIOR --images text --masks center --out new", "a.jpg cannot be read as an image"),
        ("inpaint --prior PRIOR --images small.png --masks center --out new --crop 0,0,9,9", "does not lie inside"),
        ("inpaint --prior PRIOR --images small.png --masks center --out new --crop oval", "`crop` is 'oval'"),
        (
            "inpaint --prior PRIOR --images small.png --masks text --out new",
            "images, such as 'small', have no mask in text",
        ),
        ("inpaint --prior PRIOR --images twins --masks center --out new", "two images named 'a'"),
        ("inpaint --prior PRIOR --images twins/a.png --masks center --out twins", "would overwrite twins/a.png"),
        ("inpaint --prior faces-64 --images DATA --masks center --out new", "holds images of 32x32x1, but the prior"),
        ("inpaint --prior EMPTY --images DATA --masks center --out new", "holds no checkpoint yet"),
        (
            "inpaint --prior TRUNCATED --images DATA --masks center --out new",
            "TRUNCATED/checkpoints/4 is damaged",
        ),
        ("inpaint --prior CUT.safetensors --images DATA --masks center --out new", "CUT.safetensors is not a prior"),
        ("inpaint --prior PRIOR --images DATA --masks circle --out new", "`masks`"),
        ("inpaint --prior PRIOR --images DATA --masks small.png --out new", "is 8x8, but the image is 32x32"),
        ("inpaint --prior PRIOR --images DATA --masks center --out here/note.txt", "note.txt cannot be made"),
        ("inpaint --prior PRIOR --images DATA --masks center --out new --window 4", "`window`"),
        ("inpaint --prior PRIOR --images DATA --masks center --out new --preset yeh", "unknown preset 'yeh'"),
        ("inpaint --prior PRIOR --images DATA --masks center --out new --preset best", "this prior has no encoder"),
        ("evaluate --prior PRIOR --data DATA --methods best --out new", "this prior has no encoder"),
        ("inpaint --prior PRIOR --images DATA --masks none.png --out new", "'none.png', which does not exist"),
        ("inpaint --prior PRIOR --images DATA --masks center --out new --batch-size 0", "`batch_size`"),
        ("inpaint --prior PRIOR --images DATA --masks center --out new --count -1", "`count`"),
        ("evaluate --prior PRIOR --data here --out new", "not a prepared set"),
        ("evaluate --prior PRIOR --data DATA --split night --out new", "no split 'night'"),
        ("evaluate --prior PRIOR --data DATA --split test --masks half circle --out new", "`masks`"),
        ("evaluate --prior PRIOR --data DATA --split test --out here/note.txt", "note.txt is not a folder"),
        ("evaluate --prior PRIOR --data DATA --split test --out new --count 0", "`count`"),
    ],
)
def test_wrong_input_is_one_line(digits_run, prior_file, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "note.txt").write_text("a note")
    Image.new("L", (8, 8)).save("small.png")
    (tmp_path / "PLAIN").write_text("a note")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("no picture")
    (tmp_path / "twins").mkdir()
    for suffix in ("png", "jpg"):
        Image.new("L", (8, 8)).save(f"twins/a.{suffix}")
    (tmp_path / "CUT.safetensors").write_bytes(prior_file.read_bytes()[:5000])
    (tmp_path / "EMPTY").mkdir()
    shutil.copy(digits_run.run / "config.json", "EMPTY")
    shutil.copytree(digits_run.run, "TRUNCATED")
    largest = max((tmp_path / "TRUNCATED" / "checkpoints").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    places = {"DATA": digits_run.data, "RUN": digits_run.run, "PRIOR": prior_file}
    roots = (tmp_path, digits_run.data, digits_run.run)
    before = {path for root in roots for path in root.rglob("*")}
    words = command.replace("TINY", TINY).split()
    assert main(*(places.get(word, word) for word in words), "--quiet") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("dcgan-jax: ") and printed.err.count("\n") == 1 and printed.out == ""
    assert message in printed.err
    assert {path for root in roots for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    "command",
    [
        "",
        "paint",
        "train --data a",
        "train --data a --run b --image-size 31",
        "train --data a --run b --nope 3",
        "sample --prior a --out b --count many",
    ],
)
def test_unparsable_commands_are_one_line_that_names_the_help(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main(*command.split())
    error, name = capsys.readouterr().err, command.split()[:1] if command.split()[:1] != ["paint"] else []
    assert exit.value.code == 2 and "error: " in error
    assert error.endswith(f"; see {' '.join(['dcgan-jax', *name])} --help\n") and error.count("\n") == 1


@pytest.mark.parametrize(("error", "status"), [(DivergedError("loss is not finite"), 3), (KeyboardInterrupt(), 130)])
def test_divergence_and_ctrl_c_have_their_exit_status(monkeypatch, capsys, error, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(loop, "train", fail)
    assert main("train", "--data", "data", "--run", "run") == status
    assert capsys.readouterr().err.count("\n") == 1


def test_after_ctrl_c_the_program_ends_at_once(monkeypatch, capfd):
    """XLA crashes if the interpreter is taken down while it compiles."""
    ended = []

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(sys, "argv", ["dcgan-jax", "train", "--data", "data", "--run", "run"])
    with pytest.raises(SystemExit):
        run()
    assert ended == [130] and "interrupted" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main(*command, "--help")
    text = capsys.readouterr().out
    assert exit.value.code == 0 and "usage: dcgan-jax" in text
    assert all(name in text for name in ((*COMMANDS,) if not command else ("--quiet",)))


@pytest.mark.parametrize(
    ("command", "configs"),
    [
        ("train", (dj.ModelConfig, dj.TrainConfig)),
        ("inpaint", (dj.InpaintConfig,)),
        ("evaluate", (dj.InpaintConfig,)),
        ("train-context-encoder", (ContextEncoderConfig,)),
    ],
)
def test_every_field_is_an_option(capsys, command, configs):
    with pytest.raises(SystemExit):
        main(command, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for field in (field for config in configs for field in dataclasses.fields(config)):
        if field.name != "model":
            assert f"--{field.name.replace('_', '-')}" in text
            assert " ".join(field.metadata["help"].split()).replace("- ", "-")[:20] in text.replace("- ", "-")


def trained_with(monkeypatch, *options):
    seen = []
    monkeypatch.setattr(loop, "train", lambda recipe, config, *_, **__: seen.append(config))
    assert main("train", "--data", "data", "--run", "run", *options) == 0
    return seen[0]


def test_train_options_override_a_preset_field_by_field(monkeypatch):
    assert trained_with(monkeypatch) == dj.TrainConfig()
    he = dj.TrainConfig.preset("he2018", dataset="celeba")
    given = ("--preset", "he2018", "--dataset", "celeba")
    assert trained_with(monkeypatch, *given) == he != dj.TrainConfig.preset("he2018")
    found = trained_with(monkeypatch, *given, "--flip", "--beta1", "0.9", "--latent-dim", "7", "--num-steps", "3")
    model = dataclasses.replace(he.model, latent_dim=7)
    assert found == dataclasses.replace(he, flip=True, beta1=0.9, num_steps=3, model=model)
    assert found.model.latent == "normal" and found.batch_size == 128
    assert not trained_with(monkeypatch, "--preset", "yeh2017", "--no-flip").flip
    # An option that repeats the default still overrides the preset.
    assert trained_with(monkeypatch, *given, "--latent", "uniform", "--noise", "0").model.latent == "uniform"


def test_a_prior_with_an_encoder_is_searched_by_the_preset_best(monkeypatch):
    seen = []
    monkeypatch.setattr(
        inpaint_module, "inpaint_folder", lambda prior, job: seen.append(job.config) or Report(0, 0, 0, {}, {}, [])
    )
    given = ("inpaint", "--images", "a", "--masks", "b", "--out", "c")
    for options in ([], ["--num-steps", 7], ["--preset", "fast"], ["--start", "prior"]):
        assert main(*given, *options) == 0
    best = dj.InpaintConfig.preset("best")
    assert seen == [
        best,
        dataclasses.replace(best, num_steps=7),
        dj.InpaintConfig.preset("fast"),
        dj.InpaintConfig(start="prior"),
    ]


def test_search_options_override_a_preset_field_by_field(monkeypatch, prior_file):
    seen = []

    def record(prior, job):
        seen.append((job.config, job))
        return Report(0, 0, 0, {}, {}, [])

    monkeypatch.setattr(inpaint_module, "inpaint_folder", record)
    given = ("inpaint", "--prior", prior_file, "--images", "a", "--masks", "b", "--out", "c")
    assert main(*given) == 0 and main(*given, "--preset", "he2018") == 0
    given = (*given, "--preset", "yeh2017", "--seed", 4, "--count", 9)
    assert main(*given, "--keep-best", "--latent-bound", 0.5) == 0
    yeh = dj.InpaintConfig.preset("yeh2017")
    assert [config for config, _ in seen] == [
        dj.InpaintConfig(),
        dj.InpaintConfig.preset("he2018"),
        dataclasses.replace(yeh, keep_best=True, latent_bound=0.5),
    ]
    expected = {"crop": None, "elsewhere": None, "invert_masks": False, "score": False, "gif": False, "label": None}
    expected |= {"split": None, "count": 9, "seed": 4, "batch_size": 64, "progress": True}
    assert {name: getattr(seen[2][1], name) for name in expected} == expected


@pytest.mark.parametrize("writable", [True, False])
def test_the_command_keeps_compiled_programs(tmp_path, writable):
    home = tmp_path if writable else tmp_path / "file"
    (tmp_path / "file").write_text("no folder can be made here")
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "TF_CPP_MIN_LOG_LEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dcgan_jax", "sample", "--prior", "digits-64", "--count", "1"]
    for name in "ab" if writable else "a":
        process = subprocess.run(
            [*command, "--out", str(tmp_path / f"{name}.png")], env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        assert "dcgan-jax:" not in process.stderr and "cpu_aot_loader" not in process.stderr
    assert not writable or (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert bool(list(tmp_path.glob("dcgan_jax/*/*-cache"))) == writable
