"""Priors from PyTorch DCGANs, against PyTorch where it is installed and against NumPy everywhere."""

import itertools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import dcgan_jax as dj
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.inpaint import inpaint_batch

HOLE = np.zeros((1, 32, 32), bool)
HOLE[:, 8:24, 8:24] = True


def state_dicts(size, latent=5, width=3, channels=2, seed=0):
    """Random weights and statistics in the layout of pytorch/examples: netG and netD."""
    rng = np.random.default_rng(seed)
    depth = size.bit_length() - 2
    widths = [latent, *(width * 2**i for i in range(depth - 2, -1, -1)), channels]
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
        if i < depth - 1:
            add_norm(generator, 3 * i + 1, b)
    widths = [channels, *widths[-2:0:-1], 1]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        add(discriminator, f"{[0, 2, 5, 8, 11][i]}.weight", rng.normal(0, (16 * a) ** -0.5, (b, a, 4, 4)))
        if 0 < i < depth - 1:
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


def test_images_and_logits_equal_those_of_numpy(files):
    generator, discriminator = state_dicts(32)
    prior = dj.prior_from_pytorch(*files(generator, discriminator))
    assert prior.image_shape == (32, 32, 2) and prior.feature_shapes == ((4, 4, 12), (8, 8, 6), (16, 16, 3))
    z = np.asarray(dj.sample_latents(prior, jax.random.key(0), 3))
    assert z.shape == (3, 5)
    images = np.asarray(dj.generate(prior, z))
    assert np.std(images) > 0.1  # not flat
    np.testing.assert_allclose(images, images_by_numpy(generator, z), rtol=0, atol=1e-5)
    noise = np.random.default_rng(1).uniform(-1, 1, (3, 32, 32, 2)).astype(np.float32)
    logits = logits_by_numpy(discriminator, noise)
    np.testing.assert_allclose(dj.discriminate(prior, noise), logits, rtol=1e-5, atol=1e-5)
    shifts = [np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32) for shape in prior.feature_shapes]
    shifted = jax.jit(prior.generate)(prior.params, z, tuple(shifts))
    np.testing.assert_allclose(shifted, images_by_numpy(generator, z, shifts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size, channels", [(64, 3), (32, 1)])
def test_images_and_logits_equal_those_of_pytorch(size, channels, tmp_path):
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    nn, depth, latent, width = torch.nn, size.bit_length() - 2, 100, 16
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


def test_a_completion_keeps_the_known_pixels(files):
    paths = files(*state_dicts(32, channels=3))
    prior = dj.prior_from_pytorch(*paths)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    config = dj.InpaintConfig(num_steps=3, refine_steps=2, window=3)
    result = dj.inpaint(prior, image, HOLE, jax.random.key(0), config)
    images = np.asarray(result.images)
    np.testing.assert_array_equal(images[~HOLE], image[~HOLE])
    assert (images[HOLE] != image[HOLE]).any()


def test_priors_of_the_same_sizes_share_their_programs(files):
    first, second = (dj.prior_from_pytorch(*files(*state_dicts(32, seed=seed))) for seed in (0, 1))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    config = dj.InpaintConfig(num_steps=1, window=3)
    image = np.zeros((1, *first.image_shape), np.uint8)
    dj.inpaint(first, image, HOLE, jax.random.key(0), config)
    before = inpaint_batch._cache_size()
    dj.inpaint(second, image, HOLE, jax.random.key(0), config)
    assert inpaint_batch._cache_size() == before


def test_one_file_is_a_prior_without_a_discriminator(files):
    generator, discriminator = state_dicts(32)
    parallel = {f"module.{name}": x for name, x in generator.items()}  # of `nn.DataParallel`
    alone = dj.prior_from_pytorch(files(parallel, discriminator)[0])
    assert alone.discriminate is None
    both = dj.prior_from_pytorch(*files(generator, discriminator))
    z = dj.sample_latents(both, jax.random.key(0), 2)
    np.testing.assert_array_equal(dj.generate(alone, z), dj.generate(both, z))


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
    discriminator.update(state_dicts(64)[1])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoilt("main.3.weight", None), r"netG\.safetensors has no main\.3\.weight \(12×any×4×4\)"),
        (spoilt("main.1.running_var", None), r"has no main\.1\.running_var \(12\)"),
        (spoilt("main.3.weight", np.zeros((12, 6, 5, 5))), r"main\.3\.weight in .* 12×6×5×5, .* has 12×any×4×4"),
        (spoilt("main.4.bias", np.zeros(5)), r"main\.4\.bias in .* has the shape 5, .* has 6"),
        (spoilt("main.0.bias", np.zeros(12)), r"also has main\.0\.bias"),
        (spoilt("main.1.bias", np.full(12, np.nan)), r"main\.0 in .*, or its batch norm, is not finite"),
        (spoilt("main.4.running_var", np.full(6, -1)), r"main\.3 in .*, or its batch norm, is not finite"),
        (swap, r"has no main\.1\.weight \(2\): give a netG\.state_dict\(\)"),
        (other_size, r"takes images of shape \(64, 64, 2\), but .* makes \(32, 32, 2\)"),
    ],
)
def test_another_layout_is_named_in_one_line(files, spoil, message):
    generator, discriminator = state_dicts(32)
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
