"""Shared by all tests: settings of JAX, a folder for all workers, a tiny run and its prior."""

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

# The workers and the processes that tests start inherit these variables. JAX reads them when it is imported, so this
# file does not import JAX at its top; the process that starts the workers never needs it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    _EARLIER_CODE = " --xla_cpu_use_fusion_emitters=false" if version("jaxlib") == "0.10.1" else ""
    if Path("/dev/nvidiactl").exists():  # by default these GPUs multiply in TF32, which is too coarse for comparisons
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ |= {
        # Halves the compile time; the tests run each program only a few times.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # XLA's earlier code generator for the CPU, where it still exists, halves it again. It rounds differently:
        # equal bits of two programs are tested in processes without this flag (`processes.as_users_compile`).
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + _EARLIER_CODE,
        # Many tests compile the same programs, some in other workers or processes.
        "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        # SciPy's small solves keep BLAS threads spinning, which doubled the CPU time of total variation.
        "OPENBLAS_NUM_THREADS": "1",
        # Some test files start themselves as programs, and these import the helpers of this folder.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
    }


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it skip where `$DCGAN_JAX_DATA` is unset."""
    folder = os.environ.get("DCGAN_JAX_DATA")
    if not folder:
        pytest.skip("DCGAN_JAX_DATA is unset")
    return Path(folder)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Makes a folder in one worker, while the others wait."""
    done = path.with_suffix(".done")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)  # left by a worker that failed
            path.mkdir()
            make(path)
            done.touch()
    return path


@pytest.fixture(scope="session")
def digits_run(shared) -> SimpleNamespace:
    """A prepared set and four training steps on it, both by the command: their paths, and the final state.

    Read only, because all workers share it.
    """
    import jax

    def make(root: Path) -> None:
        from dcgan_jax.command import main
        from dcgan_jax.training import loop

        options = "--image-size 32 --channels 1 --base-width 4 --latent-dim 8 --batch-size 8 --num-steps 4"
        options += " --log-every 2 --measure-every 0"
        data, run, states = str(root / "data"), str(root / "run"), []
        with pytest.MonkeyPatch.context() as patch:
            train = loop.train
            patch.setattr(loop, "train", lambda *args, **kwargs: states.append(train(*args, **kwargs)))
            assert main.main(["prepare", "digits", "--out", data, "--image-size", "32", "--quiet"]) == 0
            assert main.main(["train", "--data", data, "--run", run, "--quiet", *options.split()]) == 0
        (root / "state").write_bytes(pickle.dumps(jax.device_get(states[0])))

    root = made_once(shared / "digits_run", make)
    state = jax.device_put(pickle.loads((root / "state").read_bytes()))
    return SimpleNamespace(data=root / "data", run=root / "run", state=state)


@pytest.fixture(scope="session")
def digits_prior(digits_run):
    """The prior of `digits_run`, made in memory."""
    import dcgan_jax as dj
    from dcgan_jax.storage.runs import read_run
    from dcgan_jax.training.config import TrainConfig

    return dj.prior_from_state(digits_run.state, read_run(digits_run.run).settings(TrainConfig))


@pytest.fixture(scope="session")
def digits(shared) -> Path:
    """The handwritten digits, prepared at 32×32 in grey. Read only, because all workers share them."""

    def make(root: Path) -> None:
        from dcgan_jax.data import prepare

        prepare("digits", root / "digits", image_size=32, progress=False)

    return made_once(shared / "sets", make) / "digits"


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for one test."""
    import jax

    with jax.enable_x64(True):
        yield
