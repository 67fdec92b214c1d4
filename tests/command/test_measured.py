"""The command `inpaint --measure`: its forms, its files, noise, scores, resuming, wrong input."""

import dataclasses
import zlib

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import CONFIG, NAMES, PIXELS, PRIOR, SIZE, files, lines, read, run
from PIL import Image

import dcgan_jax as dj
from dcgan_jax import measurements
from dcgan_jax.command.measured import Measurement
from dcgan_jax.command.plan import Inputs
from dcgan_jax.data import prepare
from dcgan_jax.errors import UserError

images = folders.images
SHAPE = (SIZE, SIZE, 3)
LOW = measurements.LowResolution(4)
ORIGINALS = np.stack([PIXELS[name] for name in NAMES]) / np.float32(127.5) - 1


def keys(seed, names=NAMES):
    return jnp.stack([jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())) for name in names])


def levels(x):
    return np.floor(np.clip(np.asarray(x), -1, 1) * 127.5 + 128).astype(int)


def saved(out, pattern="{}.png"):
    return np.stack([read(out / pattern.format(name)) for name in NAMES]).astype(int)


def write(folder, pictures):
    folder.mkdir()
    for name, pixels in zip(NAMES, pictures, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("text", "measure", "noise", "shape"),
    [
        ("low-resolution:4", LOW, 0, (3, 3, 3)),
        ("grey", measurements.Grey(), 0, (12, 12, 1)),
        ("noise:25", measurements.Identity(), 25 / 127.5, SHAPE),
        ("noise:2.5", measurements.Identity(), 2.5 / 127.5, SHAPE),
        ("grid:5", measurements.Grid(5), 0, (3, 3, 3)),
    ],
)
def test_forms(text, measure, noise, shape):
    found = Measurement.parse(text, SHAPE)
    assert (found.measure, found.values_shape) == (measure, shape) and found.noise == pytest.approx(noise)


@pytest.mark.parametrize(
    "text",
    ["", "low", "low-resolution", "low-resolution:", "low-resolution:0", "low-resolution:2.5", "low-resolution:-4",
     "grey:3", "noise", "noise:0", "noise:x", "noise:9999", "grid", "grid:0", "grid:1.5", "Grey", "grid:4 ",
     "grid:\u0664"],
)  # fmt: skip
def test_other_forms_are_named(text):
    with pytest.raises(UserError, match=r"`measure` is .*it takes low-resolution:FACTOR, grey, noise:"):
        Measurement.parse(text, SHAPE)


def test_a_measurement_that_does_not_fit_the_prior_is_named():
    with pytest.raises(UserError, match=r"`measure` is 'low-resolution:5': `factor` is 5, which .* 12 by 12"):
        Measurement.parse("low-resolution:5", SHAPE)
    with pytest.raises(UserError, match=r"`measure` is 'grey': .*3 channels; this one has 1"):
        Measurement.parse("grey", (12, 12, 1))


@pytest.mark.parametrize("text", ["low-resolution:4", "grey", "grid:5"])
def test_images_are_measured_and_restored(images, tmp_path, text):
    out = tmp_path / "out"
    report = run(images, None, out, measure=text, seed=7, batch_size=3)
    assert (report.completed, report.not_finite, report.skipped, report.notes) == (3, 0, {}, {})
    assert files(out) == sorted(
        ["results.jsonl", *(f"{name}.png" for name in NAMES), *(f"strips/{name}.png" for name in NAMES)]
    )
    measure = Measurement.parse(text, SHAPE).measure
    measured = jax.vmap(measure)(jnp.asarray(ORIGINALS))
    expected = dj.restore(PRIOR, measured, measure, keys(7), CONFIG)
    assert np.abs(saved(out) - levels(expected.images)).max() <= 1  # values measured one by one may round differently
    assert np.abs(saved(out) - levels(expected.images)).mean() < 0.01
    strips = saved(out, "strips/{}.png")
    assert strips.shape == (3, SIZE, 3 * SIZE + 4, 3)  # measured, generated, restored
    place = np.arange(SIZE) * measured.shape[1] // SIZE
    assert np.abs(strips[:, :, :SIZE] - levels(measured)[:, place][:, :, place]).max() <= 1
    assert np.abs(strips[:, :, SIZE + 2 : 2 * SIZE + 2] - levels(expected.completions)).max() <= 1
    assert (strips[:, :, -SIZE:] == saved(out)).all()
    for line, context in zip(lines(out), expected.context_loss, strict=True):
        assert set(line) == {"name", "region", "context_loss", "prior_loss", "num_steps", "status", "digest"}
        assert line["context_loss"] == pytest.approx(float(context), abs=1e-3)


def test_images_of_the_measured_size_are_the_values(tmp_path):
    small = [pixels[::5, ::5] for pixels in PIXELS.values()]
    out = tmp_path / "out"
    run(write(tmp_path / "images", small), None, out, measure="grid:5", batch_size=3)
    values = jnp.asarray(np.stack(small) / np.float32(127.5) - 1)
    expected = dj.restore(PRIOR, values, measurements.Grid(5), keys(0), CONFIG)
    np.testing.assert_array_equal(saved(out), levels(expected.images))
    assert np.abs(saved(out)[:, ::5, ::5] - np.stack(small)).max() <= 1  # the known pixels are kept
    run(tmp_path / "images", None, tmp_path / "other", measure="low-resolution:4", batch_size=3)
    assert (saved(tmp_path / "other") != saved(out)).any()  # the same values mean another image


def test_a_score_compares_with_the_originals_and_adds_noise(images, tmp_path):
    out = tmp_path / "out"
    run(images, None, out, measure="noise:25", score=True, batch_size=3)
    strips = saved(out, "strips/{}.png")
    assert strips.shape == (3, SIZE, 4 * SIZE + 6, 3) and (strips[:, :, :SIZE] == saved(images)).all()
    noise = (strips[:, :, SIZE + 2 : 2 * SIZE + 2] - saved(images))[np.abs(saved(images) - 128) < 60]
    assert abs(noise.std() - 25) < 2.5 and abs(noise.mean()) < 3
    assert noise[:100].tolist() != noise[-100:].tolist()
    for line, result, original in zip(lines(out), saved(out), saved(images), strict=True):
        assert line["psnr"] == pytest.approx(10 * np.log10(255**2 / ((result - original) ** 2).mean()), abs=1e-3)
        a, b = (jnp.asarray(x, jnp.uint8)[None] for x in (result, original))
        assert line["ssim"] == pytest.approx(float(dj.ssim(a, b)[0]), abs=1e-5)
    alone = tmp_path / "alone"
    run(images / "c.png", None, alone, measure="noise:25", score=True)
    assert (read(alone / "strips" / "c.png")[:, : 2 * SIZE + 2] == strips[2][:, : 2 * SIZE + 2]).all()
    run(images, None, tmp_path / "given", measure="noise:25", batch_size=3)  # the images hold the noise
    assert (saved(tmp_path / "given", "strips/{}.png")[:, :, :SIZE] == saved(images)).all()


def test_photographs_are_cropped_and_scaled(tmp_path):
    large = [np.pad(pixels.repeat(2, 0).repeat(2, 1), ((0, 4), (6, 2), (0, 0))) for pixels in PIXELS.values()]
    folder, out = write(tmp_path / "images", large), tmp_path / "out"
    run(folder, None, out, measure="low-resolution:4", crop="6,0,24,24", score=True)
    assert (saved(out, "strips/{}.png")[:, :, :SIZE] == np.stack(list(PIXELS.values()))).all()
    assert [line["region"] for line in lines(out)] == [[6, 0, 24, 24]] * 3


def test_a_prepared_set_is_restored(images, tmp_path):
    prepare(images, tmp_path / "set", image_size=32, crop="stretch", validation_fraction=0.4)
    prior = folders.tanh_prior((32, 32, 3))
    assert run(tmp_path / "set", None, tmp_path / "out", prior, measure="low-resolution:8", count=2).completed == 2


def test_several_restorations_and_their_mean(images, tmp_path):
    out, config = tmp_path / "out", dataclasses.replace(CONFIG, restarts=3, num_completions=2)
    run(images, None, out, config=config, measure="grid:5", batch_size=3)
    measured = jnp.asarray(ORIGINALS[:, ::5, ::5])
    expected = dj.restore(PRIOR, measured, measurements.Grid(5), keys(0), config)
    for i in (0, 1):
        choices = saved(out, f"choices/{{}}-{i + 1}.png")
        np.testing.assert_array_equal(choices, levels(expected.alternatives.images[:, i]))
    np.testing.assert_array_equal(saved(out, "mean/{}.png"), levels(expected.mean))


def test_colour_profiles_are_kept(images, tmp_path):
    Image.fromarray(PIXELS["c"]).save(images / "c.png", icc_profile=b"a profile")
    config = dataclasses.replace(CONFIG, restarts=2, num_completions=2)
    run(images, None, tmp_path / "out", config=config, measure="grid:5")
    for name, expected in (("b.1", None), ("c", b"a profile")):
        for pattern in ("{}.png", "choices/{}-2.png", "mean/{}.png"):
            with Image.open(tmp_path / "out" / pattern.format(name)) as image:
                assert image.info.get("icc_profile") == expected, pattern


def test_it_resumes(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(images, None, out, measure="grid:5")
    before = saved(out)
    (out / "b.1.png").unlink()
    measured = []
    monkeypatch.setattr(Inputs, "values", lambda *args, own=Inputs.values: measured.append(args[1].name) or own(*args))
    report = run(images, None, out, measure="grid:5")
    assert (report.completed, report.before) == (1, 2) and (saved(out) == before).all()
    assert set(measured) == {"b.1"} and len(measured) == 2  # once for the search and once for the strip
    assert run(images, None, out, measure="grid:4").completed == 3  # another measurement


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "grid:5", "gif": True}, "`gif` does nothing for `measure` grid:5"),
        ({"measure": "grid:5", "elsewhere": "smooth"}, "`elsewhere` does nothing"),
        ({"measure": "grid:5", "invert_masks": True}, "`invert_masks` does nothing"),
        ({"measure": "gray"}, "`measure` is 'gray'"),
    ],
)
def test_wrong_options_are_named(images, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(images, None, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_are_skipped_and_named(images, tmp_path):
    Image.fromarray(PIXELS["a"][:4, :4]).save(images / "a.png")
    report = run(images, None, tmp_path / "out", measure="grid:5")
    assert report.completed == 2
    assert report.skipped["a"] == (
        "image 'a': it is 4x4, but `measure` grid:5 takes images of 12x12 or more (height, width), which are measured "
        "first, or measured ones of 3x3"
    )
    for name in NAMES:
        Image.fromarray(PIXELS[name][::5, ::5]).save(images / f"{name}.png")
    with pytest.raises(UserError, match=r"it is 3x3, but .* 12x12 or more .* measured first \(and 2 more images\)"):
        run(images, None, tmp_path / "scored", measure="grid:5", score=True)
