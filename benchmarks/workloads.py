"""The programs that are compiled for absent devices: training steps, searches and blends."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, Sharding

import dcgan_jax as dj
from benchmarks import networks
from benchmarks.absent_devices import Target
from dcgan_jax.blending import poisson, smooth
from dcgan_jax.inpainting.inpaint import inpaint_batch
from dcgan_jax.parallel import sharding
from dcgan_jax.training import encoder
from dcgan_jax.training.config import EncoderConfig, TrainConfig
from dcgan_jax.training.encoder import encoder_prior
from dcgan_jax.training.loop import jit_step

WIDTH = 64
DTYPES = ("float32", "bfloat16")
TRAINED = (64, 128, 1024)  # images per device
SEARCHED = (64, 1024)  # images on all devices together
LARGE = 8192  # images of a search that fills a GPU

Lowerable = tuple[Any, tuple[Any, ...]]  # a jitted function and the shapes of its arguments


@dataclass(frozen=True)
class Workload:
    """A program to compile: `build(mesh)` returns a jitted function and the shapes of its arguments."""

    name: str
    build: Callable[[Mesh], Lowerable]
    images: int  # per device
    asked: float | None = None  # GFLOP per device that the layers ask for; per round if `loop` is set
    loop: str = ""  # name of one round of the most expensive loop, which is counted apart


def workloads(target: Target) -> list[Workload]:
    """Lists the programs to compile for a target."""
    n = target.count
    found = []
    for dtype in DTYPES:
        for images in TRAINED:
            config = networks.train_config(WIDTH, images * n, dtype)
            asked = networks.gflop_train_step(config) / n
            name = f"training step, {dtype}, {images} a device"
            found.append(Workload(name, functools.partial(training_step, config), images, asked))
    if target.topology == "v5e:8x8":  # A pod only trains: its hosts search independently of one another.
        return [workload for workload in found if workload.images == 1024]
    for preset in ("default", "best"):
        for images in (*SEARCHED, *([LARGE] if target.platform == "cuda" else [])):
            asked = images / n * networks.gflop_search_step(networks.train_config(WIDTH, images, "float32"))
            build = functools.partial(search, preset, images)
            found.append(Workload(f"search, {preset}, {images} images", build, images // n, asked, "a step"))
    for blend in ("poisson_blend", "smooth_blend"):
        for images in SEARCHED:
            build = functools.partial(blending, blend, images)
            found.append(Workload(f"{blend}, {images} images", build, images // n, None, "a round"))
    return found


def training_step(config: TrainConfig, mesh: Mesh) -> Lowerable:
    """Builds the training step as the training loop compiles it."""
    step = jit_step(dj.make_train_step, config, mesh)
    state = jax.eval_shape(lambda key: dj.init_state(config, key), _key())
    return step, (state, jax.ShapeDtypeStruct((config.images_per_step, *config.image_shape), "uint8"), _key())


def search(preset: str, images: int, mesh: Mesh) -> Lowerable:
    """Builds `inpaint` after its checks, including the blend. `preset` is "default" or one with an encoder."""
    train = networks.train_config(WIDTH, 64, "float32")
    if preset == "default":
        config = dj.InpaintConfig()
        prior = jax.eval_shape(lambda key: dj.prior_from_state(dj.init_state(train, key), train), _key())
    else:
        config, learn = dj.InpaintConfig.preset(preset), EncoderConfig(model=train.model)
        prior = jax.eval_shape(lambda key: encoder_prior(encoder.init_state(learn, key), learn), _key())
    everywhere, split = sharding.replicated(mesh), sharding.along_batch(mesh)
    pixels, hole, keys = (
        _placed(split, jax.ShapeDtypeStruct((images, *shape), dtype))
        for shape, dtype in (((64, 64, 3), "float32"), ((64, 64), bool), ((), _key().dtype))
    )
    return inpaint_batch, (_placed(everywhere, prior), pixels, hole, keys, config, None)


def blending(name: str, images: int, mesh: Mesh) -> Lowerable:
    """Builds `poisson_blend` or `smooth_blend` with a hole per image."""
    blend = {"poisson_blend": poisson.poisson_blend, "smooth_blend": smooth.smooth_blend}[name]
    pixels, hole = jax.ShapeDtypeStruct((images, 64, 64, 3), "float32"), jax.ShapeDtypeStruct((images, 64, 64), bool)
    return jax.jit(blend), tuple(_placed(sharding.along_batch(mesh), x) for x in (pixels, pixels, hole))


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _placed(where: Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
