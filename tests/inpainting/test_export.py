"""The exported program: the bits of `inpaint`, in a process that has JAX alone.

Started as a program, this file exports a small prior and saves the results of `inpaint` beside it.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import as_users_compile, finish
from searches import UNIFORM

import dcgan_jax as dj
from dcgan_jax.errors import UserError

COUNTS = (1, 3)
# Loads the file without this package and what it imports, and compares the results.
CALL = """
import sys
for name in ("dcgan_jax", "flax", "optax", "jaxtyping"):
    sys.modules[name] = None  # an import raises ImportError
import jax, numpy as np
folder = sys.argv[1]
exported = jax.export.deserialize(bytearray(open(folder + "/program.jaxexport", "rb").read()))
assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
arrays = np.load(folder + "/arrays.npz")
for n in (1, 3):
    found = exported.call(arrays["images"][:n], arrays["holes"][:n], jax.random.key_data(jax.random.key(7)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, arrays[f"results_{n}"])
"""


def small_prior():
    """A DCGAN with every kind of layer, and an encoder whose shifts are not 0."""
    from dcgan_jax.networks import dcgan, encoder
    from dcgan_jax.priors.dcgan import prior_from_params

    model = dj.ModelConfig(image_size=32, channels=3, base_width=4, latent_dim=8)
    params = dcgan.init_gan(model) | {"encoder": encoder.init_params(model, jax.random.key(1))}
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [np.asarray(x + rng.uniform(0, 0.1, x.shape), np.float32) for x in leaves]
    return prior_from_params(jax.device_put(jax.tree.unflatten(tree, leaves)), model)


def export(folder):
    prior, rng = small_prior(), np.random.default_rng(0)
    images = rng.integers(0, 256, (max(COUNTS), *prior.image_shape), np.uint8)
    holes = rng.random(images.shape[:3]) < 0.5
    config = dj.InpaintConfig(num_steps=5, start="encoder", start_shifts=0.5, encoder_weight=1.0)
    dj.export_program(prior, folder / "program.jaxexport", config)
    results = {
        f"results_{n}": dj.inpaint(prior, images[:n], holes[:n], jax.random.key(7), config).images for n in COUNTS
    }
    np.savez(folder / "arrays.npz", images=images, holes=holes, **results)


def test_jax_alone_runs_the_file_with_the_bits_of_inpaint(tmp_path):
    for arguments in ((__file__, tmp_path), ("-c", CALL, tmp_path)):
        statuses, _, errors = finish([as_users_compile(1, *arguments)])
        assert statuses == [0], errors[0]
    images, completed = (np.load(tmp_path / "arrays.npz")[name] for name in ("images", "results_3"))
    assert (images != completed).any(), "the search changed nothing"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["arrays.npz", "program.jaxexport"]


def test_every_part_of_a_search_and_the_sharp_blend_are_exported(tmp_path):
    best = dj.InpaintConfig.preset("best")
    config = dataclasses.replace(best, restarts=2, num_completions=2, judge="central")
    dj.export_program(small_prior(), tmp_path / "best.jaxexport", config)
    exported = jax.export.deserialize(bytearray((tmp_path / "best.jaxexport").read_bytes()))
    assert [str(x) for x in exported.out_avals] == ["uint8[b,32,32,3]"]


def test_an_exported_program_takes_only_its_own_shapes_and_types(tmp_path):
    dj.export_program(UNIFORM, tmp_path / "one.jaxexport", dj.InpaintConfig(num_steps=1), platforms=["tpu"])
    exported = jax.export.deserialize(bytearray((tmp_path / "one.jaxexport").read_bytes()))
    assert exported.platforms == ("tpu",)
    assert [str(x) for x in exported.in_avals] == ["uint8[b,4,3,2]", "bool[b,4,3]", "uint32[2]"]
    assert [str(x) for x in exported.out_avals] == ["uint8[b,4,3,2]"]


@pytest.mark.parametrize(
    ("name", "config", "platforms", "message"),
    [
        ("a.bin", None, ["cpu"], "give a name that ends in .jaxexport"),
        ("a.jaxexport", dj.InpaintConfig.preset("best"), ["cpu"], "this prior has no encoder"),
        ("a.jaxexport", None, ["gpu"], "it takes any of cpu, cuda, rocm, tpu"),
        ("a.jaxexport", None, [], "it takes any of cpu, cuda, rocm, tpu"),
    ],
)
def test_bad_arguments_are_named(tmp_path, name, config, platforms, message):
    with pytest.raises((UserError, ValueError), match=message):
        dj.export_program(UNIFORM, tmp_path / name, config, platforms=platforms)
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":
    export(Path(sys.argv[1]))
