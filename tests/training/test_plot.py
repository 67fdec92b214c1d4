"""The plot of a run's metrics."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from dcgan_jax.command import main
from dcgan_jax.errors import UserError
from dcgan_jax.training import plot as plot_module


def test_the_command_plots_a_run_s_metrics(digits_run, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(digits_run.run / "metrics.jsonl", run)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6, "ima')  # a line that is still being written
    assert [line["step"] for line in plot_module.read_metrics(run)] == [2, 4]
    assert main.main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'losses.png'}\n"
    with Image.open(run / "losses.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert pixels.shape[0] > pixels.shape[1] / 2  # so it has three panels
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
def test_damaged_metrics_are_refused(text, message, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        plot_module.plot(tmp_path)
    assert not (tmp_path / "losses.png").exists()


def test_a_missing_matplotlib_is_named(digits_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main.main(["plot", str(digits_run.run)]) == 2
    error = capsys.readouterr().err
    assert "pip install 'dcgan-jax[plot]'" in error and error.count("\n") == 1
