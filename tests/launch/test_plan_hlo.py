"""The reader of HLO text: small modules written by hand, and real ones from the CPU's compiler."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.plan import collectives, costs, estimate
from launch.plan.hlo import Array, parse
from launch.plan.loops import executed, trip_count
from lsm.cost import CHIPS, collective_seconds
from lsm.cost.links import HOP

V5P, H100 = (next(chip for chip in CHIPS if chip.name == name) for name in ("v5p", "h100"))

LOOP = """HloModule loop, is_scheduled=true

%cond (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(START_LIMIT)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=DIRECTION
}

%body (q: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %q = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %c = s32[]{:T(128)S(6)} copy(%j)
  %k = s32[]{:T(128)} constant(STRIDE)
  %next = s32[]{:T(128)} add(%c, %k)
  %w = f32[16,16]{1,0:T(8,128)} constant({...})
  %dot = f32[8,16]{1,0:T(8,128)S(1)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%next, %dot)
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(BEGIN)
  %copy.1 = s32[]{:T(128)} copy(%zero)
  %in = (s32[]{:T(128)}, /*index=1*/f32[8,16]{1,0:T(8,128)}) tuple(%copy.1, %a)
  %loop = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%in), condition=%cond, body=%bodyMORE
  ROOT %out = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""

BRANCHES = """HloModule branches

body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %d = f32[8,8] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]) tuple(%next, %d)
}

test (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %k = s32[] constant(10)
  ROOT %c = pred[] compare(%j, %k), direction=LT
}

ten (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8] parameter(0)
  %zero = s32[] constant(0)
  %s = (s32[], f32[8,8]) tuple(%zero, %a)
  %w = (s32[], f32[8,8]) while(%s), condition=%test, body=%body
  ROOT %r = f32[8,8] get-tuple-element(%w), index=1
}

once (b: f32[8,8]) -> f32[8,8] {
  %b = f32[8,8] parameter(0)
  ROOT %e = f32[8,8] dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY main (m: f32[8,8], y: pred[]) -> f32[8,8] {
  %m = f32[8,8] parameter(0)
  %y = pred[] parameter(1)
  ROOT %o = f32[8,8] conditional(%y, %m, %m), true_computation=%once, false_computation=%ten
}
"""


def loop(begin=0, limit=5, stride=1, direction="LT", more=""):
    text = LOOP.replace("START_LIMIT", str(limit)).replace("STRIDE", str(stride))
    text = text.replace("DIRECTION", direction).replace("BEGIN", str(begin)).replace("MORE", more)
    return parse(text)


def trips(entry):
    return trip_count(entry.instructions["loop"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 5),
        ({"begin": 2, "limit": 9, "stride": 3}, 3),  # 2, 5, 8
        ({"limit": 5, "direction": "LE"}, 6),
        ({"begin": 7, "limit": 0, "stride": -1, "direction": "GT"}, 7),
        ({"limit": 0}, 0),
        ({"begin": 7, "limit": 2, "stride": -2, "direction": "GE"}, 3),  # 7, 5, 3
        ({"direction": "NE"}, None),
        ({"more": ', backend_config={"known_trip_count":{"n":"12"}}'}, 12),
    ],
)
def test_trip_counts(options, expected):
    assert trips(loop(**options)) == expected


@pytest.mark.parametrize(("start", "expected"), [("constant(7)", 7), ("parameter(1)", None)])
def test_a_limit_that_is_carried_is_read_where_the_loop_begins(start, expected):
    text = LOOP.replace("DIRECTION", "LT").replace("BEGIN", "0").replace("STRIDE", "1")
    text = text.replace("MORE", "").replace("s32[]{:T(128)} constant(START_LIMIT)", CARRIED)
    text = text.replace("%next, %dot)", "%next, %dot, %same)")
    text = text.replace("  %w = ", "  %same = s32[] get-tuple-element(%q), index=2\n  %w = ")
    text = text.replace("tuple(%copy.1, %a)", "tuple(%copy.1, %a, %end)")
    text = text.replace("  %zero = ", f"  %end = s32[] {start}\n  %zero = ")
    assert trips(parse(text)) == expected


CARRIED = "s32[] get-tuple-element(%p), index=2"


def test_loop_bodies_count_once_a_turn():
    total = sum(times * costs.flops(one) for one, times in executed(loop(limit=5)))
    assert total == 5 * 2 * 8 * 16 * 16


def test_a_loop_that_cannot_be_read_counts_once_and_says_so():
    entry = loop(direction="NE")
    assert [times for one, times in executed(entry) if one.op == "dot"] == [1]
    assert estimate.operations_of(entry, (), 0.0, V5P)[1] == 1


def test_of_a_conditional_the_branch_with_most_work_runs():
    module = parse(BRANCHES)
    assert sum(times * costs.flops(one) for one, times in executed(module)) == 10 * 2 * 8**3


def test_shapes_and_memory_spaces():
    entry = loop()
    body = entry.module["body"].instructions
    assert body["dot"].arrays == (Array("f32", (8, 16), hbm=False),)
    assert body["x"].arrays == (Array("f32", (8, 16)),)
    assert [a.dims for a in entry.instructions["in"].arrays] == [(), (8, 16)]
    sizes = {"bf16": 256, "f32": 512, "pred": 128, "s4": 64, "f8e4m3fn": 128, "c64": 1024}
    assert {name: Array(name, (8, 16)).bytes for name in sizes} == sizes


def test_what_a_kernel_writes_over_several_lines_is_one_instruction():
    text = """HloModule m

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %kernel = f32[8,16]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={"x":1}
}
"""
    entry = parse(text)
    assert list(entry.instructions) == ["a", "kernel"]
    assert entry.root.name == "kernel" and costs.is_kernel(entry.root)
    assert "backend_config" in entry.root.text


def flops_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    entry = parse(jax.jit(function).lower(*arguments).compile().as_text())
    return sum(times * costs.flops(one) for one, times in executed(entry))


def test_nested_scans_of_a_compiled_program():
    """3 x 7 products of (4, 8) with (8, 8), which XLA's cost analysis counts once."""

    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, length=3)[0]

    assert flops_of(outer, (4, 8), (8, 8)) == 3 * 7 * 2 * 4 * 8 * 8


CONVOLUTION = """HloModule m

ENTRY %main (a: f32[2,5,6,3], k: f32[3,3,3,4]) -> f32[2,5,6,4] {
  %a = f32[2,5,6,3]{3,2,1,0} parameter(0)
  %k = f32[3,3,3,4]{3,2,1,0} parameter(1)
  ROOT %conv = f32[2,5,6,4]{3,2,1,0} convolution(%a, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""


def test_convolutions_count_what_meets_the_input():
    """3 taps over 5 places with a border of 1: 13 products of 15; over 6 places 16 of 18."""
    assert costs.flops(parse(CONVOLUTION).root) == 2 * 2 * 4 * 3 * 13 * 16


@pytest.mark.parametrize(
    ("window", "places", "taps"),
    [
        ("size=3x1 stride=2x1 pad=1_1x0_0", 3, 2 + 3 + 2),  # the first tap at -1, 1, 3
        ("size=3x1 lhs_dilate=2x1 pad=0_0x0_0", 7, 4 + 3 + 4),  # values at 0, 2, ..., 8
    ],
)
def test_strided_and_dilated_convolutions(window, places, taps):
    text = CONVOLUTION.replace("size=3x3 pad=1_1x1_1", window)
    text = text.replace("f32[3,3,3,4]", "f32[3,1,3,4]").replace(
        "f32[2,5,6,4]", f"f32[2,{places},6,4]"
    )
    assert costs.flops(parse(text).root) == 2 * 2 * 4 * 3 * taps * 6


FUSIONS = """HloModule m

%slice (p: f32[8,1024], i: s32[]) -> f32[1,1024] {
  %p = f32[8,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %ds = f32[1,1024]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,1024}
}

%update (p2: f32[8,1024], u: f32[1,1024], i2: s32[]) -> f32[8,1024] {
  %p2 = f32[8,1024]{1,0} parameter(0)
  %u = f32[1,1024]{1,0} parameter(1)
  %i2 = s32[] parameter(2)
  %z2 = s32[] constant(0)
  ROOT %dus = f32[8,1024]{1,0} dynamic-update-slice(%p2, %u, %i2, %z2)
}

ENTRY %main (a: f32[8,1024], n: s32[]) -> f32[8,1024] {
  %a = f32[8,1024]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %one = f32[1,1024]{1,0} fusion(%a, %n), kind=kLoop, calls=%slice
  %fast = f32[1,1024]{1,0:S(1)} copy(%one)
  ROOT %all = f32[8,1024]{1,0} fusion(%a, %one, %n), kind=kLoop, calls=%update
}
"""


def test_traffic_is_of_slices_and_of_main_memory():
    entry = parse(FUSIONS)
    moved = {name: costs.traffic(one) for name, one in entry.instructions.items()}
    row = 4 * 1024
    assert moved == {"a": 0, "n": 0, "one": 2 * row + 4, "fast": row, "all": 2 * row + 4}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        # the devices of the mesh are 0, 2, 1, 3
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x",
            ((0, 1), (2, 3)),
        ),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_replica_groups_in_every_spelling(text, groups):
    assert collectives.replica_groups(text, 4) == groups


PARTS = """HloModule m

%pad (p: f32[2,1024], z: f32[8,1024], n: s32[]) -> f32[8,1024] {
  %p = f32[2,1024]{1,0} parameter(0)
  %z = f32[8,1024]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = f32[8,1024]{1,0} dynamic-update-slice(%z, %p, %n, %zero)
}

ENTRY %main (a: f32[2,1024], b: f32[8,1024], i: s32[]) -> f32[8,1024] {
  %a = f32[2,1024]{1,0} parameter(0)
  %b = f32[8,1024]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %c = s32[] constant(0)
  %padded = f32[8,1024]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%pad
  %whole = f32[8,1024]{1,0} all-reduce(%padded), replica_groups={{0,1,2,3}}, to_apply=%add
  %summed = f32[8,1024]{1,0} all-reduce(%b), replica_groups={{0,1,2,3}}, to_apply=%add
  %part = f32[2,1024]{1,0} dynamic-slice(%summed, %i, %c), dynamic_slice_sizes={2,1024}
  %mean = f32[8,1024]{1,0} all-reduce(%b), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = f32[8,1024]{1,0} add(%whole, %mean)
}
"""


def test_an_all_reduce_of_parts_is_a_gather_or_a_scatter_on_a_switch():
    """On a torus it is what it is written as; three of them are one row then."""
    entry, size = parse(PARTS), 8 * 1024 * 4
    devices = np.array([types.SimpleNamespace(id=n) for n in range(4)])
    mesh = types.SimpleNamespace(devices=devices, axis_names=("data",), size=4)
    on_switch = collectives.collectives_of(entry, mesh, H100)
    kinds = {"all-gather", "reduce-scatter", "all-reduce"}
    assert {(one.kind, one.bytes, one.times) for one in on_switch} == {(k, size, 1) for k in kinds}
    (row,) = collectives.collectives_of(entry, mesh, V5P)
    assert (row.kind, row.axes, row.bytes, row.times) == ("all-reduce", ("data",), size, 3)


def test_cycles_of_no_estimate_are_none():
    text = 'backend_config={"estimated_cycles":"9223372036854775807"}'
    assert loop(more=f", {text}").instructions["loop"].cycles is None
    assert (
        loop(more=f", {text.replace('9223372036854775807', '12')}").instructions["loop"].cycles
        == 12
    )


def mesh_of(shape, axes, slices=1, sides=(4, 4, 4)):
    """A mesh of stand-ins for the devices of `slices` slices of such sides."""
    places = list(np.ndindex(sides))
    devices = [
        types.SimpleNamespace(coords=list(place), slice_index=n if slices > 1 else None)
        for n in range(slices)
        for place in places
    ]
    return types.SimpleNamespace(devices=np.array(devices).reshape(shape), axis_names=axes)


def test_groups_are_told_as_mesh_axes():
    mesh = mesh_of((4, 4, 4), ("data", "fsdp", "tensor"))
    assert collectives.spanned([(0, 1, 2, 3)], mesh) == (("tensor",), 1)
    assert collectives.spanned([(0, 16, 32, 48)], mesh) == (("data",), 1)
    assert collectives.spanned([tuple(range(16))], mesh) == (("fsdp", "tensor"), 1)
    assert collectives.spanned([(0, 0)], mesh) == ((), 1)
    two = mesh_of((2, 64), ("data", "fsdp"), slices=2)
    assert collectives.spanned([(0, 64), (1, 65)], two) == (("data",), 2)
    assert collectives.spanned([tuple(range(64))], two) == (("fsdp",), 1)


def test_a_group_knows_the_links_that_it_has():
    mesh = mesh_of((4, 4, 4), ("data", "fsdp", "tensor"))
    assert collectives.torus_of((0, 1, 2, 3), mesh, V5P) == ((4, True),)
    assert collectives.torus_of((0, 1), mesh, V5P) == ((2, False),)
    assert collectives.torus_of(tuple(range(64)), mesh, V5P) == ((4, True),) * 3
    less = mesh_of((2, 4, 4), ("data", "fsdp", "tensor"), sides=(2, 4, 4))  # no cube, no rings
    assert collectives.torus_of((0, 1, 2, 3), less, V5P) == ((4, False),)


def test_ring_formulas():
    """1 GB; a link carries 90 GB/s each way; a ring has 2 links, a torus of 3 rings 6."""
    size, link = 1e9, V5P.link_bandwidth
    ring, line, cube = ((4, True),), ((4, False),), ((4, True),) * 3

    def time(kind, group, torus, slices=1):
        return collective_seconds(kind, size, group, slices, torus, V5P)

    assert time("all-gather", 4, ring) == size * 3 / 4 / (2 * link)
    assert time("reduce-scatter", 4, line) == size * 3 / 4 / link
    assert time("all-reduce", 64, cube) == 2 * size * 63 / 64 / (6 * link)
    assert time("all-to-all", 4, ring) == size * 4 / 4 / (2 * link)
    assert time("collective-permute", 2, ring) == size / link
    assert time("all-reduce", 2, (), slices=2) == 2 * size / 2 / V5P.dcn_bandwidth
    assert time("all-gather", 1, ()) == 0
    seven = next(chip for chip in CHIPS if chip.name == "tpu7x")  # two devices share its network
    across = collective_seconds("all-reduce", size, 2, 2, (), seven)
    assert across == 2 * size / 2 / (seven.dcn_bandwidth / 2)
    assert collective_seconds("all-reduce", 4, 4, 1, ring, V5P) == 2 * 2 * HOP
