"""The fixed list of parity: by what the launch plans say, it runs every kernel, whatever chance brings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path

import pytest

from mednext_ops import available_backends, native
from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import PASSES, bottleneck_plans, convolution_plans

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHITECTURE = 90
CUBIC = [(3, 3, 3), (5, 5, 5), (7, 7, 7)]
FLAT = [(1, 3, 3), (1, 5, 5), (1, 7, 7)]
FORWARD, DATA, WEIGHT = PASSES
CHOICES = ("fill", "full_rows", "fragments", "direct", "large_aligned", "small_aligned")

Fact = tuple[object, ...]


def facts_of(problem) -> Iterator[Fact]:
    """What is known of the kernels that a problem runs."""
    if problem.op == "pointwise_conv3d":
        few_inputs = problem.channels <= problem.out_channels
        yield "pointwise", min(problem.channels, problem.out_channels), "from" if few_inputs else "to"
        yield "pointwise", problem.dtype
        return
    if problem.op == "group_norm_statistics":
        yield "statistics", problem.dtype, problem.channels_last
        return
    form = getattr(problem, "form", None)
    transposed = problem.op == "depthwise_conv_transpose3d" or form == "up"
    geometry = ConvGeometry(problem.kernel, problem.stride, problem.padding, transposed=transposed)
    size = problem.shape[2:]
    if problem.op != "inverted_bottleneck":
        normalized = form is not None or problem.op == "depthwise_conv3d_group_norm"
        yield from facts_of_convolution(problem, geometry, normalized)
        size = geometry.output_size(size)
    if problem.op in ("inverted_bottleneck", "mednext_block"):
        yield from facts_of_bottleneck(problem, size)
    if form is not None:
        yield from facts_of_block(problem, size)


def facts_of_convolution(problem, geometry, normalized) -> Iterator[Fact]:
    written = normalized and geometry.transposed and max(problem.stride) > 1 and max(problem.kernel) >= 5
    computed = normalized and not written
    if written:
        yield "written gradient", problem.channels_last
    last = problem.channels_last
    plans = convolution_plans(problem.shape, geometry, problem.dtype, ARCHITECTURE, channels_last=last, affine=computed)
    for name, plan in plans.items():
        core = plan["core"]
        yield name, core, problem.dtype
        yield name, core, problem.dtype, "channels_last" if last else "contiguous"
        yield name, core, problem.kernel
        yield name, core, problem.stride
        if core == "planar":
            yield name, core, plan["fill"], problem.kernel, computed and name != FORWARD
        yield name, core, "computed" if computed and name != FORWARD else "given"
        kind = "weight" if name == WEIGHT else "convolution"
        for choice in CHOICES:
            if choice in plan:
                yield kind, core, choice, plan[choice]
        if name == WEIGHT and plan.get("fill") == "boxes":
            yield kind, "boxes", problem.kernel, plan["patches_a_warp"]


def facts_of_bottleneck(problem, size) -> Iterator[Fact]:
    shape, hidden = (*problem.shape[:2], *size), problem.ratio * problem.channels
    details = {"grn": problem.grn, "channels_last": problem.channels_last}
    plans = bottleneck_plans(shape, hidden, problem.out_channels, problem.dtype, ARCHITECTURE, **details)
    for name, plan in plans.items():
        if plan["core"] == "fused":
            instance = plan["instance_channels"], plan["instance_outputs"]
            yield name, "fused", instance, problem.channels_last, problem.grn
            yield name, "fused", problem.dtype, problem.grn, "vectors" if prod(size) % 8 == 0 else "elements"
        if plan["core"] == "products":
            yield name, "products", problem.dtype, "vectors" if prod(size) % 8 == 0 else "elements"
            if prod(size) > 1024:
                yield name, "products", "several warps a row"


def facts_of_block(problem, size) -> Iterator[Fact]:
    yield "block", problem.form, problem.dtype, problem.channels_last
    for option in ("recompute", "skip", "keep_input", "float_parameters", "grn"):
        if getattr(problem, option):
            yield "block", problem.form, option
    if problem.channels_last:
        return
    if problem.permuted_gradient:
        yield "packed", "any distance", problem.dtype
    if problem.form == "down":
        yield "packed", "two apart", problem.dtype
    if problem.form == "up":
        yield "packed", "next to each other", problem.dtype
        aligned = prod(size) * problem.shape[0] * problem.out_channels % 8 == 0
        whole = size[2] + problem.stride[2] - 1
        yield "placed", problem.dtype, "vectors" if aligned and whole % 8 == 0 else "elements"
        yield "placed", problem.stride


def names_in(enumeration: str) -> set[str]:
    found = re.search(rf"enum class {enumeration} {{([^}}]*)}}", (SOURCES / "depthwise_conv3d" / "plan.h").read_text())
    return {name.strip() for name in found[1].split(",")}


def cores() -> Iterator[Fact]:
    """Each core that the planner knows, in each pass that it has."""
    for dtype in ("bf16", "fp16"):
        for name in (FORWARD, DATA):
            yield from ((name, core, dtype) for core in names_in("ConvolutionCore"))
        yield from ((WEIGHT, core, dtype) for core in names_in("WeightGradientCore"))
    yield from product(PASSES, ("general", "streaming"), ("fp32",))


def instances_of_convolutions() -> Iterator[Fact]:
    for name in PASSES:
        tensor_cores = ["banded"] if name == WEIGHT else ["banded", "planar"]
        yield from product([name], [*tensor_cores, "streaming"], [*CUBIC, *FLAT])
        if name != WEIGHT:
            computed = [False] if name == FORWARD else [False, True]
            yield from product([name], ["planar"], ["boxes", "async"], [*CUBIC, *FLAT], computed)
        strides = [(1, 1, 1), (2, 2, 2), *([] if name == WEIGHT else [(1, 2, 2)])]
        yield from product([name], ["streaming"], strides)
        yield from product([name], ["streaming", "general"], ("fp32", "fp16", "bf16"), ["channels_last"])
        strided = ["strided"] if name == WEIGHT else ["strided", "strided_scatter"]
        yield from product([name], strided, CUBIC)
        if name != FORWARD:
            every = {*tensor_cores, *strided, "streaming", "general"}
            yield from product([name], every, ["computed", "given"])
    yield from product(["convolution"], ["banded"], ["fill"], ["async", "elements"])
    yield from product(["convolution"], ["banded"], ["full_rows"], [False, True])
    yield from product(["convolution"], ["strided", "strided_scatter"], ["direct"], [False, True])
    yield from product(["weight"], ["banded"], ["fill"], ["boxes", "async", "elements"])
    yield from product(["weight"], ["strided"], ["large_aligned", "small_aligned"], [False, True])
    yield from product(["written gradient"], [False, True])


def instances_of_bottlenecks() -> Iterator[Fact]:
    small = [(32, 32), (32, 64), (64, 32), (64, 64)]
    names = ["bottleneck_forward", "bottleneck_backward"]
    yield from product(names, ["fused"], small, [False, True], [False, True])
    yield from product(names, ["fused"], ["bf16", "fp16"], [False, True], ["vectors", "elements"])
    yield from product(names[:1], ["fused"], [(64, 128), (128, 64), (128, 128)], [True], [False])
    yield from product(names, ["products"], ["bf16", "fp16", "fp32"], ["vectors", "elements"])
    yield from product(names, ["products"], ["several warps a row"])


def instances_of_blocks() -> Iterator[Fact]:
    for form in ("regular", "down", "up"):
        yield from product(["block"], [form], ["bf16", "fp16", "fp32"], [False])
        yield from product(["block"], [form], ["recompute", "float_parameters", "grn"])
        yield "block", form, "bf16", True
    yield "block", "up", "skip"
    yield "block", "down", "keep_input"
    yield from product(["packed"], ["two apart", "next to each other"], ["bf16", "fp16", "fp32"])
    yield from product(["packed"], ["any distance"], ["fp16", "fp32"])
    yield from product(["placed"], ["bf16", "fp16", "fp32"], ["vectors", "elements"])
    yield from product(["placed"], [(2, 2, 2), (1, 2, 2)])


def other_instances() -> Iterator[Fact]:
    yield from product(["pointwise"], [1, 2, 3, 7], ["from", "to"])  # 3 and 7 are filled up to 4 and 8
    yield from product(["pointwise"], ["fp32", "fp16", "bf16"])
    yield from [("statistics", "fp16", False), ("statistics", "fp32", True)]


KINDS = [cores, instances_of_convolutions, instances_of_bottlenecks, instances_of_blocks, other_instances]


@pytest.fixture
def planner() -> None:
    missing = native.missing_part("information")
    if missing is not None:
        pytest.skip(f"plans are made by the build-information module: {missing.problem}")


@pytest.mark.usefixtures("planner")
@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_no_kernel_is_missing(parity, kind, scale):
    """As they are tried against float64, and in the larger volumes of repeats, streams and graphs."""
    found = {fact for problem in parity["each_kernel"].problems(scale) for fact in facts_of(problem)}
    missing = set(kind()) - found
    assert not missing, f"{len(missing)} missing: {sorted(map(str, missing))}"


@pytest.mark.usefixtures("planner")
def test_large_volumes_have_kernels_of_their_own(parity):
    found = {fact for problem in parity["each_kernel"].large_problems() for fact in facts_of(problem)}
    assert ("convolution", "planar", "fragments", 4) in found
    assert found >= {("weight", "boxes", *instance) for instance in (((3,) * 3, 8), ((5,) * 3, 5), ((7,) * 3, 4))}


def test_every_check_tries_each_kernel_first(parity, options):
    expected = parity["each_kernel"].problems()
    chosen = options(backend="emulated")
    assert parity["each_kernel"].problems_for(chosen) == expected
    assert parity["repeats"].problems(chosen)[: len(expected)] == expected
    on_gpu = parity["repeats"].problems(options(backend="cuda", device="cuda"))
    large = list(parity["each_kernel"].large_problems())
    assert on_gpu[: len(expected) + len(large)] == [*parity["each_kernel"].problems(3), *large]


def test_random_problems_begin_with_them(parity, options, monkeypatch):
    kernels = parity["each_kernel"]
    monkeypatch.setattr(kernels, "problems_for", lambda chosen: kernels.problems()[:2])
    report = parity["random_problems"].check(options(backend="reference"))
    assert report["each_kernel"]["tried"] == 2 and report["each_kernel"]["left_out"] == 0
    assert report["tried"] == 2 + sum(counts["tried"] for counts in report["operators"].values())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_they_pass(parity, options, backend, monkeypatch):
    """By other code than theirs: tests/emulation/test_each_kernel.py runs the kernels themselves."""
    if backend not in available_backends():
        pytest.skip(f"the {backend} backend does not run here")
    kernels = parity["each_kernel"]
    monkeypatch.setattr(kernels, "problems_for", lambda chosen: kernels.problems())
    report = kernels.check(options(backend=backend))
    assert report["passed"] == report["tried"] and not report["failures"]
