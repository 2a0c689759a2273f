"""Random problems of the convolution's three operators, dealt out so that every core of the planner gets its share.

What a seed settles in turn (family of cores, kernel, dtype, prologue and epilogue) covers all combinations once in
:func:`strata`; everything else that a user can choose is drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from typing import Any

import torch

from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.plans import PASSES, convolution_plans

__all__ = ["CORES", "OPS", "Drawn", "cores_of", "draw"]

NORMED = "depthwise_conv3d_group_norm"
OPS = ("depthwise_conv3d", "depthwise_conv_transpose3d", NORMED)

#: The cores that the planner knows for each pass; a weight gradient on tensor cores with what brings its planes. A
#: convolution at stride 2 gathers, and its data gradient scatters; a transposed one the other way round.
_OF_STRIDE_1 = frozenset({"planar", "banded", "streaming", "general"})
_GATHER, _SCATTER = _OF_STRIDE_1 | {"strided"}, _OF_STRIDE_1 | {"strided_scatter"}
_WEIGHT = frozenset({"banded by boxes", "banded by async", "banded by elements", "strided", "streaming", "general"})
_PLAIN = {"forward": _GATHER, "backward_data": _SCATTER, "backward_weight": _WEIGHT}
CORES = dict.fromkeys(OPS, _PLAIN) | {
    "depthwise_conv_transpose3d": _PLAIN | {"forward": _SCATTER, "backward_data": _GATHER}
}

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF = DTYPES[1:]
EXTENTS = (1, 2, 3, 4, 5, 8, 9, 12, 15, 17, 24, 33)
CHANNELS = (1, 2, 3, 4, 8, 13, 16, 32, 33, 40)
#: Elements of the larger tensor and products at most: few, as the emulation is slow, and in one problem of ten many.
FEW, MANY = (4_000, 250_000), (20_000, 1_000_000)
#: Elements of a normalised group at least: of fewer a variance says nothing.
LEAST_OF_GROUP = 64


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One problem: everything that a user can choose.

    ``affine`` and ``add`` are the prologue and the epilogue of a convolution's gradients; ``activation`` and the
    number of groups that the norm divides the channels into belong to the convolution with a norm.
    """

    op: str
    seed: int
    family: str
    geometry: ConvGeometry
    batch: int
    channels: int
    size: tuple[int, ...]
    dtype: torch.dtype
    parameter_dtype: torch.dtype
    channels_last: bool
    bias: bool
    affine: bool
    add: bool
    activation: str | None
    num_groups: int
    architecture: int

    @property
    def is_normed(self) -> bool:
        return self.op == NORMED

    @property
    def output_size(self) -> tuple[int, ...]:
        return self.geometry.output_size(self.size)


Stratum = tuple[str, int, torch.dtype, bool, bool]


@functools.cache
def strata() -> tuple[Stratum, ...]:
    """Family of cores, kernel extent, dtype, and two choices of the operator: each combination once, in a fixed order.

    ``planar``, ``banded`` and ``strided`` are of 16 bits; the kernel of ``general`` is any.
    """
    both = (False, True)
    found: list[Stratum] = []
    for family in ("planar", "banded", "strided"):
        found += itertools.product((family,), (3, 5, 7), HALF, both, both)
    # float32 has no other cores than these.
    found += itertools.product(("streaming",), (3, 5, 7), (torch.float32, *DTYPES), both, both)
    found += 2 * list(itertools.product(("general",), (0,), DTYPES, both, both))
    random.Random(0).shuffle(found)
    return tuple(found)


def draw(op: str, seed: int) -> Drawn:
    """The problem of that number, the same on every machine."""
    random_ = random.Random(f"{op} {seed}")
    family, extent, dtype, first, second = strata()[seed % len(strata())]
    most = MANY if random_.random() < 0.1 else FEW
    normed = op == NORMED
    while True:
        geometry, width, channels_last, architecture = _FAMILIES[family](random_, extent, dtype, normed)
        geometry = _for_op(random_, geometry, op)
        batch = 0 if random_.random() < 0.03 else random_.choice([1, 1, 2, 3])
        channels = random_.choice(CHANNELS)
        size = (random_.choice(EXTENTS), random_.choice(EXTENTS), width)
        batch, channels, size = _shrunk(random_, geometry, batch, channels, size, most)
        if channels_last and (channels == 1 or math.prod(size) == 1):
            continue  # it would be contiguous too
        output = geometry.output_size(size)
        if min(output) < 1 or _too_much(geometry, batch, channels, size, most):
            continue
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        num_groups = channels if normed and second else random_.choice(divisors)
        if normed and any(p > k // 2 for p, k in zip(geometry.padding, geometry.kernel_size, strict=True)):
            continue  # outputs that meet no input: of a constant a variance says nothing
        if normed and channels // num_groups * math.prod(output) < LEAST_OF_GROUP:
            continue
        return Drawn(
            op,
            seed,
            family,
            geometry,
            batch,
            channels,
            size,
            dtype,
            random_.choice([dtype, torch.float32]),
            channels_last,
            bias=random_.random() < 0.5,
            affine=first and not normed,
            add=second and not normed,
            activation="gelu" if first and normed else None,
            num_groups=num_groups,
            architecture=architecture,
        )


Family = tuple[ConvGeometry, int, bool, int]  # with the extent along W, channels_last_3d, the architecture


def _planar(random_: random.Random, k: int, _: torch.dtype, __: bool) -> Family:
    """By boxes of the copy engine, rows of whole octets; or by copies of quads, on what has none, or takes none."""
    kw = k if random_.random() < 0.8 else random_.choice(range(1, k + 1, 2))
    width, architecture = 8 * random_.choice([1, 2, 3, 4, 5, 8]), _newest(random_)
    if random_.random() < 0.5:
        architecture = random_.choice([80, 86, 89, 90])
        width = 4 * random_.choice([1, 3, 5, 7, 11] if architecture == 90 else [1, 2, 3, 4, 6, 9, 16])
    return _tensor_core_geometry(random_, k, kw), width, False, architecture


def _banded(random_: random.Random, k: int, _: torch.dtype, __: bool) -> Family:
    kw = k if random_.random() < 0.8 else random_.choice([1, 3, 5, 7])
    architecture = random_.choice([80, 86, 89, 90, 100, 120])
    widths = [1, 2, 3, 5, 7, 13, 31, 33, 46] if architecture < 100 else [1, 2, 3, 4, 5, 7, 12, 13, 20, 31, 33, 44]
    return _tensor_core_geometry(random_, k, kw), random_.choice(widths), False, architecture


def _tensor_core_geometry(random_: random.Random, k: int, kw: int) -> ConvGeometry:
    kernel = (random_.choice([1, k, k]), k, kw)
    padding = [n // 2 for n in kernel]
    if random_.random() < 0.25:
        padding[:2] = random_.randint(0, kernel[0]), random_.randint(0, k)
    return ConvGeometry(kernel, padding=(padding[0], padding[1], padding[2]))


def _strided(random_: random.Random, k: int, _: torch.dtype, __: bool) -> Family:
    geometry = ConvGeometry((k, k, k), (2, 2, 2), (k // 2, k // 2, k // 2))
    return geometry, _any_width(random_), False, random_.choice([80, 86, _newest(random_)])


def _streaming(random_: random.Random, k: int, dtype: torch.dtype, _: bool) -> Family:
    """Centred KxKxK and 1xKxK, on what no tensor core takes: float32, channels last, Turing, a stride of 1x2x2."""
    kernel = (random_.choice([1, k, k]), k, k)
    stride = random_.choice([(1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 2, 2)])
    if kernel[0] == 1 and stride[0] == 2:
        stride = (1, 2, 2)
    why = random_.choice(["channels last", "channels last", "Turing"])
    if dtype == torch.float32:
        why = random_.choice(["channels last", "float32"])
    elif stride == (1, 2, 2) and random_.random() < 0.5:
        why = "stride"
    geometry = ConvGeometry(kernel, stride, (kernel[0] // 2, k // 2, k // 2))
    architecture = 75 if why == "Turing" else random_.choice([80, _newest(random_)])
    return geometry, _any_width(random_), why == "channels last", architecture


def _general(random_: random.Random, _: int, __: torch.dtype, normed: bool) -> Family:
    kernel = [random_.choice([1, 3, 5, 7, 9]) for _ in range(3)]
    dilation = [1 if normed else random_.choice([1, 1, 2, 3]) for _ in range(3)]
    padding = [random_.randint(0, k * d // 2 + 1) for k, d in zip(kernel, dilation, strict=True)]
    stride = [random_.choice([1, 2]) for _ in range(3)]
    geometry = ConvGeometry(*(tuple(triple) for triple in (kernel, stride, padding, dilation)))
    architecture = random_.choice([75, 80, _newest(random_)])
    return geometry, _any_width(random_), random_.random() < 0.4, architecture


_FAMILIES = {
    "planar": _planar,
    "banded": _banded,
    "strided": _strided,
    "streaming": _streaming,
    "general": _general,
}


def _newest(random_: random.Random) -> int:
    return random_.choice([90, 90, 90, 100, 120])


def _any_width(random_: random.Random) -> int:
    return 8 * random_.randint(1, 5) if random_.random() < 0.5 else random_.choice(EXTENTS)


def _for_op(random_: random.Random, g: ConvGeometry, op: str) -> ConvGeometry:
    if op != "depthwise_conv_transpose3d":
        return g
    room = [max(s, d) - 1 for s, d in zip(g.stride, g.dilation, strict=True)]
    extra = [random_.randint(0, most) if random_.random() < 0.3 else 0 for most in room]
    return g._replace(output_padding=(extra[0], extra[1], extra[2]), transposed=True)


def _too_much(g: ConvGeometry, batch: int, channels: int, size: tuple[int, ...], most: tuple[int, int]) -> bool:
    less, more = sorted([math.prod(size), max(math.prod(g.output_size(size)), 0)])
    many = max(batch, 1) * channels
    return more * many > most[0] or less * many * math.prod(g.kernel_size) > most[1]


def _shrunk(
    random_: random.Random, g: ConvGeometry, batch: int, channels: int, size: tuple[int, ...], most: tuple[int, int]
) -> tuple[int, int, tuple[int, ...]]:
    """Fewer samples, channels, planes and rows until it is little enough; the extent along W stays."""
    numbers = [batch, channels, *size[:2]]
    while True:
        batch, channels, size = numbers[0], numbers[1], (numbers[2], numbers[3], size[2])
        large = [i for i, n in enumerate(numbers) if n > 1]
        if not large or not _too_much(g, batch, channels, size, most):
            return batch, channels, size
        i = random_.choice(large)
        numbers[i] = (numbers[i] + 1) // 2 if numbers[i] > 2 else 1


def cores_of(p: Drawn) -> dict[str, str]:
    """The core that runs each pass; "none" for an empty batch."""
    if p.batch == 0:
        return dict.fromkeys(PASSES, "none")
    g = p.geometry
    # As the backend decides: a gradient that is read often is written out first.
    written = g.transposed and max(g.stride) > 1 and max(g.kernel_size) >= 5
    plans = convolution_plans(
        (p.batch, p.channels, *p.size),
        g,
        str(p.dtype).removeprefix("torch."),
        p.architecture,
        channels_last=p.channels_last,
        affine=(p.affine or p.is_normed) and not written,
    )
    return {name: _name_of(plan) for name, plan in plans.items()}


def _name_of(plan: dict[str, Any]) -> str:
    is_weight_gradient = "workspace_bytes" in plan
    return f"banded by {plan['fill']}" if plan["core"] == "banded" and is_weight_gradient else plan["core"]
