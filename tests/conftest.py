"""What every test shares: exact float32 products, and tiny models."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from dcgan_jax.data import prepare

# GPUs multiply float32 in TF32 by default, which no oracle would accept.
jax.config.update("jax_default_matmul_precision", "highest")

# Many tests compile the same training step, some of them in processes of their own.
_CACHE = tempfile.TemporaryDirectory()
for name, value in {"compilation_cache_dir": _CACHE.name, "persistent_cache_min_compile_time_secs": 0.5}.items():
    jax.config.update(f"jax_{name}", value)
    os.environ[f"JAX_{name.upper()}"] = str(value)


# Some test files start themselves as programs, which import the helpers of this folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it skip where `$DCGAN_JAX_DATA` is unset."""
    folder = os.environ.get("DCGAN_JAX_DATA")
    if not folder:
        pytest.skip("DCGAN_JAX_DATA is unset")
    return Path(folder)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> SimpleNamespace:
    """A prepared set and four training steps on it, both by the command: paths, and the state as it was in memory."""
    from dcgan_jax.command import main
    from dcgan_jax.training import loop

    root, states = tmp_path_factory.mktemp("digits"), []
    data, run = root / "data", root / "run"
    options = "--image-size 32 --channels 1 --base-width 4 --latent-dim 8 --batch-size 8 --num-steps 4"
    options += " --log-every 2 --measure-every 0"
    with pytest.MonkeyPatch.context() as patch:
        train = loop.train
        patch.setattr(loop, "train", lambda *args, **kwargs: states.append(train(*args, **kwargs)))
        assert main.main(["prepare", "digits", "--out", str(data), "--image-size", "32", "--quiet"]) == 0
        assert main.main(["train", "--data", str(data), "--run", str(run), "--quiet", *options.split()]) == 0
    return SimpleNamespace(data=data, run=run, state=states[0])


@pytest.fixture(scope="session")
def digits_prior(digits_run):
    """The prior of `digits_run`, made in memory."""
    import dcgan_jax as dj
    from dcgan_jax.storage.runs import read_run
    from dcgan_jax.training.config import TrainConfig

    return dj.prior_from_state(digits_run.state, read_run(digits_run.run).settings(TrainConfig))


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """Compiles in half the time, for modules that run what they compile a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The handwritten digits, prepared at 32×32 grey."""
    path = tmp_path_factory.mktemp("sets") / "digits"
    prepare("digits", path, image_size=32, progress=False)
    return path
