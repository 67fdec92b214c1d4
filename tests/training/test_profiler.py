"""The profiler's trace of some training steps, and the option that chooses the steps."""

import dataclasses

import jax
import numpy as np
import pytest
import trainings

from dcgan_jax.command import options as options_module
from dcgan_jax.errors import UserError
from dcgan_jax.training import gan, logbook, loop

compiled_once = trainings.compiled_once


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "3:3", "4:3", "-1:3", "1:2:3", "a:b", "1.5:3", "1 : 3", "１:３"])
def test_malformed_windows_are_refused(text):
    with pytest.raises(UserError, match=r"`profile_steps` is .*such as 20:30"):
        options_module.parse_window(text)


def test_only_the_window_s_steps_are_traced(digits_run, tmp_path, monkeypatch):
    """The trace covers exactly the chosen steps, and does not change the result of the run."""
    run, calls = tmp_path / "run", []
    start, stop, after = jax.profiler.start_trace, jax.profiler.stop_trace, logbook.FolderLogbook.after_step
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: (calls.append("start"), start(folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (calls.append("stop"), stop()))
    monkeypatch.setattr(logbook.FolderLogbook, "after_step", lambda book: (calls.append("step"), after(book)))
    config = trainings.config_of(digits_run.run)
    state = loop.train(
        gan.RECIPE, config, digits_run.data, run, profile_steps=options_module.parse_window("1:3"), progress=False
    )
    assert calls == ["step", "start", "step", "step", "stop", "step"]
    other = loop.train(gan.RECIPE, config, digits_run.data, tmp_path / "other", progress=False)
    (trace,) = (run / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    jax.tree.map(np.testing.assert_array_equal, state, other)


def test_a_window_may_end_at_the_last_step(digits_run, tmp_path):
    run = tmp_path / "run"
    config = dataclasses.replace(trainings.config_of(digits_run.run), num_steps=1)
    loop.train(gan.RECIPE, config, digits_run.data, run, profile_steps=range(0, 1), progress=False)
    assert list((run / "profile").rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="choose steps among 1:2"):
        longer = dataclasses.replace(config, num_steps=2)
        loop.train(gan.RECIPE, longer, digits_run.data, run, profile_steps=range(0, 2), progress=False)
    assert [line["step"] for line in trainings.metrics_of(run)] == [1] and trainings.config_of(run) == config
