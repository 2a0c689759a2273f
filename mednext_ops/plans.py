"""How the CUDA kernels would run a convolution or a block: core, tile and grid, on any GPU, without one.

``python -m mednext_ops.info --plan 1,32,128,128,128 --kernel 5 --dtype bf16 --arch 90`` prints it, with
``--hidden 64`` that of the inverted bottleneck behind the convolution as well. The plans are made by the same code that
makes them at run time (plan.cpp of csrc/cuda/depthwise_conv3d and inverted_bottleneck), here asked through pybind11.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from typing import Any

from mednext_ops import native
from mednext_ops.backends.problem import ConvGeometry
from mednext_ops.ops.arguments import triple

__all__ = [
    "DTYPES",
    "PASSES",
    "add_arguments",
    "bottleneck_plans",
    "convolution_plans",
    "describe",
    "plans_asked_for",
]

#: The passes of a training step, each a launch with a plan of its own.
PASSES = ("forward", "backward_data", "backward_weight")

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def convolution_plans(
    shape: Sequence[int],
    geometry: ConvGeometry,
    dtype: str,
    architecture: int,
    *,
    channels_last: bool = False,
    affine: bool = False,
    alignment: int = 16,
) -> dict[str, dict[str, Any]]:
    """The plan of each pass of a depthwise convolution.

    Args:
        shape: N, C, D, H, W of the input.
        geometry: of the convolution.
        dtype: "float32", "float16" or "bfloat16", or one of :data:`DTYPES`' short names.
        architecture: the GPU's compute capability as 10 * major + minor.
        channels_last: the tensors are in channels_last_3d.
        affine: the gradient is one that GroupNorm left unwritten, applied on load.
        alignment: of the tensors' addresses, in bytes; torch's own are at multiples of 16 and more.

    Returns:
        For each of :data:`PASSES` a dictionary: ``core``, and what that core's plan says.

    Raises:
        ValueError: the shape is not five extents, the output is empty, or the dtype has no kernels.
        RuntimeError: the module that makes plans is not built; the message says why and how to mend it.
    """
    module = _planner()
    if len(shape) != 5 or min(shape) < 1:
        raise ValueError(f"the shape must be five positive extents N, C, D, H, W, got {list(shape)}")
    input_size = list(shape[2:])
    output_size = list(geometry.output_size(tuple(input_size)))
    if min(output_size) < 1:
        raise ValueError(
            f"an input of {input_size} is too small for a kernel of {list(geometry.kernel_size)}: the output would be "
            f"{output_size}"
        )
    for size in (input_size, output_size):
        if math.prod(shape[:2]) * math.prod(size) >= 2**61:  # voxels of 4 bytes
            raise ValueError(f"{[*shape[:2], *size]}: a tensor has at most 2^63 - 1 bytes")
    common: dict[str, Any] = {
        "dtype": DTYPES.get(dtype, dtype),
        "channels_last": channels_last,
        "batch": shape[0],
        "channels": shape[1],
        "kernel": list(geometry.kernel_size),
        "stride": list(geometry.stride),
        "padding": list(geometry.padding),
        "dilation": list(geometry.dilation),
        "alignment": alignment,
        "architecture": architecture,
    }
    small, large = (input_size, output_size) if geometry.transposed else (output_size, input_size)
    return {
        "forward": module.plan_convolution(
            scatter=geometry.transposed, input_size=input_size, output_size=output_size, affine=False, **common
        ),
        "backward_data": module.plan_convolution(
            scatter=not geometry.transposed, input_size=output_size, output_size=input_size, affine=affine, **common
        ),
        "backward_weight": module.plan_weight_gradient(
            small_size=small, large_size=large, affine=affine, large_is_gradient=geometry.transposed, **common
        ),
    }


def bottleneck_plans(
    shape: Sequence[int],
    hidden: int,
    outputs: int,
    dtype: str,
    architecture: int,
    *,
    grn: bool = False,
    channels_last: bool = False,
) -> dict[str, dict[str, Any]]:
    """The plans of an inverted bottleneck's forward and backward.

    Args:
        shape: N, C, D, H, W of its input, which is the convolution's output.
        hidden: its hidden channels.
        outputs: its output channels.
        dtype: "float32", "float16" or "bfloat16", or one of :data:`DTYPES`' short names.
        architecture: the GPU's compute capability as 10 * major + minor.
        grn: with global response normalisation.
        channels_last: its volumes are in channels_last_3d.

    Returns:
        ``bottleneck_forward`` and ``bottleneck_backward``: ``core`` is "fused", with what the plan says, or "products"
        of a library, with our kernels between them.

    Raises:
        ValueError: the shape is not five extents, an extent is not positive, or the dtype has no kernels.
        RuntimeError: the module that makes plans is not built; the message says why and how to mend it.
    """
    module = _planner()
    if len(shape) != 5 or min(*shape, hidden, outputs) < 1:
        raise ValueError(
            f"the shape must be five positive extents N, C, D, H, W and the channels positive, got {list(shape)}, "
            f"{hidden} hidden and {outputs} output channels"
        )
    plans = module.plan_inverted_bottleneck(
        dtype=DTYPES.get(dtype, dtype),
        batch=shape[0],
        channels=shape[1],
        hidden=hidden,
        outputs=outputs,
        voxels=math.prod(shape[2:]),
        grn=grn,
        channels_last=channels_last,
        architecture=architecture,
    )
    return {name: {"core": "products"} if plan["core"] == "none" else plan for name, plan in plans.items()}


def _planner() -> Any:
    missing = native.missing_part("information")
    if missing is not None:
        raise RuntimeError(f"plans are made by the build-information module: {missing.problem}")
    return importlib.import_module("mednext_ops._build_information")


#: The least compute capability that the kernels are built for, as 10 * major + minor.
OLDEST_ARCHITECTURE = 75


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that describe a convolution on a command line."""
    group = parser.add_argument_group("how a convolution would be launched on a GPU, which need not be there")
    group.add_argument("--plan", type=_extents, metavar="N,C,D,H,W", help="shape of the input")
    group.add_argument("--kernel", type=_triple, default=(3, 3, 3), metavar="K", help="one extent or three (default 3)")
    group.add_argument("--stride", type=_triple, default=(1, 1, 1), metavar="S", help="one or three (default 1)")
    group.add_argument("--padding", type=_triple, metavar="P", help="one or three (default: half the kernel)")
    group.add_argument("--dilation", type=_triple, default=(1, 1, 1), metavar="D", help="one or three (default 1)")
    group.add_argument("--transposed", action="store_true", help="ConvTranspose3d")
    group.add_argument("--dtype", choices=[*DTYPES, *DTYPES.values()], default="bf16", help="default bf16")
    group.add_argument(
        "--arch", type=_architecture, default=90, metavar="CC", help="compute capability, 90 for 9.0 (default)"
    )
    group.add_argument("--channels-last", action="store_true", help="channels_last_3d tensors")
    group.add_argument("--affine", action="store_true", help="the gradient comes from a GroupNorm, unwritten")
    group.add_argument("--hidden", type=int, metavar="H", help="hidden channels of the bottleneck behind it (none)")
    group.add_argument("--outputs", type=int, metavar="O", help="its output channels (default: as the input's)")
    group.add_argument("--grn", action="store_true", help="it has a global response normalisation")
    parser.set_defaults(of_plans=[action.dest for action in group._group_actions if action.dest != "plan"])


def _extents(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers with commas between them are expected, got {text!r}") from None


def _architecture(text: str) -> int:
    """90, or 9.0 as compute capabilities are written."""
    major, point, minor = text.partition(".")
    try:
        return 10 * int(major) + int(minor) if point else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a compute capability is 90 or 9.0, got {text!r}") from None


def _triple(text: str) -> tuple[int, ...]:
    values = _extents(text)
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"one number or three, got {text!r}")
    return values * 3 if len(values) == 1 else values


def plans_asked_for(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """:func:`convolution_plans` of what :func:`add_arguments` read, and :func:`bottleneck_plans` if it was asked for.

    Raises:
        ValueError: also for what the operators or the kernels do not take: an even kernel, a GPU older than Turing.
    """
    for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        triple(f"--{name}", getattr(options, name) or least, least)
    if any(extent % 2 == 0 for extent in options.kernel):
        raise ValueError(f"the kernel must be odd on every axis, got {list(options.kernel)}")
    if options.arch < OLDEST_ARCHITECTURE:
        raise ValueError(
            f"the kernels need compute capability 7.5 (--arch {OLDEST_ARCHITECTURE}) or newer, "
            f"got --arch {options.arch}"
        )
    padding = options.padding or tuple(k // 2 for k in options.kernel)
    geometry = ConvGeometry(options.kernel, options.stride, padding, options.dilation, transposed=options.transposed)
    if options.hidden is None and (options.outputs is not None or options.grn):
        raise ValueError("--outputs and --grn belong to a bottleneck: give its --hidden channels too")
    plans = convolution_plans(
        options.plan,
        geometry,
        options.dtype,
        options.arch,
        channels_last=options.channels_last,
        affine=options.affine,
    )
    if options.hidden is not None:
        shape = (*options.plan[:2], *geometry.output_size(tuple(options.plan[2:])))
        outputs = shape[1] if options.outputs is None else options.outputs
        plans |= bottleneck_plans(
            shape,
            options.hidden,
            outputs,
            options.dtype,
            options.arch,
            grn=options.grn,
            channels_last=options.channels_last,
        )
    return plans


def describe(plans: dict[str, dict[str, Any]]) -> str:
    """The plans as text, one pass a paragraph."""
    lines = []
    for name, plan in plans.items():
        lines.append(f"{name.replace('_', ' ')}: {plan['core']}")
        width = max(len(key) for key in plan)
        lines += [f"  {key.replace('_', ' '):{width}}  {_text(plan[key])}" for key in sorted(plan) if key != "core"]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
