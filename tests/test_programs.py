"""What is read out of compiled programs, against answers by hand, and what an H100 would be given to multiply."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import dcgan_jax as dj
from benchmarks import absent_devices, hlo, networks, programs
from benchmarks.compiled import Counts, Kernel, Program
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.search import init, step


@pytest.fixture(scope="module", autouse=True)
def compiled_as_users_compile():
    """The processes that compile for other devices take none of the tests' own settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
        patch.delenv("JAX_DEFAULT_MATMUL_PRECISION")
        yield


def counted(body: str, others: str = "", platform: str = "cuda") -> Counts:
    """Counts a program of which `body` are the lines of ENTRY."""
    return Program(f"HloModule test\n{others}\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n", platform).count()


def gflop(counts: Counts) -> float:
    return sum(counts.flop.values()) / 1e9


# A layer between [2, 8, 8, 3] and [2, 4, 4, 16]: every map of it takes 25 taps at the 16 small places of two images.
LAYER = 2 * (2 * 16) * 25 * 3 * 16


@pytest.mark.parametrize(
    "target, result, first, second",
    [
        ("convForward", "f32[2,4,4,16]", "f32[2,11,11,3]", "f32[16,5,5,3]"),
        ("convBiasActivationForward", "f32[2,4,4,16]", "f32[2,11,11,3]", "f32[16,5,5,3]"),
        ("convBackwardInput", "f32[2,11,11,3]", "f32[2,4,4,16]", "f32[16,5,5,3]"),
        ("convBackwardFilter", "f32[16,5,5,3]", "f32[2,11,11,3]", "f32[2,4,4,16]"),
    ],
)
def test_a_convolution_of_cudnn(target, result, first, second):
    found = counted(f"""
      %a = {first}{{3,2,1,0}} parameter(0)
      %b = {second}{{3,2,1,0}} parameter(1)
      ROOT %c = ({result}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %b), window={{size=5x5 stride=2x2}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn${target}", backend_config={{"operation_queue_id":"0"}}
    """)  # fmt: skip # noqa: E501
    assert found.flop == {"f32": LAYER}
    assert found.bytes == 4 * (2 * 11 * 11 * 3 + 16 * 5 * 5 * 3 + 2 * 4 * 4 * 16)
    assert [kernel.kind for kernel in found.kernels] == [f"__cudnn${target}"]


def test_images_for_kernels_are_counted_dense():
    """4×4 → 8×8 as it was found in a training step: 7×7 taps at 8×8 places, 7.84 times what the layer asks for."""
    found = counted("""
      %a = f32[256,14,14,512]{3,2,1,0} parameter(0)
      %b = f32[128,7,7,512]{3,2,1,0} parameter(1)
      %c = (f32[256,8,8,128]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=7x7 rhs_reversal=1x1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
    """)  # fmt: skip # noqa: E501
    assert found.flop["f32"] == 2 * 256 * 64 * 128 * 49 * 512 == pytest.approx(7.84 * 2 * 128 * 16 * 25 * 256 * 512)


UP = "window={size=5x5 pad=3_2x3_2 lhs_dilate=2x2 rhs_reversal=1x1}, dim_labels=b01f_01oi->b01f"


def test_a_plain_convolution():
    lines = f"""
      %a = bf16[2,4,4,16] parameter(0)
      %b = bf16[5,5,3,16] parameter(1)
      ROOT %c = bf16[2,8,8,3] convolution(%a, %b), {UP}
    """
    assert counted(lines).flop == {"bf16": 4 * LAYER}  # at each of 8×8 places all taps, of which most meet zeros
    pairs = sum((m + k - 3) % 2 == 0 and 0 <= m + k - 3 < 8 for m in range(8) for k in range(5))
    assert counted(lines, platform="tpu").flop == {"bf16": 2 * 2 * pairs**2 * 16 * 3}  # those on pixels alone
    a_product = "%a = f32[6,5] parameter(0)\n%b = f32[5,4] parameter(1)\n%c = f32[6,4] convolution(%a, %b), "
    assert counted(a_product + "dim_labels=bf_io->bf", platform="tpu").flop == {"f32": 2 * 6 * 4 * 5}


def test_the_text_of_xla_itself_is_read():
    """XLA's own count has the taps on pixels alone; what it compiles is read as it stands."""

    def run(x, kernel, y):
        up = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((3, 2), (3, 2)), (2, 2), (1, 1), ("NHWC", "HWOI", "NHWC"))
        return up, x.reshape(2, -1) @ y

    lowered = jax.jit(run).lower(jnp.ones((2, 8, 8, 16)), jnp.ones((5, 5, 3, 16)), jnp.ones((1024, 7)))
    pairs = sum((m + k - 3) % 2 == 0 and 0 <= m + k - 3 < 16 for m in range(16) for k in range(5))
    product = 2 * 2 * 1024 * 7
    analysis = lowered.cost_analysis()
    assert analysis is not None and analysis["flops"] == 2 * 2 * pairs**2 * 16 * 3 + product
    text = lowered.compile().as_text()
    assert text is not None
    assert Program(text, "cpu").count().flop == {"f32": 2 * 2 * 16 * 16 * 25 * 16 * 3 + product}
    assert Program(text, "tpu").count().flop == {"f32": analysis["flops"]}


def test_products_of_matrices():
    found = counted(
        """
      %a = f32[64,100]{1,0} parameter(0)
      %b = f32[100,32]{1,0} parameter(1)
      %c = (f32[64,32]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
      %d = f32[64,32]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
      ROOT %e = f32[8,32,32]{2,1,0} dot(%x, %y), lhs_batch_dims={0}, lhs_contracting_dims={2,3}, rhs_batch_dims={0}, rhs_contracting_dims={2,3}
      %x = f32[8,32,5,7]{3,2,1,0} parameter(2)
      %y = f32[8,32,5,7]{3,2,1,0} parameter(3)
    """,  # noqa: E501
        """
%gemm (p: f32[64,100], q: f32[100,32]) -> f32[64,32] {
  %p = f32[64,100]{1,0} parameter(0)
  %q = f32[100,32]{1,0} parameter(1)
  %r = bf16[64,100]{1,0} convert(%p)
  %s = bf16[100,32]{1,0} convert(%q)
  ROOT %t = f32[64,32]{1,0} dot(%r, %s), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
""",
    )
    assert found.flop == {"f32": 2 * 64 * 32 * 100 + 2 * 8 * 32 * 32 * 35, "bf16": 2 * 64 * 32 * 100}
    assert len(found.kernels) == 3


FUSIONS = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

%fused_reduce (p: f32[64,100]) -> f32[100] {
  %p = f32[64,100]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %sum = f32[100]{0} reduce(%p, %zero), dimensions={0}, to_apply=%add, metadata={op_name="jit(step)/jvp(Generator)/norm_2/reduce_sum"}
}

%fused_slice (p: f32[64,100], i: s32[]) -> f32[1,100] {
  %p = f32[64,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %none = s32[] constant(0)
  ROOT %row = f32[1,100]{1,0} dynamic-slice(%p, %i, %none), dynamic_slice_sizes={1,100}
}

%fused_write (p: f32[64,100], q: f32[1,100], i: s32[]) -> f32[64,100] {
  %p = f32[64,100]{1,0} parameter(0)
  %q = f32[1,100]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %new = f32[64,100]{1,0} dynamic-update-slice(%p, %q, %i, %none)
}
"""  # noqa: E501


def test_bytes_of_kernels():
    found = counted(
        """
      %a = f32[64,100]{1,0} parameter(0)
      %i = s32[] parameter(1)
      %sum = f32[100]{0} fusion(%a), kind=kInput, calls=%fused_reduce
      %row = f32[1,100]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused_slice
      %new = f32[64,100]{1,0} fusion(%a, %row, %i), kind=kLoop, calls=%fused_write
      %half = bf16[64,100]{1,0} convert(%a)
      %square = f32[64,100]{1,0} multiply(%a, %a)
      %both = (f32[100]{0}, /*index=1*/f32[1,100]{1,0}) tuple(%sum, %row)
      ROOT %first = f32[100]{0} get-tuple-element(%both), index=0
    """,
        FUSIONS,
    )
    sizes = {kernel.name: kernel.bytes for kernel in found.kernels}
    whole, row = 4 * 64 * 100, 400
    expected = {"sum": whole + row, "row": row + 4 + row, "new": row + 4 + row}
    assert sizes == expected | {"half": whole * 3 / 2, "square": 2 * whole}
    assert found.norm_reductions == 1


def test_loops_and_branches():
    others = (
        FUSIONS
        + """
%body (p: (s32[], f32[64,100])) -> (s32[], f32[64,100]) {
  %p = (s32[], f32[64,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %a = f32[64,100]{1,0} get-tuple-element(%p), index=1
  %b = f32[100,100]{1,0} constant({...})
  %c = f32[64,100]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[64,100]{1,0}) tuple(%i, %c)
}

%cheap (p: f32[64,100]) -> f32[100] {
  %p = f32[64,100]{1,0} parameter(0)
  ROOT %sum = f32[100]{0} fusion(%p), kind=kInput, calls=%fused_reduce
}

%dear (p: f32[64,100]) -> f32[100] {
  %p = f32[64,100]{1,0} parameter(0)
  %q = f32[100,64]{1,0} transpose(%p), dimensions={1,0}
  %r = f32[100,100]{1,0} dot(%q, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %sum = f32[100]{0} reduce(%r, %r), dimensions={0}, to_apply=%add
}

%commands (p: f32[64,100]) -> f32[64,100] {
  %p = f32[64,100]{1,0} parameter(0)
  ROOT %copy = f32[64,100]{1,0} copy(%p)
}
"""
    )
    found = counted(
        """
      %a = f32[64,100]{1,0} parameter(0)
      %i = s32[] constant(0)
      %t = (s32[], f32[64,100]{1,0}) tuple(%i, %a)
      %w = (s32[], f32[64,100]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}
      %v = (s32[], f32[64,100]{1,0}) while(%w), condition=%cond, body=%body
      %b = f32[64,100]{1,0} get-tuple-element(%v), index=1
      %c = f32[64,100]{1,0} call(%b), to_apply=%commands
      ROOT %d = f32[100]{0} conditional(%i, %c, %c), branch_computations={%cheap, %dear}
    """,  # noqa: E501
        others,
    )
    assert [loop.rounds for loop in found.loops] == [7, None]
    assert found.loops[0].body.flop == {"f32": 2 * 64 * 100 * 100}
    assert [kernel.kind for kernel in found.kernels] == ["copy", "transpose", "dot", "reduce"]
    assert found.whole().flop == {"f32": 8 * 2 * 64 * 100 * 100 + 2 * 100 * 100 * 64}
    assert len(found.kernels) == 4 and len(found.whole().kernels) == 12


def test_what_collectives_send():
    found = counted("""
      %x = f32[5,5,64,128]{3,2,1,0} parameter(0)
      %y = f32[10]{0} parameter(1)
      %z = bf16[3]{0} parameter(2)
      %all-reduce.1 = f32[5,5,64,128]{3,2,1,0} all-reduce(%x), channel_id=1, to_apply=%add
      %all-reduce.2 = (f32[10]{0}, bf16[3]{0}) all-reduce-start(%y, %z), channel_id=2, to_apply=%add
      %done = (f32[10]{0}, bf16[3]{0}) all-reduce-done(%all-reduce.2)
      %gather = (f32[10]{0}, f32[80]{0}) all-gather-start(%y), dimensions={0}
      %gathered = f32[80]{0} all-gather-done(%gather)
      ROOT %scatter = f32[5,5,64,16]{3,2,1,0} reduce-scatter(%x), dimensions={3}, to_apply=%add
    """)
    kernel = 4 * 25 * 64 * 128
    assert found.collectives == {"all-reduce": [kernel, 46], "all-gather": [320], "reduce-scatter": [kernel]}
    assert len(found.kernels) == 4


def test_arrays_of_a_tpu_lie_in_tiles_and_cost_nothing_on_the_chip():
    tiled, on_chip = hlo.arrays("(bf16[128,64,64,3]{0,3,2,1:T(4,128)(2,1)}, f32[3,512]{1,0:T(4,128)S(1)})")
    assert (tiled.stored, tiled.elements) == (128 * 64 * 64 * 4, 128 * 64 * 64 * 3)
    assert (on_chip.space, on_chip.bytes) == (1, 4 * 4 * 512)
    found = counted(
        """
      %a = f32[512,256]{1,0:T(8,128)} parameter(0)
      %b = (f32[512,256]{1,0:T(8,128)S(1)}, f32[512,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
      %c = f32[512,256]{1,0:T(8,128)S(1)} copy-done(%b)
      %d = ((f32[512,256]{1,0:T(8,128)}), f32[8,256]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:8], [0:256]}
      %e = f32[8,256]{1,0:T(8,128)S(1)} slice-done(%d)
      ROOT %f = f32[512,256]{1,0:T(8,128)S(1)} negate(%c)
    """,  # noqa: E501
        platform="tpu",
    )
    assert [kernel.bytes for kernel in found.kernels] == [4 * 512 * 256, 4 * 8 * 256, 0]


def test_the_least_time_is_the_datasheets():
    counts = Counts([Kernel("a", "dot", "", 3.35e9, {"f32": 494.5e9, "bf16": 989e9}, False)])
    assert programs.least_seconds(counts, absent_devices.TARGETS["h100"]) == pytest.approx(2e-3)
    counts.collectives["all-reduce"] = [450e6]
    assert programs.least_seconds(counts, absent_devices.TARGETS["h100x8"]) == pytest.approx(2e-3 + 2 * 7 / 8 * 1e-3)


def test_a_table_for_each_target_and_a_row_for_each_program(tmp_path):
    machine = {"revision": "abc", "versions": {"jax": "1"}}
    step = {"target": "h100", "program": "a step", "images": 64, "gflop": 250.0, "asked_gflop": 125.0, "ratio": 2.0}
    step |= {"bytes": 2e9, "collectives": {}, "kernels": 31, "norm_reductions": 7}
    step |= {"predicted_least_milliseconds": 1.25, "compile_seconds": 9.2, "peak_bytes": 5e8}
    failed = {"target": "v5e", "program": "a step", "error": "no such topology"}
    search = step | {"program": "search, best, 64 images", "error": "out of memory"}
    programs.write([step, failed, search], machine, tmp_path)
    # What is counted again replaces its own rows, a failure's too, and keeps the others with their revision.
    again = [search | {"program": f"search, best, 64 images: {part}", "error": None} for part in ("a step", "the rest")]
    for found in again:
        del found["error"]
    programs.write([*again, step | {"kernels": 30}], machine | {"revision": "def"}, tmp_path)
    first, second = (tmp_path / "programs.md").read_text().split("TPU v5e 2×4 (jax 1, revision abc):")
    assert first.startswith("one H100 (jax 1, revision def):")
    assert "| a step | 250 | 125 | 2.00 | 2 | 31.2 | 0.5 | 30 | 7 | 1.25 | 9 |" in first
    assert "out of memory" not in first and first.count("search, best, 64 images: ") == 2
    assert "collectives" not in first and "| a step | no such topology |" in second
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- programs -->\nold\n<!-- end of programs -->\nbelow\n")
    programs.into_readme("new\n", readme)
    new = "above\n<!-- programs -->\nnew\n<!-- end of programs -->\nbelow\n"
    assert readme.read_text() == new


def test_a_blend_for_pretended_devices():
    turn, rest = programs.run("cpu", "poisson_blend, 64", lambda line: None)
    assert turn["program"].endswith("a round") and rest["program"].endswith("the rest")
    assert turn["images"] == 8 and not turn["collectives"]
    image = 4 * 8 * 64 * 64 * 3
    assert turn["peak_bytes"] > 3 * image and min(turn["bytes"], rest["bytes"]) > 2 * image


def asked_of(function, *arguments) -> float:
    """GFLOP of the convolutions and the dense layers that differentiation leaves, by walking the traced program."""

    def walk(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            name, inputs, output = equation.primitive.name, equation.invars, equation.outvars[0].aval
            if name in ("conv_down", "conv_up", "conv_kernel"):
                small = {"conv_down": output, "conv_up": inputs[0].aval, "conv_kernel": inputs[-1].aval}[name]
                kernel = output if name == "conv_kernel" else inputs[1].aval
                total += 2 * small.shape[0] * small.shape[1] * small.shape[2] * kernel.size
            elif name == "dot_general":
                (axes, _), _ = equation.params["dimension_numbers"]
                summed = 1
                for axis in axes:
                    summed *= inputs[0].aval.shape[axis]
                total += 2 * output.size * summed
            inner = [x for x in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
            parts = [walk(getattr(x, "jaxpr", x)) for x in inner]
            total += max(parts, default=0) if name == "cond" else sum(parts)
        return total

    return walk(jax.make_jaxpr(function)(*arguments).jaxpr) / 1e9


def _is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


@pytest.mark.parametrize(
    "shape, options",
    [
        ({}, {}),
        ({"image_size": 32}, {"loss": "hinge"}),
        ({}, {"discriminator_steps": 2}),
        ({}, {"r1": 1.0}),
        ({"num_classes": 10}, {}),
    ],
)
def test_what_a_training_step_asks_for(shape, options):
    model = dj.ModelConfig(base_width=8, **shape)
    config = dj.TrainConfig(model=model, batch_size=4, **options)
    state = jax.eval_shape(lambda key: dj.init_state(config, key), jax.random.key(0))
    batch = jax.ShapeDtypeStruct((config.images_per_step, *config.image_shape), "uint8")
    if model.num_classes:
        batch = batch, jax.ShapeDtypeStruct((config.images_per_step,), "int32")
    found = asked_of(dj.make_train_step(config), state, batch, jax.random.key(0))
    assert networks.gflop_train_step(config, penalised=config.r1 > 0) == pytest.approx(found, rel=3e-3)


@pytest.mark.parametrize("config", [dj.InpaintConfig(), dj.InpaintConfig(refine_steps=2)])
def test_what_a_search_step_asks_for(config):
    train = networks.train_config(8, 64, "float32")
    prior = jax.eval_shape(lambda key: dj.prior_from_state(dj.init_state(train, key), train), jax.random.key(0))

    def one_step(prior, image, weights, latent):
        return step(prior, config, Problem(image, weights), init(config, Point(latent)))

    found = asked_of(one_step, prior, jnp.zeros((64, 64, 3)), jnp.zeros((64, 64)), jnp.zeros(100))
    assert networks.gflop_search_step(train) == pytest.approx(found, rel=2e-3)


@pytest.fixture(scope="module")
def h100():
    """What one H100 would multiply: each layer's maps, by `tests/h100_layers.py`."""
    needs_h100()
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "h100_layers.py")]
    printed = subprocess.run(command, env=absent_devices.environment("h100"), capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr[-2000:]
    return {tuple(layer["layer"]): layer for layer in map(json.loads, printed.stdout.splitlines())}


def needs_h100() -> None:
    wheels = absent_devices.missing("h100")
    if wheels:
        pytest.skip(f"{wheels} is not installed: pip install -e '.[devices]'")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_an_h100_multiplies_what_the_layers_ask_for(h100, dtype, width, size):
    """The three maps of all layers of a network: no more than 1.05 times 25 taps at each place of the smaller image."""
    model = dj.ModelConfig(base_width=width, image_size=size)
    layers = [h100[dtype, *layer] for layer in networks.layers(model)]
    asked = sum(3 * layer["asked"] for layer in layers)
    multiplied = sum(sum(layer["multiplied"].values()) for layer in layers)
    ratios = [
        f"{side}×{side}, {outer} and {inner} channels, {name}: {flop / layer['asked']:.2f}"
        for layer in layers
        for (_, side, outer, inner), parts in [(layer["layer"], layer["multiplied"])]
        for name, flop in parts.items()
    ]
    assert multiplied <= 1.05 * asked, f"{multiplied / asked:.2f} times; " + "; ".join(ratios)


@pytest.mark.parametrize(
    ("devices", "program"),
    [
        ("h100", "training step, float32, 64 a device"),
        ("h100", "training step, bfloat16, 64 a device"),
        ("h100", "search, default, 64"),
        ("h100x8", "training step, float32, 64 a device"),
    ],
)
def test_an_h100_multiplies_what_a_step_asks_for(devices, program):
    needs_h100()
    records = programs.run(devices, program, lambda line: None)
    assert "error" not in records[0], records
    assert records[0]["ratio"] <= 1.05, f"{records[0]['program']}: {records[0]['ratio']:.2f} times"
