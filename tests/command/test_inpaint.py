"""The command `inpaint` on folders: results, masks, scores, wrong input, resuming."""

import dataclasses
import json
import os
import zlib

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import CONFIG, HOLE, KNOWN, NAMES, PIXELS, PRIOR, SIZE, files, lines, read, run
from PIL import Image
from tiny import tanh_prior

import dcgan_jax as dj
from dcgan_jax.command import inpaint as inpaint_module
from dcgan_jax.command import pairing
from dcgan_jax.command import plan as plan_module
from dcgan_jax.data import prepare
from dcgan_jax.errors import UserError

images, mask = folders.images, folders.mask


def test_results_equal_inpaint(images, mask, tmp_path):
    out = tmp_path / "out"
    report = run(images, mask, out, seed=7)
    assert (report.completed, report.not_finite, report.skipped, report.notes) == (3, 0, {}, {})
    assert files(out) == sorted(
        ["results.jsonl", *(f"{name}.png" for name in NAMES), *(f"strips/{name}.png" for name in NAMES)]
    )
    # The key of an image comes from the seed and from its name.
    keys = jnp.stack([jax.random.fold_in(jax.random.key(7), zlib.crc32(name.encode())) for name in NAMES[:2]])
    expected = dj.inpaint(PRIOR, np.stack([PIXELS[name] for name in NAMES[:2]]), HOLE, keys, CONFIG)
    for name, pixels, completion in zip(NAMES, expected.images, expected.completions, strict=False):
        assert (read(out / f"{name}.png") == np.asarray(pixels)).all()
        strip = read(out / "strips" / f"{name}.png")
        assert strip.shape == (SIZE, 3 * SIZE + 4, 3)  # masked, completion, blended: the original is unknown
        assert (strip[:, :SIZE][KNOWN] == PIXELS[name][KNOWN]).all() and (strip[:, :SIZE][HOLE] == 255).all()
        levels = np.floor(np.asarray(completion) * 127.5 + 128)
        assert (strip[:, SIZE + 2 : 2 * SIZE + 2] == levels).all()
        assert (strip[:, -SIZE:] == np.asarray(pixels)).all()
    for line, name, context in zip(lines(out), NAMES, expected.context_loss, strict=False):
        assert set(line) == {"name", "missing", "region", "context_loss", "prior_loss", "num_steps", "status", "digest"}
        assert line["region"] == [0, 0, SIZE, SIZE]
        assert line["name"] == name and line["missing"] == 49
        assert line["num_steps"] == 3 and line["status"] == "ok" and line["prior_loss"] == 0
        assert line["context_loss"] == pytest.approx(float(context), abs=1e-5)
    assert [line["name"] for line in lines(out)] == list(NAMES)


def test_several_completions_and_their_mean_are_written(mask, tmp_path):
    (tmp_path / "images").mkdir()
    for name, pixels in PIXELS.items():  # twice the size of the prior's images
        Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)).save(tmp_path / "images" / f"{name}.png")
    hole = HOLE.repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(np.where(hole, 255, 0).astype(np.uint8)).save(mask)
    config, out = dataclasses.replace(CONFIG, restarts=3, num_completions=3), tmp_path / "out"
    options = {"config": config, "crop": "stretch"}
    run(tmp_path / "images", mask, out, **options)
    for name in NAMES:
        original = read(tmp_path / "images" / f"{name}.png")
        choices = np.stack([read(out / "choices" / f"{name}-{i}.png") for i in (1, 2, 3)])
        np.testing.assert_array_equal(choices[0], read(out / f"{name}.png"))
        assert (choices[:, ~hole] == original[~hole]).all() and len({choice.tobytes() for choice in choices}) == 3
        mean = read(out / "mean" / f"{name}.png")
        assert np.abs(mean - choices.mean(axis=0)).max() <= 0.5
    alone = dj.inpaint_photograph(
        PRIOR, original, hole, jax.random.fold_in(jax.random.key(0), zlib.crc32(b"c"))[None], config, crop="stretch"
    )
    assert np.abs(alone.alternatives.images.astype(int) - choices).max() <= 1  # another batch shape rounds differently
    assert np.abs(alone.mean.astype(int) - mean).max() <= 1
    (out / "choices" / "a-2.png").unlink()
    assert run(tmp_path / "images", mask, out, **options).completed == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_known_pixels_equal_the_decoded_input(mask, tmp_path, suffix):
    source = tmp_path / f"photo.{suffix}"
    Image.fromarray(PIXELS["a"]).save(source)
    run(source, mask, tmp_path / "out", batch_size=1)
    result, original = read(tmp_path / "out" / "photo.png"), read(source)
    assert (result[KNOWN] == original[KNOWN]).all()
    assert (result[HOLE] != original[HOLE]).any(axis=-1).mean() > 0.9  # the hole has new content


@pytest.mark.parametrize("level", [0, 255])
def test_hidden_pixels_have_no_influence(images, mask, tmp_path, level):
    run(images, mask, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    for name, pixels in PIXELS.items():
        Image.fromarray(np.where(HOLE[..., None], np.uint8(level), pixels)).save(other / f"{name}.png")
    run(other, mask, tmp_path / "again")
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_completions_under_drawn_masks_are_scored(images, tmp_path):
    out = tmp_path / "out"
    run(images, "random", out)
    holes = {}
    for line in lines(out):
        name = line["name"]
        strip, result = read(out / "strips" / f"{name}.png"), read(out / f"{name}.png")
        assert strip.shape == (SIZE, 4 * SIZE + 6, 3) and (strip[:, :SIZE] == PIXELS[name]).all()
        hole = holes[name] = (strip[:, SIZE + 2 : 2 * SIZE + 2] != PIXELS[name]).any(axis=-1)
        assert hole.sum() == line["missing"]
        assert (result[~hole] == PIXELS[name][~hole]).all()
        squares = (result.astype(float) - PIXELS[name]) ** 2
        for score, mean in (("psnr", squares.mean()), ("psnr_hole", squares[hole].mean())):
            assert line[score] == pytest.approx(10 * np.log10(255**2 / mean), abs=1e-3)
        a, b = (jnp.asarray(x)[None] for x in (result, PIXELS[name]))
        assert line["ssim"] == pytest.approx(float(dj.ssim(a, b)[0]), abs=1e-5)
        assert line["ssim_hole"] == pytest.approx(float(dj.ssim(a, b, where=hole[None])[0]), abs=1e-5)
    assert len({hole.tobytes() for hole in holes.values()}) == len(NAMES)  # each image has its own hole
    before = [(out / f"{name}.png").read_bytes() for name in NAMES]
    run(images, "random", tmp_path / "same")
    run(images, "random", tmp_path / "other", seed=1)
    assert [(tmp_path / "same" / f"{name}.png").read_bytes() for name in NAMES] == before
    assert all((tmp_path / "other" / f"{name}.png").read_bytes() != x for name, x in zip(NAMES, before, strict=True))


def test_a_result_does_not_depend_on_the_rest_of_the_folder(images, tmp_path):
    # Equal bits in batches of one shape, whatever the place in the batch and the other images.
    run(images, "random", tmp_path / "all")
    (images / "a.png").unlink()
    Image.fromarray(PIXELS["a"][::-1]).save(images / "z.png")
    run(images, "random", tmp_path / "rest")
    for name in NAMES[1:]:
        for path in (f"{name}.png", f"strips/{name}.png"):
            assert (tmp_path / "all" / path).read_bytes() == (tmp_path / "rest" / path).read_bytes()
    assert lines(tmp_path / "all")[1:] == lines(tmp_path / "rest")[:2]
    # In batches of one, each image has the result that it has alone.
    run(images, "random", tmp_path / "one_by_one", batch_size=1)
    run(images / "c.png", "random", tmp_path / "alone")
    assert (tmp_path / "one_by_one" / "c.png").read_bytes() == (tmp_path / "alone" / "c.png").read_bytes()


def test_a_prepared_set_is_completed_by_split(images, mask, tmp_path):
    for split, names in {"train": "a", "test": "bc"}.items():
        for name in names:
            path = tmp_path / "source" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS["b.1" if name == "b" else name]).save(path)
    prepare(tmp_path / "source", tmp_path / "prepared", image_size=SIZE, channels=3, progress=False)
    run(tmp_path / "prepared", mask, tmp_path / "all")
    assert len(lines(tmp_path / "all")) == 3
    run(tmp_path / "prepared", mask, tmp_path / "test", split="test")
    names = [line["name"] for line in lines(tmp_path / "test")]
    assert [name[-1] for name in names] == ["b", "c"]
    for name in names:
        result = read(tmp_path / "test" / f"{name}.png")
        assert (result[KNOWN] == PIXELS["b.1" if name[-1] == "b" else "c"][KNOWN]).all()
        assert (result == read(tmp_path / "all" / f"{name}.png")).all()
    run(tmp_path / "prepared", mask, tmp_path / "first", split="test", count=1, batch_size=2)
    assert [line["name"] for line in lines(tmp_path / "first")] == names[:1]


def test_images_are_upright_and_on_white(mask, tmp_path):
    # The same decoding as in `prepare`: what a viewer shows.
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(PIXELS["a"][::-1, ::-1]).save(tmp_path / "images" / "turned.png", exif=exif)
    clear = np.dstack([PIXELS["a"], np.full((SIZE, SIZE), 0, np.uint8)])
    Image.fromarray(clear).save(tmp_path / "images" / "clear.png")
    run(tmp_path / "images", mask, tmp_path / "out")
    assert (read(tmp_path / "out" / "turned.png")[KNOWN] == PIXELS["a"][KNOWN]).all()
    assert (read(tmp_path / "out" / "clear.png")[KNOWN] == 255).all()


def test_searches_that_fail_are_counted(images, mask, tmp_path):
    broken = dataclasses.replace(PRIOR, params=PRIOR.params * np.nan)
    assert run(images, mask, tmp_path / "out", prior=broken).not_finite == 3
    for line in lines(tmp_path / "out"):  # JSON has no NaN
        assert line["status"] == "not finite" and line["context_loss"] is None
        result = read(tmp_path / "out" / f"{line['name']}.png")
        assert (result[HOLE] == 128).all() and (result[KNOWN] == PIXELS[line["name"]][KNOWN]).all()


def damage(path, pixels):
    # Large enough that the header stays whole and only pixels are lost.
    Image.fromarray(np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda f: Image.fromarray(PIXELS["a"]).save(f / "c.jpg"), {}, "two images named 'c'"),
        (
            lambda f: [(f / f"{n}.png").write_bytes(b"no") for n in NAMES],
            {},
            r"a\.png cannot be read.*\(and 2 more images",
        ),
        (lambda f: None, {"crop": "round"}, "`crop` is 'round'"),
        (lambda f: [file.unlink() for file in f.glob("*.png")], {}, "holds no image"),
        (lambda f: None, {"images": "nowhere"}, "nowhere does not exist"),
        (lambda f: None, {"images": "images/notes.txt"}, "notes.txt cannot be read"),
        (lambda f: None, {"mask": "circle"}, "`masks` is 'circle'.* center, half, random, pattern"),
        (lambda f: None, {"mask": "images/notes.txt"}, "notes.txt cannot be read"),
        (lambda f: None, {"split": "test"}, "`split` is 'test', but"),
        (lambda f: None, {"out": "images"}, "`out`"),
        (lambda f: None, {"out": "images/a.png"}, "cannot be made"),
    ],
)
def test_wrong_input_is_named_and_nothing_written(images, tmp_path, monkeypatch, spoil, options, message):
    monkeypatch.chdir(tmp_path)
    spoil(images)
    Image.fromarray(HOLE).save("mask.png")
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    options = {"images": images, "mask": "center", "out": "out"} | options
    arguments = [type(images)(options.pop("images")), options.pop("mask"), type(images)(options.pop("out"))]
    with pytest.raises(UserError, match=message) as error:
        run(*arguments, **options)
    assert "\n" not in str(error.value)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_complete_images_are_scored_under_a_mask_file(images, mask, tmp_path):
    run(images, mask, tmp_path / "out", score=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    for line in lines:
        error = read(tmp_path / "out" / f"{line['name']}.png").astype(float) - PIXELS[line["name"]]
        assert line["psnr_hole"] == pytest.approx(10 * np.log10(255**2 / (error[HOLE] ** 2).mean()), abs=1e-3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"a text"),
        lambda path: damage(path, PIXELS["a"]),
        lambda path: Image.fromarray(np.zeros((12, 12), np.float32)).save(path, format="TIFF"),
    ],
)
def test_an_unreadable_image_is_skipped_and_named(images, mask, tmp_path, spoil):
    run(images, mask, tmp_path / "before")
    spoil(images / "b.1.png")
    report = run(images, mask, tmp_path / "out")
    assert (report.completed, report.not_finite, list(report.skipped)) == (2, 0, ["b.1"])
    assert "b.1.png cannot be read as an image: " in report.skipped["b.1"]
    first, *rest = lines(tmp_path / "out")
    assert first == {"name": "b.1", "status": "skipped", "note": report.skipped["b.1"]}
    assert [line["name"] for line in rest] == ["a", "c"]
    assert files(tmp_path / "out") == ["a.png", "c.png", "results.jsonl", "strips/a.png", "strips/c.png"]
    for name in ("a.png", "c.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_photographs_of_any_size_are_completed(tmp_path):
    sizes = {"wide": (40, 21), "high": (17, 30), "small": (5, 5), "own": (SIZE, SIZE)}
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    photos, holes = {}, {}
    for name, size in sizes.items():
        photos[name] = np.asarray(Image.fromarray(PIXELS["a"]).resize(size))
        holes[name] = np.zeros(size[::-1], bool)
        holes[name][2:5, 1:4] = True
        Image.fromarray(photos[name]).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(holes[name]).save(tmp_path / "masks" / f"{name}.png")
    assert run(tmp_path / "images", tmp_path / "masks", tmp_path / "out").completed == 4
    regions = {line["name"]: line["region"] for line in lines(tmp_path / "out")}
    assert regions == {"wide": [1, 0, 21, 21], "high": [0, 2, 17, 17], "small": [0, 0, 5, 5], "own": [0, 0, 12, 12]}
    for name, photo in photos.items():
        result, hole = read(tmp_path / "out" / f"{name}.png"), holes[name]
        assert (result[~hole] == photo[~hole]).all() and (result[hole] != photo[hole]).any()
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(name.encode()))
        alone = dj.inpaint_photograph(PRIOR, photo, hole, key[None], CONFIG)
        assert abs(result.astype(int) - alone.images).max() <= 1  # batches of another shape round differently
        strip = read(tmp_path / "out" / "strips" / f"{name}.png")
        left, top, width, height = regions[name]
        assert (strip[:, -width:] == result[top : top + height, left : left + width]).all()
    # Masks are drawn at the prior's size and enlarged; `center` covers a quarter of the region.
    run(tmp_path / "images", "center", tmp_path / "drawn", crop="stretch")
    for line in lines(tmp_path / "drawn"):
        hole = (read(tmp_path / "drawn" / f"{line['name']}.png") != photos[line["name"]]).any(axis=-1)
        width, height = sizes[line["name"]]
        assert line["missing"] == pytest.approx(width * height / 4, rel=0.5) and "psnr_hole" in line
        assert not hole[: height // 5].any() and not hole[:, : width // 5].any()


def test_unusual_images_get_a_note(images, tmp_path):
    (tmp_path / "masks").mkdir()
    for name, hole in {"a": HOLE, "b.1": np.zeros_like(HOLE), "c": np.ones_like(HOLE)}.items():
        Image.fromarray(hole).save(tmp_path / "masks" / f"{name}.png")
    Image.fromarray(np.dstack([PIXELS["a"], np.full((SIZE, SIZE), 9, np.uint8)])).save(images / "a.png")
    report = run(images, tmp_path / "masks", tmp_path / "out")
    assert report.notes == {
        "a": "transparent parts became white",
        "b.1": "no pixel is missing, so the image is unchanged",
        "c": "no pixel is known at the prior's size, so the completion is a free sample",
    }
    for line in lines(tmp_path / "out"):
        assert line["note"] == report.notes[line["name"]]
    assert [line["status"] for line in lines(tmp_path / "out")] == ["ok", "nothing missing", "nothing known"]
    assert (read(tmp_path / "out" / "b.1.png") == PIXELS["b.1"]).all()


def test_colours_made_grey_are_noted(images, mask, tmp_path):
    report = run(images / "a.png", mask, tmp_path / "out", prior=tanh_prior((SIZE, SIZE, 1)))
    assert report.notes == {"a": "colours became grey, because the prior makes grey images"}


def test_a_gif_shows_the_trace(images, mask, tmp_path):
    run(images / "a.png", mask, tmp_path / "out", gif=True, batch_size=1)
    (line,) = lines(tmp_path / "out")
    assert line["trace"]["num_steps"] == [0, 1, 2, 3]
    assert min(line["trace"]["context_loss"]) == pytest.approx(line["context_loss"], rel=1e-4)
    with Image.open(tmp_path / "out" / "gifs" / "a.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (2 * 22 * SIZE, 22 * SIZE)
        gif.seek(3)
        last = np.asarray(gif.convert("RGB"))[11::22, 22 * SIZE + 11 :: 22].astype(int)
    # The right half is the blend; its known pixels are exact up to the GIF's 256 colours.
    assert abs(last - PIXELS["a"])[KNOWN].mean() < 6
    assert "trace" not in lines_of(images / "a.png", mask, tmp_path / "plain")


def lines_of(image, mask, out):
    run(image, mask, out, batch_size=1)
    (line,) = lines(out)
    return line


@pytest.mark.parametrize(("folder", "out"), [("strips", "masks"), ("gifs", "masks")])
def test_no_mask_is_overwritten(images, tmp_path, folder, out):
    (tmp_path / "masks" / folder).mkdir(parents=True)
    suffix = {"strips": "png", "gifs": "gif"}[folder]
    for name in NAMES:
        Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).save(tmp_path / "masks" / folder / f"{name}.{suffix}")
    before = {path: path.read_bytes() for path in (tmp_path / "masks").rglob("*.*")}
    with pytest.raises(UserError, match="would overwrite"):
        run(images, tmp_path / "masks" / folder, tmp_path / out)
    assert {path: path.read_bytes() for path in (tmp_path / "masks").rglob("*.*")} == before


def test_names_that_results_would_share_are_refused(images, mask, tmp_path):
    (images / "strips").mkdir()
    Image.fromarray(PIXELS["a"]).save(images / "strips" / "a.png")
    with pytest.raises(UserError, match="rename it"):
        run(images, mask, tmp_path / "out")


def test_names_with_stray_bytes_are_completed(mask, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "images").mkdir()
    Image.fromarray(PIXELS["a"]).save(tmp_path / "images" / f"{name}.png")
    assert run(tmp_path / "images", mask, tmp_path / "out").completed == 1
    assert (tmp_path / "out" / f"{name}.png").is_file()


def test_colour_profiles_are_kept_and_opaque_alpha_is_ignored(mask, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(PIXELS["a"]).save(tmp_path / "images" / "profile.png", icc_profile=b"a profile")
    opaque = np.dstack([PIXELS["a"], np.full((SIZE, SIZE), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "images" / "opaque.png")
    Image.fromarray(PIXELS["a"]).convert("CMYK").save(tmp_path / "images" / "printed.jpg")
    report = run(tmp_path / "images", mask, tmp_path / "out")
    assert report.notes == {"printed": "CMYK was converted to RGB"}
    found = {}
    for name in ("profile", "opaque", "printed"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            found[name] = image.info.get("icc_profile")
    assert found == {"profile": b"a profile", "opaque": None, "printed": None}
    assert (read(tmp_path / "out" / "opaque.png")[KNOWN] == PIXELS["a"][KNOWN]).all()


def test_each_image_is_decoded_once(images, mask, tmp_path, monkeypatch):
    """The images are kept if memory allows. If not, the results are the same."""
    decoded, read_image = [], pairing.read_image
    monkeypatch.setattr(
        pairing, "read_image", lambda file, channels: decoded.append(file) or read_image(file, channels)
    )
    run(images, mask, tmp_path / "out")
    assert sorted(decoded) == sorted(images.glob("*.png"))
    monkeypatch.setattr(plan_module, "KEPT_BYTES", 0)
    run(images, mask, tmp_path / "again")
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


# ------------------------------------------------------------------------------------------ resuming


def test_an_interrupted_call_resumes(images, mask, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(images, mask, whole)
    written = inpaint_module.write_result

    def write(prior, plan, task, *rest):
        if task.name == "b.1":
            raise KeyboardInterrupt
        return written(prior, plan, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(inpaint_module, "write_result", write)
        with pytest.raises(KeyboardInterrupt):
            run(images, mask, out)
    # What a kill leaves: a half-written line, an image without its line, a half-written file.
    with (out / "results.jsonl").open("a") as log:
        log.write('{"name": "b.1", "dig')
    (out / "c.png").write_bytes(b"half")
    (out / "strips" / ".c.png.123.partial").write_bytes(b"half")
    times = {name: (out / name).stat().st_mtime_ns for name in ("a.png", "strips/a.png")}
    report = run(images, mask, out)
    assert (report.completed, report.before) == (2, 1)
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    assert files(out) == files(whole) and sorted(map(str, lines(out))) == sorted(map(str, lines(whole)))
    for name in files(whole)[:-1]:
        assert name == "results.jsonl" or (out / name).read_bytes() == (whole / name).read_bytes()
    report = run(images, mask, out)
    assert (report.completed, report.before) == (0, 3)


@pytest.mark.parametrize("change", ["image", "mask", "seed", "search", "prior", "result", "strip"])
def test_changed_images_are_completed_again(images, mask, tmp_path, change):
    out = tmp_path / "out"
    run(images, mask, out)
    expected, options = (3, 0), {}
    if change == "image":
        Image.fromarray(255 - PIXELS["a"]).save(images / "a.png")
        expected = 1, 2
    elif change == "mask":
        Image.fromarray(np.where(KNOWN, 255, 0).astype(np.uint8)).save(mask)
    elif change == "seed":
        options["seed"] = 1
    elif change == "search":
        options["config"] = dataclasses.replace(CONFIG, num_steps=2)
    elif change == "prior":
        options["prior"] = dataclasses.replace(PRIOR, params=PRIOR.params / 2)
    else:
        (out / ("a.png" if change == "result" else "strips/a.png")).unlink()
        expected = 1, 2
    report = run(images, mask, out, **options)
    assert (report.completed, report.before) == expected
    assert sorted(line["name"] for line in lines(out)) == sorted(NAMES)


def test_earlier_failures_are_counted_again(images, mask, tmp_path):
    broken = dataclasses.replace(PRIOR, params=PRIOR.params * np.nan)
    for _ in range(2):
        assert run(images, mask, tmp_path / "out", prior=broken).not_finite == 3


def test_lines_of_other_images_stay(images, mask, tmp_path):
    out = tmp_path / "out"
    run(images, mask, out)
    # The journals of two processes; one line has an outdated digest.
    written = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").unlink()
    (out / "results-00000-of-00002.jsonl").write_text(f"{written[0]}\n{written[2]}\n")
    (out / "results-00001-of-00002.jsonl").write_text(written[1].replace('"digest": "', '"digest": "0') + "\n")
    report = run(images, mask, out, count=2)
    assert (report.completed, report.before) == (1, 1)
    assert not (out / "results-00001-of-00002.jsonl").exists()
    assert (out / "results-00000-of-00002.jsonl").read_text() == f"{written[0]}\n{written[2]}\n"
    assert run(images, mask, out).before == 3
