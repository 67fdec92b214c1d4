"""The counts that `benchmarks.compiled` reads from programs, against answers by hand and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo
from benchmarks.compiled import Counts, Program, text_of


def counted(body: str, others: str = "", platform: str = "cuda") -> Counts:
    """Counts a program with `body` in its entry and `others` as its other computations."""
    return Program(f"HloModule test\n{others}\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n", platform).count()


def gflop(counts: Counts) -> float:
    return sum(counts.flop.values()) / 1e9


# A layer between [2, 8, 8, 3] and [2, 4, 4, 16]: each map has 25 taps at the 16 small pixels of two images.
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
def test_a_convolution_of_cudnn(target: str, result: str, first: str, second: str) -> None:
    found = counted(f"""
      %a = {first}{{3,2,1,0}} parameter(0)
      %b = {second}{{3,2,1,0}} parameter(1)
      ROOT %c = ({result}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %b), window={{size=5x5 stride=2x2}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn${target}", backend_config={{"operation_queue_id":"0"}}
    """)  # fmt: skip # noqa: E501
    assert found.flop == {"f32": LAYER}
    assert found.bytes == 4 * (2 * 11 * 11 * 3 + 16 * 5 * 5 * 3 + 2 * 4 * 4 * 16)
    assert [kernel.kind for kernel in found.kernels] == [f"__cudnn${target}"]


def test_images_for_kernels_are_counted_dense() -> None:
    """4×4 → 8×8, from a real training step: 7×7 taps at 8×8 pixels, 7.84 times what the layer asks for."""
    found = counted("""
      %a = f32[256,14,14,512]{3,2,1,0} parameter(0)
      %b = f32[128,7,7,512]{3,2,1,0} parameter(1)
      %c = (f32[256,8,8,128]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), window={size=7x7 rhs_reversal=1x1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
    """)  # fmt: skip # noqa: E501
    assert found.flop["f32"] == 2 * 256 * 64 * 128 * 49 * 512 == pytest.approx(7.84 * 2 * 128 * 16 * 25 * 256 * 512)


UP = "window={size=5x5 pad=3_2x3_2 lhs_dilate=2x2 rhs_reversal=1x1}, dim_labels=b01f_01oi->b01f"


def test_a_plain_convolution() -> None:
    lines = f"""
      %a = bf16[2,4,4,16] parameter(0)
      %b = bf16[5,5,3,16] parameter(1)
      ROOT %c = bf16[2,8,8,3] convolution(%a, %b), {UP}
    """
    assert counted(lines).flop == {"bf16": 4 * LAYER}  # all taps at each of 8×8 pixels; most meet zeros
    pairs = sum((m + k - 3) % 2 == 0 and 0 <= m + k - 3 < 8 for m in range(8) for k in range(5))
    assert counted(lines, platform="tpu").flop == {"bf16": 2 * 2 * pairs**2 * 16 * 3}  # only the taps on pixels
    a_product = "%a = f32[6,5] parameter(0)\n%b = f32[5,4] parameter(1)\n%c = f32[6,4] convolution(%a, %b), "
    assert counted(a_product + "dim_labels=bf_io->bf", platform="tpu").flop == {"f32": 2 * 6 * 4 * 5}


def test_the_text_of_xla_itself_is_read() -> None:
    """The text that XLA writes is read. XLA's own count has only the taps on pixels, like a TPU's."""

    def run(x: jax.Array, kernel: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        up = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((3, 2), (3, 2)), (2, 2), (1, 1), ("NHWC", "HWOI", "NHWC"))
        return up, x.reshape(2, -1) @ y

    lowered = jax.jit(run).lower(jnp.ones((2, 8, 8, 16)), jnp.ones((5, 5, 3, 16)), jnp.ones((1024, 7)))
    pairs = sum((m + k - 3) % 2 == 0 and 0 <= m + k - 3 < 16 for m in range(16) for k in range(5))
    product = 2 * 2 * 1024 * 7
    analysis = lowered.cost_analysis()
    assert analysis is not None and analysis["flops"] == 2 * 2 * pairs**2 * 16 * 3 + product
    text = text_of(lowered.compile())
    assert Program(text, "cpu").count().flop == {"f32": 2 * 2 * 16 * 16 * 25 * 16 * 3 + product}
    assert Program(text, "tpu").count().flop == {"f32": analysis["flops"]}


def test_products_of_matrices() -> None:
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


def test_bytes_of_kernels() -> None:
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


def test_loops_and_branches() -> None:
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


def test_what_collectives_send() -> None:
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


def test_arrays_of_a_tpu_lie_in_tiles_and_cost_nothing_on_the_chip() -> None:
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
