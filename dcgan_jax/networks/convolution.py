"""Stride-2 convolutions, down and up. Each platform computes them by the algorithm that is fastest there.

Along each axis, `conv_down` computes y[i] = Σ_k x[2i + k − 1] w[k] over five taps k (padding "SAME"). `conv_up` is its
transpose: x[m] = Σ_{2i + k − 1 = m} y[i] w[k].

The scalar product ⟨down(x, w), y⟩ is linear in the large image x, the kernel w and the small image y. Its gradients
with respect to x, w and y are three maps: `up(y, w)`, the kernel gradient of x and y, and `down(x, w)`. Each map is
linear in both arguments, and its transposes are the other two maps. So each map is a JAX primitive: `jvp`, `grad` and
`vmap` work in any order, and every derivative is again one of the three maps in its fast form. There are two
exceptions. XLA computes the derivatives of a `vmap` over kernels. A gradient inside `shard_map` needs
`check_vma=False`.

| platform | form |
|---|---|
| TPUs, AMD GPUs | XLA's convolution and its transposes (`direct.py`) |
| NVIDIA GPUs | the same; for images smaller than the kernel, `small_images.py` |
| CPUs, few channels | direct convolutions, with special forms of `up` and the kernel gradient (`direct.py`) |
| CPUs, many channels | Winograd's algorithm, along the height (`winograd_rows.py`) or both axes (`winograd.py`) |
| CPUs, precision "highest" | direct convolutions, which round less than Winograd's algorithm |

CPUs need special forms because XLA's are slow there. XLA computes the transpose as a convolution of an input dilated
with zeros (jax#23783). Inside a loop or a branch it has fast code for only one order of the axes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.core import ShapedArray
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, DTypeLike, Float

from dcgan_jax.networks import direct, small_images, winograd, winograd_rows
from dcgan_jax.networks.direct import KERNEL_SIZE

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_Form = Callable[[Array, Array], Array]
_Shape = tuple[int, ...]


def conv_down(
    x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"], platform: str | None = None
) -> Float[Array, "b h/2 w/2 o"]:
    """Convolves with stride 2, which halves height and width. The padding is "SAME", with zeros.

    Args:
        x: images with even sides.
        kernel: the kernel, of the same floating-point type.
        platform: "cpu", "cuda", "rocm" or "tpu" uses the form of this platform, also in derivatives. None uses the form
            of the platform that the program runs on.

    Raises:
        ValueError: height or width is odd, the channels of image and kernel differ, or a dtype is wrong.
    """
    _check(x, kernel, platform)
    if x.shape[1] % 2 or x.shape[2] % 2 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"`x` {x.shape} does not fit `kernel` {kernel.shape}: make height and width even and the channels "
            "(the last axis of `x`, the third of `kernel`) equal"
        )
    return _down_p.bind(x, kernel, platform=platform)


def conv_up(
    x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"], platform: str | None = None
) -> Float[Array, "b 2h 2w o"]:
    """Applies the transpose of `conv_down` with the same kernel, which doubles height and width.

    ⟨conv_up(x, k), y⟩ = ⟨x, conv_down(y, k)⟩.

    Args:
        x: images.
        kernel: the kernel, of the same floating-point type.
        platform: see `conv_down`.

    Raises:
        ValueError: the channels of image and kernel differ, or a dtype is wrong.
    """
    _check(x, kernel, platform)
    if x.shape[3] != kernel.shape[3]:
        raise ValueError(f"`x` {x.shape} does not fit `kernel` {kernel.shape}: make their last axes equal")
    return _up_p.bind(x, kernel, platform=platform)


def _check(x: Array, kernel: Array, platform: str | None) -> None:
    if platform not in (None, *PLATFORMS):
        raise ValueError(f"`platform` is {platform!r}; it takes {', '.join(PLATFORMS)} or None")
    if jnp.ndim(x) != 4 or jnp.ndim(kernel) != 4 or kernel.shape[:2] != (KERNEL_SIZE, KERNEL_SIZE):
        raise ValueError(
            f"`x` is {jnp.shape(x)} and `kernel` {jnp.shape(kernel)}; they take [b, h, w, c] and [5, 5, a, b]"
        )
    if not (jnp.issubdtype(x.dtype, jnp.floating) and x.dtype == kernel.dtype):
        raise ValueError(f"`x` is {x.dtype} and `kernel` {kernel.dtype}; they take floats of one type")


def _cuda_up(y: Array, kernel: Array) -> Array:
    if not _is_small(y):
        return direct.up(y, kernel)
    # `up_in_phases` needs four matrix products with one row for each pixel. An H100 gives each of its 132 processors
    # about 128 rows and 128 of 256 channels, so it needs about 8,000 rows to be busy. The single product of
    # `small_images` needs fewer rows, but writes more data. The limit was computed, not measured. If the batch is split
    # over devices, the pixels on all devices are counted.
    pixels = y.shape[0] * y.shape[1] * y.shape[2]
    if export.is_symbolic_dim(pixels):  # in an exported program, the length is known when it is compiled
        return lax.cond(jnp.asarray(pixels) <= 2**13, small_images.up, direct.up_in_phases, y, kernel)
    return (small_images.up if pixels <= 2**13 else direct.up_in_phases)(y, kernel)


def _cuda_kernel(x: Array, y: Array) -> Array:
    kernel = (small_images.kernel_gradient if _is_small(y) else direct.kernel_gradient)(x, y)
    # cuDNN stores the result with another order of axes. XLA would use that order in the optimiser too, and copy all
    # arrays of the optimiser to that order and back.
    return with_layout_constraint(kernel, Layout(major_to_minor=(0, 1, 2, 3)))


def _is_small(y: Array) -> bool:
    return min(y.shape[1:3]) < KERNEL_SIZE


def _cpu_down(x: Array, kernel: Array) -> Array:
    return _CPU_FORMS[_cpu_form(x.shape, kernel.shape[3], x.dtype)][0](x, kernel)


def _cpu_up(y: Array, kernel: Array) -> Array:
    large = (y.shape[0], 2 * y.shape[1], 2 * y.shape[2], kernel.shape[2])
    form = _cpu_form(large, y.shape[3], y.dtype)
    if form == "rows" and large[1] == 2 * winograd_rows.ROWS:
        # With a single tile the convolutions are too short: from 4×4×512 to 8×8×256 they take 40 ms instead of 21 ms.
        form = "rows and columns" if large[2] % 4 == 0 and large[3] * y.shape[3] >= 2**15 else "direct"
    return _CPU_FORMS[form][1](y, kernel)


def _cpu_kernel(x: Array, y: Array) -> Array:
    return _CPU_FORMS[_cpu_form(x.shape, y.shape[3], x.dtype)][2](x, y)


def _cpu_form(large: _Shape, channels: int, dtype: DTypeLike) -> str:
    """Chooses the fastest form for a layer, as measured on two cores with AVX-512 at widths 32, 64 and 128.

    Under `jax.default_matmul_precision("highest")` it chooses the form with the least rounding.

    Winograd's algorithm needs fewer multiplications but more additions. The multiplications grow with the product of
    the two numbers of channels, the additions with their sum. So the direct forms are faster for few channels.

    Args:
        large: shape of the large image.
        channels: channels of the small image.
        dtype: type of both images.
    """
    if jax.config.values["jax_default_matmul_precision"] in ("highest", "float32"):  # two names of one
        return "direct"
    _, height, width, others = large
    # In bfloat16, XLA computes convolutions in float32, but matrix products in bfloat16.
    is_16_bit = jnp.finfo(dtype).bits < 32
    if not is_16_bit and height % (2 * winograd_rows.ROWS) == 0 and others * channels >= 2**11:
        return "rows"
    if height % 4 == 0 and width % 4 == 0 and others * channels >= 2**15:
        return "rows and columns"
    return "direct"


# form -> its three maps: down, up, kernel gradient
_CPU_FORMS: dict[str, tuple[_Form, _Form, _Form]] = {
    "direct": (direct.down, direct.up_in_phases, direct.kernel_gradient_in_order),
    "rows": (winograd_rows.down, winograd_rows.up, winograd_rows.kernel_gradient),
    "rows and columns": (winograd.down, winograd.up, winograd.kernel_gradient),
}


def _primitive(name: str, forms: dict[str, _Form], shape: Callable[[_Shape, _Shape], _Shape]) -> Primitive:
    """Makes a primitive that uses the form of the platform that it runs on, or of its parameter `platform`.

    Args:
        name: the name of the primitive.
        forms: platform -> form; "" stands for all other platforms.
        shape: (shape of the first argument, shape of the second) -> shape of the result.
    """
    primitive = Primitive(name)

    def rule(a: Array, b: Array, *, platform: str | None) -> Array:
        if platform is not None:
            return forms.get(platform, forms[""])(a, b)
        own = {name: form for name, form in forms.items() if name}
        return lax.platform_dependent(a, b, **own, default=forms[""])

    def abstract(a: ShapedArray, b: ShapedArray, *, platform: str | None) -> ShapedArray:
        if a.dtype != b.dtype or a.ndim != 4 or b.ndim != 4:
            raise ValueError(f"{name} takes two arrays of four axes and one type; it got {a} and {b}")
        return ShapedArray(shape(a.shape, b.shape), a.dtype)

    def batch(
        arguments: tuple[Array, Array], axes: tuple[int | None, int | None], *, platform: str | None
    ) -> tuple[Any, int]:
        (a, b), (a_axis, b_axis) = arguments, axes
        if a_axis is not None and b_axis is None and primitive is not _kernel_p:
            # With a single kernel, the mapped axis only adds images to the batch.
            a = jnp.moveaxis(a, a_axis, 0)
            out = primitive.bind(a.reshape(-1, *a.shape[2:]), b, platform=platform)
            return out.reshape(*a.shape[:2], *out.shape[1:]), 0
        return jax.vmap(functools.partial(rule, platform=platform), axes)(a, b), 0

    primitive.def_impl(jax.jit(rule, static_argnames="platform"))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


_down_p = _primitive("conv_down", {"": direct.down, "cpu": _cpu_down}, lambda x, k: (x[0], x[1] // 2, x[2] // 2, k[3]))
_up_p = _primitive(
    "conv_up",
    {"": direct.up, "cpu": _cpu_up, "cuda": _cuda_up},
    lambda y, k: (y[0], y[1] * 2, y[2] * 2, k[2]),
)
_kernel_p = _primitive(
    "conv_kernel",
    {"": direct.kernel_gradient, "cpu": _cpu_kernel, "cuda": _cuda_kernel},
    lambda x, y: (KERNEL_SIZE, KERNEL_SIZE, x[3], y[3]),
)
ad.defbilinear(_down_p, lambda y, _, k, **p: _up_p.bind(y, k, **p), lambda y, x, _, **p: _kernel_p.bind(x, y, **p))
ad.defbilinear(_up_p, lambda x, _, k, **p: _down_p.bind(x, k, **p), lambda x, y, _, **p: _kernel_p.bind(x, y, **p))
ad.defbilinear(_kernel_p, lambda k, _, y, **p: _up_p.bind(y, k, **p), lambda k, x, _, **p: _down_p.bind(x, k, **p))
