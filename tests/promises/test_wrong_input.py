"""Wrong input through Python: a ValueError of one line names the error, and nothing is written.

Wrong input through the command is tested in `tests/command/test_main.py`.
"""

import shutil

import jax
import numpy as np
import pytest
import saved
from PIL import Image
from tiny import tanh_prior

import dcgan_jax as dj
from dcgan_jax.command import export
from dcgan_jax.command import options as options_module
from dcgan_jax.command.inpaint import Job, inpaint_folder
from dcgan_jax.data import open_prepared, prepare, verify
from dcgan_jax.evaluation import evaluate
from dcgan_jax.evaluation.methods import ImageSet
from dcgan_jax.training import gan, loop, plot

PRIOR = tanh_prior((12, 12, 3))
KEY = jax.random.key(0)
IMAGES, HOLE = np.zeros((2, 12, 12, 3), np.float32), np.zeros((12, 12), bool)
HOLE[3:6, 4:9] = True
NAN = np.where(np.arange(12)[:, None, None] == 0, np.float32(np.nan), IMAGES)
SEARCH = dj.InpaintConfig(num_steps=1)


@pytest.fixture
def place(tmp_path, digits_run, monkeypatch):
    """A folder with one example of everything that can be wrong."""
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "text", "good", "masks", "twins", "no_checkpoint"):
        (tmp_path / folder).mkdir()
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "text" / "a.jpg").write_text("no picture")
    for name in ("good/a.png", "twins/a.png", "twins/a.jpg"):
        Image.new("RGB", (12, 12)).save(tmp_path / name)
    for name in ("masks/b.png", "narrow.png"):
        Image.new("L", (6, 12)).save(tmp_path / name)
    Image.new("LA", (12, 12)).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((12, 12), np.float32)).save(tmp_path / "deep.tiff")
    shutil.copy(digits_run.run / "config.json", tmp_path / "no_checkpoint")
    shutil.copytree(digits_run.run, tmp_path / "truncated")
    for path in (tmp_path / "truncated" / "checkpoints").iterdir():
        file = saved.largest(path)
        file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    shutil.copytree(digits_run.data, tmp_path / "damaged")
    (tmp_path / "damaged" / "images.npy").write_bytes((digits_run.data / "images.npy").read_bytes()[:-1])
    return tmp_path


def train(place, run, data, split="train", **changes):
    model = dj.ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=8)
    config = dj.TrainConfig(**({"model": model, "batch_size": 8, "num_steps": 4, "measure_every": 0} | changes))
    loop.train(gan.RECIPE, config, data, place / "new" if run is None else run, split=split, progress=False)


def complete(place, images, mask, out="out", **options):
    inpaint_folder(PRIOR, Job(place / images, str(mask), place / out, SEARCH, progress=False, **options))


def digits_under_another_prior(run):
    prepared = open_prepared(run.data)
    return ImageSet("digits", "digits", prepared.images, prepared.images, "digits", PRIOR)


def export_damaged(place):
    export.export(place / "truncated", place / "new.safetensors")


CASES = {
    # Sources and prepared sets.
    "missing source": (lambda p, r: prepare(p / "nowhere", p / "new"), "nowhere does not exist"),
    "empty source": (lambda p, r: prepare(p / "empty", p / "new"), "empty contains no images"),
    "no readable image": (lambda p, r: prepare(p / "text", p / "new"), "more than 1 % of the images cannot be read"),
    "unknown kind": (lambda p, r: prepare(p / "good", p / "new", kind="birds"), "`kind` is 'birds'"),
    "no partition": (lambda p, r: prepare(p / "good", p / "new", kind="celeba"), r"list_eval_partition\.txt"),
    "out not empty": (lambda p, r: prepare("digits", p / "good"), "good exists already"),
    "out under a file": (lambda p, r: prepare("digits", p / "note.txt" / "new"), r"note\.txt"),
    "unknown label": (
        lambda p, r: prepare("digits", p / "new", where="label=ten"),
        "no label 'ten'; it has 0, 1",
    ),
    "no condition": (lambda p, r: prepare("digits", p / "new", where="seven"), "'seven' is not a condition"),
    "no prepared set": (lambda p, r: open_prepared(p / "good"), "good is not a prepared set"),
    "truncated set": (lambda p, r: open_prepared(p / "damaged"), "truncated or damaged"),
    "unreachable bucket": (lambda p, r: verify("nosuch://bucket/set"), "nosuch://bucket/set cannot be opened"),
    # Training.
    "unknown preset": (lambda p, r: dj.TrainConfig.preset("he2019"), "unknown preset 'he2019' of TrainConfig"),
    "negative rate": (lambda p, r: dj.TrainConfig(learning_rate=-1), "`learning_rate` of TrainConfig is -1"),
    "steps as text": (lambda p, r: dj.TrainConfig(num_steps="10"), "`num_steps` of TrainConfig is '10'"),
    "unknown size": (
        lambda p, r: dj.ModelConfig(image_size=100),
        "`image_size` of ModelConfig is 100; it takes one of 32",
    ),
    "small set": (lambda p, r: train(p, None, r.data, batch_size=2000), "too small for a batch of 2000"),
    "other images": (lambda p, r: train(p, None, r.data, model=dj.ModelConfig()), "train with image_size 32"),
    "other run": (lambda p, r: train(p, r.run, r.data, seed=9), r"differs in .*seed \(0 there, 9 here\)"),
    "not a run": (lambda p, r: train(p, p / "good", r.data), "good is not empty and not a run's folder"),
    "no such split": (lambda p, r: train(p, None, r.data, split="night"), "no split 'night'; it has train, test"),
    "window outside": (
        lambda p, r: loop.train(gan.RECIPE, dj.TrainConfig(), r.data, p / "new", profile_steps=range(5, 10**6)),
        "`profile_steps` is 5:1000000|image_size 32",
    ),
    "malformed window": (lambda p, r: options_module.parse_window("30:20"), "`profile_steps` is '30:20'"),
    "nothing to plot": (lambda p, r: plot.plot(p / "good"), r"it has no metrics\.jsonl"),
    # Priors.
    "unknown prior": (lambda p, r: dj.load_prior("faces-65"), "no prior 'faces-65'.* one of cars-64"),
    "no checkpoint": (lambda p, r: dj.load_prior(p / "no_checkpoint"), "holds no checkpoint yet"),
    "truncated checkpoint": (lambda p, r: dj.load_prior(p / "truncated"), "damaged .*: restore one"),
    "truncated file": (lambda p, r: dj.load_prior(p / "cut.safetensors"), "is not a prior"),
    "export of damage": (lambda p, r: export_damaged(p), r"checkpoints/4 is damaged"),
    "saved decoder": (lambda p, r: dj.save_prior(PRIOR, p / "a.safetensors"), "your own decoder"),
    "other suffix": (lambda p, r: dj.save_prior(dj.load_prior(r.run), p / "a.npz"), r"ends in \.safetensors"),
    # Arrays.
    "other size": (
        lambda p, r: dj.inpaint(PRIOR, IMAGES[:, :8], HOLE, KEY, SEARCH),
        r"`images` has shape \[2, 8, 12, 3\]",
    ),
    "a list": (lambda p, r: dj.inpaint(PRIOR, IMAGES.tolist(), HOLE, KEY, SEARCH), "`images` is a list"),
    "float hole": (lambda p, r: dj.inpaint(PRIOR, IMAGES, HOLE * 1.0, KEY, SEARCH), "`hole` is float64"),
    "NaN known": (
        lambda p, r: dj.inpaint(PRIOR, NAN, HOLE, KEY, SEARCH),
        "image 0 of `images` has known pixels that are not finite",
    ),
    "no key": (lambda p, r: dj.inpaint(PRIOR, IMAGES, HOLE, 3, SEARCH), "`key` is int32"),
    "unknown search": (lambda p, r: dj.InpaintConfig.preset("yeh"), "unknown preset 'yeh' of InpaintConfig"),
    "even window": (lambda p, r: dj.InpaintConfig(window=4), "`window` of InpaintConfig is 4; it takes an odd number"),
    "other set": (
        lambda p, r: evaluate.evaluate([digits_under_another_prior(r)], {"search": None}, p / "new"),
        "but the prior is for 12x12x3",
    ),
    # Files.
    "missing images": (lambda p, r: complete(p, "nowhere", "center"), "nowhere does not exist"),
    "empty images": (lambda p, r: complete(p, "empty", "center"), "empty holds no image"),
    "no image readable": (lambda p, r: complete(p, "text", "center"), r"a\.jpg cannot be read as an image"),
    "floats": (lambda p, r: complete(p, "deep.tiff", "center"), r"deep\.tiff cannot be read .* 8 or 16 bits"),
    "unknown mask": (lambda p, r: complete(p, "good", "circle"), "`masks` is 'circle'"),
    "narrow mask": (
        lambda p, r: complete(p, "good", p / "narrow.png"),
        "the mask of 'a' is 12x6, but the image is 12x12",
    ),
    "other masks": (lambda p, r: complete(p, "good", p / "masks"), "1 images, such as 'a', have no mask in"),
    "opaque as alpha": (lambda p, r: complete(p, "good", "alpha"), "image 'a' has no transparent part"),
    "twins": (lambda p, r: complete(p, "twins", "center"), "two images named 'a'"),
    "overwriting": (lambda p, r: complete(p, "good", "center", "good"), "would overwrite"),
    "out is a file": (lambda p, r: complete(p, "good", "center", "note.txt"), r"note\.txt cannot be made"),
    "set of another size": (
        lambda p, r: complete(p, r.data, "center"),
        "holds images of 32x32x1, but the prior completes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_one_line(place, digits_run, name):
    call, message = CASES[name]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(ValueError, match=message) as error:
        call(place, digits_run)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}.items() <= before.items()
    assert {path for path in place.rglob("*")} == set(before)
