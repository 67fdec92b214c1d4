"""The TensorBoard events of a run: curves, samples, table and diagram of the networks."""

import dataclasses
import io
import json
import shutil

import numpy as np
import trainings
from events import read_curves, read_events
from PIL import Image

from dcgan_jax.images import figures
from dcgan_jax.networks import diagram
from dcgan_jax.training import gan, loop

compiled_once = trainings.compiled_once


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_points_are_the_lines(run):
    expected = lines(run)
    found = read_curves(run)
    assert found.keys() == expected[0].keys() - {"step", "images"} and len(found) >= 5
    for name, curve in found.items():
        assert [step for step, _ in curve] == [line["step"] for line in expected]
        np.testing.assert_allclose([x for _, x in curve], [line[name] for line in expected], rtol=1e-6)


def test_curves_match_the_metrics(digits_run):
    assert_points_are_the_lines(digits_run.run)


def test_tensorboard_shows_the_samples(digits_run):
    (shown_image,) = read_events(digits_run.run).Images("samples")
    assert shown_image.step == 4
    assert_same_picture(shown_image.encoded_image_string, digits_run.run / "samples" / "0000004.png")


def assert_same_picture(encoded, path):
    with Image.open(io.BytesIO(encoded)) as found, Image.open(path) as expected:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_tensorboard_shows_the_networks(digits_run, tmp_path):
    model = trainings.config_of(digits_run.run).model
    events = read_events(digits_run.run)
    (text,) = events.Tensors("networks/text_summary")
    assert text.tensor_proto.string_val[0].decode() == diagram.table(model)
    (picture,) = events.Images("networks")
    Image.fromarray(diagram.draw(model)).save(tmp_path / "expected.png")
    assert_same_picture(picture.encoded_image_string, tmp_path / "expected.png")


def test_a_resumed_run_shows_no_point_twice(digits_run, tmp_path):
    """The run was killed after it logged step 6 and before it saved it, so it continues from step 4."""
    run = tmp_path / "run"
    shutil.copytree(digits_run.run, run)
    config = trainings.config_of(run)
    checkpoints = shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    loop.train(gan.RECIPE, dataclasses.replace(config, num_steps=6), digits_run.data, run, progress=False)
    first = lines(run)
    shutil.rmtree(run / "checkpoints")
    checkpoints.rename(run / "checkpoints")
    last = max((run / "tensorboard").iterdir())
    last.write_bytes(last.read_bytes()[:-5])  # killed while writing
    loop.train(gan.RECIPE, dataclasses.replace(config, num_steps=8), digits_run.data, run, progress=False)
    assert [line["step"] for line in first] == [2, 4, 6] and [line["step"] for line in lines(run)] == [2, 4, 6, 8]
    assert_points_are_the_lines(run)
    events = read_events(run)
    assert [image.step for image in events.Images("samples")] == [4, 8]
    assert len(events.Images("networks")) == len(events.Tensors("networks/text_summary")) == 1


def test_each_point_is_on_disk_as_soon_as_its_line(digits_run, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []
    save = figures.save_png
    monkeypatch.setattr(figures, "save_png", lambda *args: (seen.append(read_curves(run)), save(*args)))
    config = dataclasses.replace(trainings.config_of(digits_run.run), num_steps=2)
    loop.train(gan.RECIPE, config, digits_run.data, run, progress=False)
    assert [step for step, _ in seen[0]["generator_loss"]] == [2]
