"""Priors from PyTorch DCGANs, against PyTorch where it is installed and against NumPy everywhere."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import main
from PIL import Image
from safetensors.numpy import load_file, save_file

import dcgan_jax as dj
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.inpaint import inpaint_batch

HOLE = np.zeros((1, 32, 32), bool)
HOLE[:, 8:24, 8:24] = True


def state_dicts(up=(3, 6, 12), down=None, latent=5, channels=3, seed=0):
    """Random weights and statistics in the layout of pytorch/examples: netG and netD.

    `up` and `down` are the widths of the networks, beginning next to the image; `down` equals `up` if it is not given.
    """
    rng = np.random.default_rng(seed)
    down = down or up
    widths = [latent, *up[::-1], channels]
    generator, discriminator = {}, {}

    def add(tensors, number, x):
        tensors[f"main.{number}"] = x.astype(np.float32)

    def add_norm(tensors, number, n):
        add(tensors, f"{number}.weight", rng.normal(1, 0.3, n))
        add(tensors, f"{number}.bias", rng.normal(0, 0.3, n))
        add(tensors, f"{number}.running_mean", rng.normal(0, 0.3, n))
        add(tensors, f"{number}.running_var", rng.uniform(0.3, 2, n))
        tensors[f"main.{number}.num_batches_tracked"] = np.array(7)

    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        add(generator, f"{3 * i}.weight", rng.normal(0, (4 * a) ** -0.5, (a, b, 4, 4)))
        if i < len(up):
            add_norm(generator, 3 * i + 1, b)
    for i, (a, b) in enumerate(itertools.pairwise([channels, *down, 1])):
        add(discriminator, f"{[0, 2, 5, 8, 11][i]}.weight", rng.normal(0, (16 * a) ** -0.5, (b, a, 4, 4)))
        if 0 < i < len(down):
            add_norm(discriminator, 3 * i, b)
    return generator, discriminator


@pytest.fixture
def files(tmp_path):
    """Writes networks and returns their paths."""

    def write(generator, discriminator):
        save_file(generator, tmp_path / "netG.safetensors")
        save_file(discriminator, tmp_path / "netD.safetensors")
        return tmp_path / "netG.safetensors", tmp_path / "netD.safetensors"

    return write


def normalise(tensors, number, x):
    """Batch norm of x [n, c, h, w] by the running statistics."""
    weight, bias, mean, variance = (
        tensors[f"main.{number}.{name}"].astype(np.float64)[:, None, None]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def transposed(x, kernel, stride, padding):
    """Each input adds its multiple of the kernel to the output, whose edges are then cut off."""
    n, _, h, w = x.shape
    full = np.zeros((n, kernel.shape[1], (h - 1) * stride + 4, (w - 1) * stride + 4))
    for i in range(h):
        for j in range(w):
            part = np.einsum("na,abkl->nbkl", x[:, :, i, j], kernel)
            full[:, :, i * stride : i * stride + 4, j * stride : j * stride + 4] += part
    return full[:, :, padding : full.shape[2] - padding, padding : full.shape[3] - padding]


def convolved(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (4, 4), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nahwkl,bakl->nbhw", patches, kernel)


def images_by_numpy(tensors, z, shifts=None):
    x = z.astype(np.float64)[:, :, None, None]
    last = max(int(name.split(".")[1]) for name in tensors)
    for number in range(0, last + 1, 3):
        x = transposed(x, tensors[f"main.{number}.weight"], *((2, 1) if number else (1, 0)))
        if number < last:
            x = normalise(tensors, number + 1, x)
            x = np.maximum(x + (shifts[number // 3].transpose(0, 3, 1, 2) if shifts else 0), 0)
    return np.tanh(x).transpose(0, 2, 3, 1)


def logits_by_numpy(tensors, images):
    x = images.astype(np.float64).transpose(0, 3, 1, 2)
    last = max(int(name.split(".")[1]) for name in tensors)
    for number in (0, *range(2, last, 3)):
        x = convolved(x, tensors[f"main.{number}.weight"], 2, 1)
        x = normalise(tensors, number + 1, x) if number else x
        x = np.where(x > 0, x, 0.2 * x)
    return convolved(x, tensors[f"main.{last}.weight"], 1, 0)[:, 0, 0, 0]


# Widths that double from the image on; a narrower and a wider discriminator; and widths that do not double.
WIDTHS = [((3, 6, 12), None, 3), ((3, 6, 12), (2, 4, 8), 3), ((2, 4, 8), (3, 6, 12), 3), ((2, 7, 5), (1, 1, 9), 4)]


@pytest.mark.parametrize("up, down, base", WIDTHS, ids=str)
def test_images_and_logits_equal_those_of_numpy(up, down, base, files):
    generator, discriminator = state_dicts(up, down)
    prior = dj.prior_from_pytorch(*files(generator, discriminator))
    assert prior.model == dj.ModelConfig(image_size=32, channels=3, latent_dim=5, base_width=base, latent="normal")
    z = np.asarray(dj.sample_latents(prior, jax.random.key(0), 3))
    assert z.shape == (3, 5)
    images = np.asarray(dj.generate(prior, z))
    assert np.std(images) > 0.1  # not flat
    np.testing.assert_allclose(images, images_by_numpy(generator, z), rtol=0, atol=1e-5)
    noise = np.random.default_rng(1).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    logits = logits_by_numpy(discriminator, noise)
    np.testing.assert_allclose(dj.discriminate(prior, noise), logits, rtol=1e-5, atol=1e-5)
    # Shifts of the channels that are only there to fill a layer change nothing.
    shifts = [np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32) for shape in prior.feature_shapes]
    own = [shift[..., :width] for shift, width in zip(shifts, up[::-1], strict=True)]
    shifted = jax.jit(prior.generate)(prior.params, z, tuple(shifts))
    np.testing.assert_allclose(shifted, images_by_numpy(generator, z, own), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size, channels, width", [(64, 3, 64), (64, 3, 16), (32, 1, 16)])
def test_images_and_logits_equal_those_of_pytorch(size, channels, width, tmp_path):
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    nn, depth, latent = torch.nn, size.bit_length() - 2, 100
    torch.manual_seed(0)  # before the modules, which draw their kernels
    # The modules of pytorch/examples, dcgan/main.py, for any size.
    up, down = [], []
    widths = [latent, *(width * 2**i for i in range(depth - 2, -1, -1)), channels]
    for i in range(depth):
        stride, padding = (2, 1) if i else (1, 0)
        up += [nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride, padding, bias=False)]
        up += [nn.BatchNorm2d(widths[i + 1]), nn.ReLU(True)] if i < depth - 1 else [nn.Tanh()]
    widths = [channels, *widths[-2:0:-1], 1]
    for i in range(depth):
        stride, padding = (2, 1) if i < depth - 1 else (1, 0)
        down += [nn.Conv2d(widths[i], widths[i + 1], 4, stride, padding, bias=False)]
        down += [nn.BatchNorm2d(widths[i + 1])] if 0 < i < depth - 1 else []
        down += [nn.LeakyReLU(0.2, inplace=True)] if i < depth - 1 else []  # and a sigmoid at the end
    paths = []
    for name, modules in {"netG": up, "netD": down}.items():
        network = nn.Module()
        network.main = nn.Sequential(*modules)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.02, 0.3)
        network.eval()
        paths.append(tmp_path / f"{name}.safetensors")
        save(network.state_dict(), paths[-1])
    prior = dj.prior_from_pytorch(*paths)
    z = np.array(dj.sample_latents(prior, jax.random.key(0), 4))
    with torch.no_grad():
        expected = nn.Sequential(*up)(torch.from_numpy(z)[:, :, None, None])
        logits = nn.Sequential(*down)(expected)[:, 0, 0, 0].numpy()
    expected = expected.numpy().transpose(0, 2, 3, 1)
    assert prior.image_shape == (size, size, channels)
    assert np.std(expected) > 0.1 and np.std(logits) > 0.005  # not flat
    np.testing.assert_allclose(dj.generate(prior, z), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(dj.discriminate(prior, expected), logits, rtol=1e-5, atol=1e-5)


def test_trained_weights_give_the_images_and_probabilities_that_pytorch_recorded():
    """The weights of the documents; `experiments/pytorch_digits.py` trained them and recorded the rest."""
    root = Path(__file__).parents[2]
    record = load_file(root / "tests/priors/pytorch.safetensors")
    folder = root / "docs/notebooks/pytorch"
    prior = dj.prior_from_pytorch(folder / "netG.safetensors", folder / "netD.safetensors")
    images = record["images"].transpose(0, 2, 3, 1)
    assert images.shape == (8, 32, 32, 1) and images.std() > 0.5
    np.testing.assert_allclose(dj.generate(prior, record["latents"]), images, rtol=0, atol=1e-5)
    probabilities = jax.nn.sigmoid(dj.discriminate(prior, images))
    np.testing.assert_allclose(probabilities, record["probabilities"], rtol=0, atol=1e-5)


def test_the_command_completes_an_image_with_a_saved_prior(files, tmp_path):
    prior = dj.prior_from_pytorch(*files(*state_dicts()))
    dj.save_prior(prior, tmp_path / "prior.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(HOLE[0]).save(tmp_path / "mask.png")
    given = ("--images", tmp_path / "image.png", "--masks", tmp_path / "mask.png", "--out", tmp_path / "out")
    assert main("inpaint", "--prior", tmp_path / "prior.safetensors", "--num-steps", 3, *given) == 0
    completed = np.asarray(Image.open(tmp_path / "out" / "image.png"))
    np.testing.assert_array_equal(completed[~HOLE[0]], image[~HOLE[0]])
    assert (completed[HOLE[0]] != image[HOLE[0]]).any()


def test_priors_of_the_same_sizes_share_their_programs(files):
    first, second = (dj.prior_from_pytorch(*files(*state_dicts(seed=seed))) for seed in (0, 1))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    config = dj.InpaintConfig(num_steps=1, window=3)
    image = np.zeros((1, *first.image_shape), np.uint8)
    dj.inpaint(first, image, HOLE, jax.random.key(0), config)
    before = inpaint_batch._cache_size()
    dj.inpaint(second, image, HOLE, jax.random.key(0), config)
    assert inpaint_batch._cache_size() == before


@pytest.mark.parametrize("networks", [1, 2])
def test_a_saved_prior_computes_the_same_bits(networks, files, tmp_path):
    prior = dj.prior_from_pytorch(*files(*state_dicts())[:networks])
    dj.save_prior(prior, tmp_path / "prior.safetensors")
    loaded = dj.load_prior(tmp_path / "prior.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(prior)
    z = dj.sample_latents(prior, jax.random.key(0), 2)
    images = np.asarray(dj.generate(prior, z))
    np.testing.assert_array_equal(dj.generate(loaded, z), images)
    if networks == 2:
        np.testing.assert_array_equal(dj.discriminate(loaded, images), dj.discriminate(prior, images))


def test_one_file_is_a_prior_without_a_discriminator(files, tmp_path, capsys):
    generator, discriminator = state_dicts()
    both = dj.prior_from_pytorch(*files(generator, discriminator))
    z = dj.sample_latents(both, jax.random.key(0), 2)
    images = np.asarray(dj.generate(both, z))
    alone = dj.prior_from_pytorch(files(generator, discriminator)[0])
    assert alone.discriminate is None and dj.with_compute_dtype(alone, "bfloat16").discriminate is None
    np.testing.assert_array_equal(dj.generate(alone, z), images)
    path = tmp_path / "prior.safetensors"
    dj.save_prior(alone, path)
    assert main("train-encoder", "--data", tmp_path, "--run", tmp_path / "run", "--prior", path) == 2
    assert f"the prior {path} has no discriminator" in capsys.readouterr().err


def test_weights_of_data_parallel_modules_are_read(files):
    networks = state_dicts()
    expected = dj.prior_from_pytorch(*files(*networks))
    prior = dj.prior_from_pytorch(*files(*({f"module.{name}": x for name, x in n.items()} for n in networks)))
    jax.tree.map(np.testing.assert_array_equal, prior, expected)


def spoilt(name, x):
    """The generator with another array at `name`, or without it."""

    def spoil(generator, discriminator):
        generator.pop(name, None)
        if x is not None:
            generator[name] = np.asarray(x, np.float32)

    return spoil


def swap(generator, discriminator):
    kept = dict(generator)
    generator.clear()
    generator.update(discriminator)
    discriminator.clear()
    discriminator.update(kept)


def other_size(generator, discriminator):
    discriminator.clear()
    discriminator.update(state_dicts((3, 6, 12, 24))[1])


def unknown_size(generator, discriminator):
    generator.clear()
    generator.update(state_dicts((3, 6), channels=2)[0])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoilt("main.3.weight", None), r"netG\.safetensors has no main\.3\.weight \(any×6×4×4\)"),
        (spoilt("main.1.running_var", None), r"has no main\.1\.running_var \(12\)"),
        (spoilt("main.3.weight", np.zeros((12, 6, 5, 5))), r"main\.3\.weight in .* 12×6×5×5, .* has any×6×4×4"),
        (spoilt("main.0.weight", np.zeros((5, 9, 4, 4))), r"main\.0\.weight in .* 5×9×4×4, .* has any×12×4×4"),
        (spoilt("main.4.bias", np.zeros(5)), r"main\.4\.bias in .* has the shape 5, .* has 6"),
        (spoilt("main.0.bias", np.zeros(12)), r"also has main\.0\.bias"),
        (spoilt("main.1.bias", np.full(12, np.nan)), r"main\.1\.bias in .* has values that are not finite"),
        (spoilt("main.4.running_var", np.full(6, -1)), r"main\.4\.running_var in .* not finite, or below 0"),
        (swap, r"has no main\.9\.weight \(any×any×4×4\): give a netG\.state_dict\(\)"),
        (other_size, r"takes images of shape \(64, 64, 3\), but .* makes \(32, 32, 3\): .* or the generator alone"),
        (unknown_size, r"makes images of shape \(16, 16, 2\), .* sides of 32, 64, 128, 256 and 1 or 3 channels: write"),
    ],
)
def test_another_layout_is_named_in_one_line(files, spoil, message):
    generator, discriminator = state_dicts()
    spoil(generator, discriminator)
    with pytest.raises(UserError, match=message) as error:
        dj.prior_from_pytorch(*files(generator, discriminator))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip of torch.save", b"\x80\x02 a pickle", b""])
def test_a_pickled_file_is_told_how_to_convert(tmp_path, content):
    path = tmp_path / "netG.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"safetensors\.torch\.save_file\(torch\.load\("):
        dj.prior_from_pytorch(path)
    with pytest.raises(UserError, match=r"absent\.safetensors cannot be read .*: give another file"):
        dj.prior_from_pytorch(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        dj.prior_from_pytorch(tmp_path)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_weights_of_other_types_become_float32(dtype, files):
    networks = [{name: x.astype(dtype) for name, x in tensors.items()} for tensors in state_dicts()]
    prior = dj.prior_from_pytorch(*files(*networks))
    assert {x.dtype for x in jax.tree.leaves(prior.params)} == {np.dtype("float32")}
    z = np.asarray(dj.sample_latents(prior, jax.random.key(0), 2))
    images = images_by_numpy({name: x.astype(np.float64) for name, x in networks[0].items()}, z)
    np.testing.assert_allclose(dj.generate(prior, z), images, rtol=0, atol=1e-5)


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    header = b'{"main.0.weight":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    path = tmp_path / "netG.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    with pytest.raises(UserError, match=r"cannot be read \(.*float8.*: save its weights in float32"):
        dj.prior_from_pytorch(path)
