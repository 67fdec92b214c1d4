"""What a run reports beside its metrics: TensorBoard's log, table and diagram, plot, profile."""

import dataclasses
import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import trainings
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcgan_jax.command import main
from dcgan_jax.command import options as options_module
from dcgan_jax.errors import UserError
from dcgan_jax.images import figures
from dcgan_jax.networks import convolution, diagram, layers
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training import gan, logbook, loop
from dcgan_jax.training import plot as plot_module
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import init_state

compiled_once = trainings.compiled_once
MODELS = [
    ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=8),
    ModelConfig(image_size=128, base_width=6, latent_dim=5),
]


def shown(run):
    """What TensorBoard's own reader finds in a run, all of it."""
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()


def points(run):
    """The points of each curve that TensorBoard shows."""
    events = shown(run)
    return {name: [(x.step, x.value) for x in events.Scalars(name)] for name in events.Tags()["scalars"]}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_points_are_the_lines(run):
    expected = lines(run)
    found = points(run)
    assert found.keys() == expected[0].keys() - {"step", "images"} and len(found) >= 5
    for name, curve in found.items():
        assert [step for step, _ in curve] == [line["step"] for line in expected]
        np.testing.assert_allclose([x for _, x in curve], [line[name] for line in expected], rtol=1e-6)


# ------------------------------------------------------------------------------------------ TensorBoard


def test_curves_are_the_lines(digits_run):
    assert_points_are_the_lines(digits_run.run)


def test_samples_are_shown(digits_run):
    (shown_image,) = shown(digits_run.run).Images("samples")
    assert shown_image.step == 4
    assert_same_picture(shown_image.encoded_image_string, digits_run.run / "samples" / "0000004.png")


def assert_same_picture(encoded, path):
    with Image.open(io.BytesIO(encoded)) as found, Image.open(path) as expected:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_networks_are_shown(digits_run, tmp_path):
    model = trainings.config_of(digits_run.run).model
    events = shown(digits_run.run)
    (text,) = events.Tensors("networks/text_summary")
    assert text.tensor_proto.string_val[0].decode() == diagram.table(model)
    (picture,) = events.Images("networks")
    Image.fromarray(diagram.draw(model)).save(tmp_path / "expected.png")
    assert_same_picture(picture.encoded_image_string, tmp_path / "expected.png")


def test_a_resumed_run_shows_no_point_twice(digits_run, tmp_path):
    """Killed after the step 6 that it had logged and before the checkpoint of it: goes on from 4."""
    run = tmp_path / "run"
    shutil.copytree(digits_run.run, run)
    config = trainings.config_of(run)
    checkpoints = shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    loop.train(gan.RECIPE, dataclasses.replace(config, num_steps=6), digits_run.data, run, progress=False)
    first = lines(run)
    shutil.rmtree(run / "checkpoints")
    checkpoints.rename(run / "checkpoints")
    last = max((run / "tensorboard").iterdir())
    last.write_bytes(last.read_bytes()[:-5])  # killed while it wrote
    loop.train(gan.RECIPE, dataclasses.replace(config, num_steps=8), digits_run.data, run, progress=False)
    assert [line["step"] for line in first] == [2, 4, 6] and [line["step"] for line in lines(run)] == [2, 4, 6, 8]
    assert_points_are_the_lines(run)
    events = shown(run)
    assert [image.step for image in events.Images("samples")] == [4, 8]
    assert len(events.Images("networks")) == len(events.Tensors("networks/text_summary")) == 1


def test_each_point_is_on_disk_when_its_line_is(digits_run, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []
    save = figures.save_png
    monkeypatch.setattr(figures, "save_png", lambda *args: (seen.append(points(run)), save(*args)))
    config = dataclasses.replace(trainings.config_of(digits_run.run), num_steps=2)
    loop.train(gan.RECIPE, config, digits_run.data, run, progress=False)
    assert [step for step, _ in seen[0]["generator_loss"]] == [2]


# ------------------------------------------------------------------------------------------ the networks


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_is_listed_with_its_parameters(model):
    state = jax.eval_shape(lambda key: init_state(TrainConfig(model=model), key), jax.random.key(0))
    for network, rows in diagram.layers(model).items():
        params = getattr(state, network)
        assert len(rows) == len(params) and {row.name for row in rows} == params.keys()
        for row in rows:
            assert row.parameters == sum(x.size for x in jax.tree.leaves(params[row.name]))
            assert f"| {row.name} | {row.operation} |" in diagram.table(model)
        total = sum(x.size for x in jax.tree.leaves(params))
        assert f"| **total** | | | **{total:,}** |" in diagram.table(model)


@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_those_of_the_convolutions(model, monkeypatch):
    rows, seen = diagram.layers(model), {"conv_up": [], "conv_down": []}
    for name, found in seen.items():

        def watch(x, kernel, name=name, found=found):
            result = getattr(convolution, name)(x, kernel)
            found.append(result.shape[1:])
            return result

        monkeypatch.setattr(layers, name, watch)
    jax.eval_shape(lambda key: init_state(TrainConfig(model=model), key), jax.random.key(0))
    assert seen["conv_up"] == [row.shape for row in rows["generator"] if row.name.startswith("up_")]
    assert seen["conv_down"] == [row.shape for row in rows["discriminator"] if row.name.startswith("down_")]


def test_the_diagram_has_a_block_for_every_shape():
    def blocks(model, colour):
        middle = np.flatnonzero((diagram.draw(model) == colour).all(-1).any(1))  # rows that have the colour
        row = (diagram.draw(model)[(middle[0] + middle[-1]) // 2 - 2] == colour).all(-1)
        return int((np.diff(row.astype(int)) == 1).sum())

    small, large = MODELS
    # Input, dense, 3 (32 pixels) or 5 (128) convolutions.
    for colour in ((158, 202, 225), (253, 174, 107)):
        assert [blocks(small, colour), blocks(large, colour)] == [5, 7]


# ------------------------------------------------------------------------------------------ plot


def test_plot(digits_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(digits_run.run / "metrics.jsonl", run)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "ima')  # being written
    assert [line["step"] for line in plot_module.read_metrics(run)] == [2, 4]
    assert main.main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'losses.png'}\n"
    with Image.open(run / "losses.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert pixels.shape[0] > pixels.shape[1] / 2  # three panels
    assert sorted(path.name for path in run.iterdir()) == ["losses.png", "metrics.jsonl"]


def test_curves_are_drawn_where_their_values_are(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = {}, Axes.plot

    def watch(axis, x, y, label, **options):
        drawn[label] = (id(axis), x, y)
        return plot(axis, x, y, label=label, **options)

    monkeypatch.setattr(Axes, "plot", watch)
    rows = [
        {"step": 10, "images": 80, "generator_loss": 3.0, "discriminator_loss": 0.5},
        {"step": 20, "images": 160, "generator_loss": 2.0, "discriminator_loss": 0.7, "real_probability": 0.8},
    ]
    swd = {"swd": 30.0, "swd_floor": 9.0}
    rows += [{"step": 30, "images": 240, **swd, "ms_ssim": 0.3, "ms_ssim_real": 0.2, "inversion_psnr": 19.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_module.plot(tmp_path)
    values = {label: (x, y) for label, (_, x, y) in drawn.items()}
    assert values == {
        "generator loss": ((10, 20), (3.0, 2.0)),
        "discriminator loss": ((10, 20), (0.5, 0.7)),
        "real probability": ((20,), (0.8,)),
        "swd": ((30,), (30.0,)),
        "swd floor": ((30,), (9.0,)),
        "ms ssim": ((30,), (0.3,)),
        "ms ssim real": ((30,), (0.2,)),
        "inversion psnr": ((30,), (19.0,)),
    }
    axes = {label: axis for label, (axis, *_) in drawn.items()}
    assert axes["generator loss"] == axes["discriminator loss"] != axes["real probability"]
    assert axes["swd"] == axes["swd floor"] != axes["ms ssim"] == axes["ms ssim real"] != axes["inversion psnr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line yet"),
        ('{"step": 2', "has no line yet"),
        ('{"step": 2}\n{}\n', "line 2 is damaged"),
        ("[1]\n", "line 1 is damaged"),
        ('{"step": 2, "generator_loss": "low"}\n', "line 1 is damaged"),
    ],
)
def test_what_cannot_be_plotted(text, message, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        plot_module.plot(tmp_path)
    assert not (tmp_path / "losses.png").exists()


def test_plot_without_matplotlib(digits_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main.main(["plot", str(digits_run.run)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'dcgan-jax[plot]'" in error and error.count("\n") == 1


# ------------------------------------------------------------------------------------------ profile


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "3:3", "4:3", "-1:3", "1:2:3", "a:b", "1.5:3", "1 : 3", "１:３"])
def test_malformed_windows_are_refused(text):
    with pytest.raises(UserError, match=r"`profile_steps` is .*such as 20:30"):
        options_module.parse_window(text)


def test_profile(digits_run, tmp_path, monkeypatch):
    """Of the window's steps, and of them alone; the run's results are those of a run without."""
    run, calls = tmp_path / "run", []
    start, stop, after = jax.profiler.start_trace, jax.profiler.stop_trace, logbook.FolderLogbook.after
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: (calls.append("start"), start(folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (calls.append("stop"), stop()))
    monkeypatch.setattr(logbook.FolderLogbook, "after", lambda book: (calls.append("step"), after(book)))
    config = trainings.config_of(digits_run.run)
    state = loop.train(
        gan.RECIPE, config, digits_run.data, run, profile_steps=options_module.parse_window("1:3"), progress=False
    )
    assert calls == ["step", "start", "step", "step", "stop", "step"]
    other = loop.train(gan.RECIPE, config, digits_run.data, tmp_path / "other", progress=False)
    (trace,) = (run / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    jax.tree.map(np.testing.assert_array_equal, state, other)


def test_a_window_to_the_last_step(digits_run, tmp_path):
    run = tmp_path / "run"
    config = dataclasses.replace(trainings.config_of(digits_run.run), num_steps=1)
    loop.train(gan.RECIPE, config, digits_run.data, run, profile_steps=range(0, 1), progress=False)
    assert list((run / "profile").rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="choose steps among 1:2"):
        longer = dataclasses.replace(config, num_steps=2)
        loop.train(gan.RECIPE, longer, digits_run.data, run, profile_steps=range(0, 2), progress=False)
    assert [line["step"] for line in lines(run)] == [1] and trainings.config_of(run) == config
