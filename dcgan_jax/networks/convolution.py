"""Stride-2 convolutions, down and up, in the form that is fast on the backend they run on.

A 5×5 stride-2 convolution reads y[i] = Σ_k x[2i + k − 1] w[k] in each direction (padding "SAME"), and its transpose
x[m] = Σ_{2i + k − 1 = m} y[i] w[k]. With ⟨down(x, w), y⟩ as a trilinear form of large image x, kernel w and small
image y there are three maps: `down(x, w)`, `up(y, w)` and the kernel gradient. Each is linear in both its arguments and
the two others are its transposes, so the three are primitives of their own: `jvp`, `grad` and `vmap` work in any order,
and derivatives are again among the three, in the form chosen here (but for a derivative of a `vmap` over kernels, which
is XLA's; and a gradient inside `shard_map` wants its `check_vma=False`).

GPUs and TPUs get what XLA makes of a plain convolution and its derivatives. NVIDIA's GPUs have forms of their own for
images smaller than the kernel (`small_images.py`).

On CPUs XLA's are slow. It computes the transpose as a convolution over an input dilated with zeros (jax#23783), and
inside a loop or a branch it has fast code for one order of the axes only. So on a CPU `up` is four stride-1
convolutions. Between many channels all three maps are Winograd's, over the rows (`winograd_rows.py`) or over rows and
columns (`winograd.py`).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from dcgan_jax.networks import small_images, winograd, winograd_rows

KERNEL_SIZE = 5
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# By parity of the output row or column: the taps it meets, from the earliest input to the latest, and the padding.
_TAPS = (slice(3, None, -2), slice(4, None, -2))  # taps 3, 1 and 4, 2, 0
_PADDING = ((1, 0), (1, 1))


def conv_down(
    x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"], platform: str | None = None
) -> Float[Array, "b h/2 w/2 o"]:
    """Convolves with stride 2 and halves height and width (padding "SAME", zeros).

    Args:
        x: images with even sides.
        kernel: of the same floating type.
        platform: whose form to compute, derivatives included: "cpu", "cuda", "rocm" or "tpu"; None, the form of the
            platform that the program runs on.

    Raises:
        ValueError: height or width is odd, or the channels of image and kernel differ.
    """
    _check(x, kernel, platform)
    if x.shape[1] % 2 or x.shape[2] % 2 or x.shape[3] != kernel.shape[2]:
        raise ValueError(f"`x` {x.shape} does not fit `kernel` {kernel.shape}: sides must be even, channels agree")
    return _down_p.bind(x, kernel, platform=platform)


def conv_up(
    x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"], platform: str | None = None
) -> Float[Array, "b 2h 2w o"]:
    """The transpose of `conv_down` with the same kernel: doubles height and width.

    ⟨conv_up(x, k), y⟩ = ⟨x, conv_down(y, k)⟩. `platform` is that of `conv_down`.

    Raises:
        ValueError: the channels of image and kernel differ.
    """
    _check(x, kernel, platform)
    if x.shape[3] != kernel.shape[3]:
        raise ValueError(f"`x` {x.shape} does not fit `kernel` {kernel.shape}: the last axes must agree")
    return _up_p.bind(x, kernel, platform=platform)


def _check(x, kernel, platform):
    if platform not in (None, *PLATFORMS):
        raise ValueError(f"`platform` is {platform!r}; it takes {', '.join(PLATFORMS)} or None")
    if jnp.ndim(x) != 4 or jnp.ndim(kernel) != 4 or kernel.shape[:2] != (KERNEL_SIZE, KERNEL_SIZE):
        raise ValueError(
            f"`x` is {jnp.shape(x)} and `kernel` {jnp.shape(kernel)}; they take [b, h, w, c] and [5, 5, a, b]"
        )
    if not (jnp.issubdtype(x.dtype, jnp.floating) and x.dtype == kernel.dtype):
        raise ValueError(f"`x` is {x.dtype} and `kernel` {kernel.dtype}; they take floats of one type")


def _down(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, window_strides=(2, 2), padding=((1, 2), (1, 2)), dimension_numbers=_DIMENSIONS
    )


def _up(y, kernel):
    large = jax.ShapeDtypeStruct((y.shape[0], 2 * y.shape[1], 2 * y.shape[2], kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: _down(x, kernel), large)(y)[0]


def _kernel(x, y):
    """Σ x[2i + k − 1] y[i] over images and places: the gradient of ⟨down(x, w), y⟩ in w."""
    kernel = jax.ShapeDtypeStruct((KERNEL_SIZE, KERNEL_SIZE, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _down(x, kernel), kernel)(y)[0]


def _cuda_up(y, kernel):
    if not _is_small(y):
        return _up(y, kernel)
    # In phases each of the four products has one row a pixel. An H100 has 132 processors and gives each some 128 rows
    # and 128 of 256 channels, so it wants 8,000 rows. One product for all taps fills it with fewer, but writes more.
    # This was computed, not measured. Where a batch is split over devices, its pixels on all of them count.
    pixels = y.shape[0] * y.shape[1] * y.shape[2]
    return (small_images.up if pixels <= 2**13 else _up_in_phases)(y, kernel)


def _cuda_kernel(x, y):
    kernel = (small_images.kernel_gradient if _is_small(y) else _kernel)(x, y)
    # cuDNN makes it in an order of its own. XLA would carry that into the optimiser, and copy all its arrays there and
    # back.
    return with_layout_constraint(kernel, Layout(major_to_minor=(0, 1, 2, 3)))


def _is_small(y):
    return min(y.shape[1:3]) < KERNEL_SIZE


def _cpu_down(x, kernel):
    return _FORMS[_cpu_form(x.shape, kernel.shape[3], x.dtype)][0](x, kernel)


def _cpu_up(y, kernel):
    large = (y.shape[0], 2 * y.shape[1], 2 * y.shape[2], kernel.shape[2])
    form = _cpu_form(large, y.shape[3], y.dtype)
    if form == "rows" and large[1] == 2 * winograd_rows.ROWS:
        # Of a single tile the convolutions are too short: 40 ms in place of 21 ms from 4×4×512 to 8×8×256.
        form = "rows and columns" if large[2] % 4 == 0 and large[3] * y.shape[3] >= 2**15 else "plain"
    return _FORMS[form][1](y, kernel)


def _cpu_kernel(x, y):
    return _FORMS[_cpu_form(x.shape, y.shape[3], x.dtype)][2](x, y)


def _cpu_form(large, channels, dtype):
    """The fastest form on two cores with AVX-512, measured for every layer of widths 32, 64 and 128.

    Winograd's forms trade products for sums. The products grow with the product of the channels and the sums with their
    sum, so that between few channels the plain forms win.
    """
    _, height, width, others = large
    half = jnp.finfo(dtype).bits < 32  # XLA computes convolutions of bfloat16 in float32, products of matrices not
    if not half and height % (2 * winograd_rows.ROWS) == 0 and others * channels >= 2**11:
        return "rows"
    if height % 4 == 0 and width % 4 == 0 and others * channels >= 2**15:
        return "rows and columns"
    return "plain"


def _kernel_in_order(x, y):
    """`_kernel` as a convolution over images, with its axes in the order of every other one here.

    XLA brings them into that order by itself at the top level of a program only. In a branch or a loop it leaves them,
    and then computes the sums one by one, fifty times slower.
    """
    kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        y.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=((1, 2), (1, 2)),
        rhs_dilation=(2, 2),
        dimension_numbers=_DIMENSIONS,
    )
    return kernel.transpose(1, 2, 0, 3)


def _up_in_phases(y, kernel):
    """Four stride-1 convolutions, one for each parity of row and column, interleaved.

    An even m meets only the odd taps k = 1, 3 and an odd m only the even ones 0, 2, 4.
    """
    rows = []
    for row in range(2):
        columns = []
        for column in range(2):
            columns.append(
                lax.conv_general_dilated(
                    y,
                    kernel[_TAPS[row], _TAPS[column]].swapaxes(2, 3),
                    window_strides=(1, 1),
                    padding=(_PADDING[row], _PADDING[column]),
                    dimension_numbers=_DIMENSIONS,
                )
            )
        rows.append(jnp.stack(columns, axis=3))  # [b, h, w, 2, o]
    b, h, w, _, o = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, o)


# The three maps of each form for CPUs: down, up and the gradient in the kernel.
_FORMS = {
    "plain": (_down, _up_in_phases, _kernel_in_order),
    "rows": (winograd_rows.down, winograd_rows.up, winograd_rows.kernel_gradient),
    "rows and columns": (winograd.down, winograd.up, winograd.kernel_gradient),
}


def _primitive(name, forms, shape):
    """A primitive that computes the form of its platform, or of the one it is told.

    Args:
        forms: by platform; "" is what XLA makes of a plain convolution.
        shape: gives the output's shape from those of the arguments.
    """
    primitive = Primitive(name)

    def rule(a, b, *, platform):
        if platform is not None:
            return forms.get(platform, forms[""])(a, b)
        own = {name: form for name, form in forms.items() if name}
        return lax.platform_dependent(a, b, **own, default=forms[""])

    def abstract(a, b, *, platform):
        if a.dtype != b.dtype or a.ndim != 4 or b.ndim != 4:
            raise ValueError(f"{name} takes two arrays of four axes and one type; it got {a} and {b}")
        return ShapedArray(shape(a.shape, b.shape), a.dtype)

    def batch(arguments, axes, *, platform):
        (a, b), (a_axis, b_axis) = arguments, axes
        if b_axis is None and primitive is not _kernel_p:  # one kernel for all: the images are just more images
            a = jnp.moveaxis(a, a_axis, 0)
            out = primitive.bind(a.reshape(-1, *a.shape[2:]), b, platform=platform)
            return out.reshape(*a.shape[:2], *out.shape[1:]), 0
        return jax.vmap(functools.partial(rule, platform=platform), axes)(a, b), 0

    primitive.def_impl(jax.jit(rule, static_argnames="platform"))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


_down_p = _primitive("conv_down", {"": _down, "cpu": _cpu_down}, lambda x, k: (x[0], x[1] // 2, x[2] // 2, k[3]))
_up_p = _primitive(
    "conv_up", {"": _up, "cpu": _cpu_up, "cuda": _cuda_up}, lambda y, k: (y[0], y[1] * 2, y[2] * 2, k[2])
)
_kernel_p = _primitive(
    "conv_kernel",
    {"": _kernel, "cpu": _cpu_kernel, "cuda": _cuda_kernel},
    lambda x, y: (KERNEL_SIZE, KERNEL_SIZE, x[3], y[3]),
)
ad.defbilinear(_down_p, lambda y, _, k, **p: _up_p.bind(y, k, **p), lambda y, x, _, **p: _kernel_p.bind(x, y, **p))
ad.defbilinear(_up_p, lambda x, _, k, **p: _down_p.bind(x, k, **p), lambda x, y, _, **p: _kernel_p.bind(x, y, **p))
ad.defbilinear(_kernel_p, lambda k, _, y, **p: _up_p.bind(y, k, **p), lambda k, x, _, **p: _down_p.bind(x, k, **p))
