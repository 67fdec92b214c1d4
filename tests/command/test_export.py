"""The command `export`: a run's weights in one file, and a model card."""

import jax
import numpy as np
from command_line import main

import dcgan_jax as dj


def test_an_export_writes_the_weights_and_a_card(digits_run, digits_prior, tmp_path, capsys):
    out = tmp_path / "digits.safetensors"
    assert main("export", "--run", digits_run.run, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}, {tmp_path / 'digits.md'}\n"
    prior = dj.load_prior(out)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), prior.params, digits_prior.params)
    assert all(jax.tree.leaves(same)) and prior.crop == "center"
    card = (tmp_path / "digits.md").read_text()
    for said in (
        "# `digits`",
        "32×32 pixels in grey",
        "8 uniform latents, base width 4",
        "4 steps, 32 images seen",
        "1438",
    ):
        assert said in card
    assert main("export", "--run", digits_run.run, "--out", out, "--half") == 0
    assert "float16" in (tmp_path / "digits.md").read_text()


def test_a_compiled_export_writes_a_program(digits_run, tmp_path, capsys):
    out = tmp_path / "digits.jaxexport"
    assert main("export", "--compiled", "--run", digits_run.run, "--preset", "he2018", "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    exported = jax.export.deserialize(bytearray(out.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu") and str(exported.in_avals[0]) == "uint8[b,32,32,1]"
    for options, message in (
        (("--compiled", "--prior", digits_run.run, "--half"), "`--half` does not go with `--compiled`"),
        (("--compiled", "--prior", digits_run.run, "--preset", "best"), "this prior has no encoder"),
        (("--prior", digits_run.run), "need `--compiled`"),
    ):
        assert main("export", *options, "--out", out) == 2
        assert message in capsys.readouterr().err
