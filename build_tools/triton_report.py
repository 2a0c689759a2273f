"""What Triton's compiler makes of every kernel of the Triton backend, for GPUs that are not there.

``python -m build_tools.triton_report`` records the launches of typical problems (:data:`PROBLEMS`), compiles each ahead
of time for :data:`TARGETS` and compares registers, spills and shared memory with the committed table, docs/triton.json;
``--write`` makes that table anew. A comparison fails where a kernel spills more than :data:`SPILLS`, where one is not
in the table, and (under the Triton release that made it) where one takes more registers than :data:`TOLERANCE`
allows. Needs triton, no GPU: ptxas and cuobjdump come in Triton's package.

``--specialised`` checks something else: that the same launches compile too where an integer argument is 1, which Triton
makes a constant of (:func:`specialised`), and with 64-bit offsets. The interpreter has no such constants.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, InvertedBottleneckNeeds
from mednext_ops.backends.triton import bottleneck, convolution, normalization, statistics
from mednext_ops.backends.triton.launch import INTERPRETS, Launch, recording

__all__ = [
    "PROBLEMS",
    "TARGETS",
    "CompiledKernel",
    "compare",
    "compile_for",
    "compile_launch",
    "lower",
    "main",
    "record",
    "refusal",
    "specialised",
    "unspecialisable",
]

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

#: A new compiler flag or a changed line moves a few; a lost optimisation moves many.
TOLERANCE = 1.1

#: ptxas puts a few values that a loop does not change into local memory where that lets one more program onto a
#: multiprocessor; more than that, in bytes a thread, means that registers ran out.
SPILLS = 16

TABLE = Path("docs", "triton.json")

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last_3d


@dataclass(frozen=True)
class CompiledKernel:
    """One launch on one target; what only one vendor's compiler says is 0 for the other."""

    problem: str
    kernel: str
    target: str
    threads: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core_products: int


def _empty(*shape: int, dtype: torch.dtype = FLOAT32, memory_format: torch.memory_format = CONTIGUOUS) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def _convolution(kernel: int, dtype: torch.dtype, stride: int = 1, transposed: bool = False,
                 memory_format: torch.memory_format = CONTIGUOUS, channels: int = 32,
                 extent: int = 64) -> None:  # fmt: skip
    """A convolution with statistics, and both gradients of a GroupNorm that follows it."""
    geometry = ConvGeometry((kernel,) * 3, (stride,) * 3, (kernel // 2,) * 3, transposed=transposed)
    x = _empty(2, channels, extent, extent, extent, dtype=dtype, memory_format=memory_format)
    w = _empty(channels, 1, *geometry.kernel_size)
    y, _, _ = convolution.depthwise_conv3d_statistics(x, w, None, geometry, channels, 1e-5)
    maps = [_empty(2, channels) for _ in range(3)]
    gradient = GroupNormGradient(torch.empty_like(y), y, *maps)
    convolution.depthwise_conv3d_backward(gradient, x, w, geometry, torch.empty_like(x), True, True)


def _group_norm(dtype: torch.dtype, memory_format: torch.memory_format = CONTIGUOUS) -> None:
    x = _empty(2, 32, 64, 64, 64, dtype=dtype, memory_format=memory_format)
    mean, rstd = statistics.group_norm_statistics(x, 32, 1e-5)
    arguments = (x, mean, rstd, _empty(32), _empty(32), "gelu")
    normalization.group_norm_backward(normalization.group_norm(*arguments), *arguments)


def _inverted_bottleneck(
    channels: int, hidden: int, outputs: int, dtype: torch.dtype, grn: bool = False,
    memory_format: torch.memory_format = CONTIGUOUS,
) -> None:  # fmt: skip
    x = _empty(2, channels, 64, 64, 64, dtype=dtype, memory_format=memory_format)
    mean, rstd = _empty(2, channels), _empty(2, channels)
    norm, expand, compress = _empty(channels), _empty(hidden, channels), _empty(outputs, hidden)
    pair = (_empty(hidden), _empty(hidden)) if grn else None
    residual = _empty(2, outputs, 64, 64, 64, dtype=dtype, memory_format=memory_format)
    y = bottleneck.inverted_bottleneck(
        x, mean, rstd, norm, norm, expand, _empty(hidden), compress, _empty(outputs), pair, residual
    )
    bottleneck.inverted_bottleneck_backward(
        y, x, mean, rstd, norm, norm, expand, _empty(hidden), compress, pair, InvertedBottleneckNeeds(*[True] * 5)
    )


#: Ops at the sizes of a MedNeXt's first stages, by name: every kernel, every branch that a type or a form decides.
PROBLEMS: dict[str, Callable[[], None]] = {
    "convolution k3 bf16": lambda: _convolution(3, BFLOAT16),
    "convolution k5 bf16": lambda: _convolution(5, BFLOAT16),
    "convolution k7 bf16": lambda: _convolution(7, BFLOAT16),
    "convolution k7 bf16 of 63 voxels": lambda: _convolution(7, BFLOAT16, extent=63),
    "convolution k7 bf16 of 40 voxels": lambda: _convolution(7, BFLOAT16, extent=40),
    "convolution k5 fp16": lambda: _convolution(5, FLOAT16),
    "convolution k5 fp32": lambda: _convolution(5, FLOAT32),
    "convolution k3 bf16 channels_last_3d": lambda: _convolution(3, BFLOAT16, memory_format=CHANNELS_LAST),
    "convolution k3 stride 2 bf16": lambda: _convolution(3, BFLOAT16, 2),
    "transposed convolution k3 stride 2 bf16": lambda: _convolution(3, BFLOAT16, 2, True),
    "group norm and GELU bf16": lambda: _group_norm(BFLOAT16),
    "group norm and GELU bf16 channels_last_3d": lambda: _group_norm(BFLOAT16, CHANNELS_LAST),
    "inverted bottleneck 32-64-32 bf16": lambda: _inverted_bottleneck(32, 64, 32, BFLOAT16),
    "inverted bottleneck 64-256-64 bf16 GRN": lambda: _inverted_bottleneck(64, 256, 64, BFLOAT16, grn=True),
    "inverted bottleneck 128-512-128 bf16": lambda: _inverted_bottleneck(128, 512, 128, BFLOAT16),
    "inverted bottleneck 32-128-32 fp16 channels_last_3d": lambda: _inverted_bottleneck(
        32, 128, 32, FLOAT16, memory_format=CHANNELS_LAST
    ),
    "inverted bottleneck 64-128-64 fp32": lambda: _inverted_bottleneck(64, 128, 64, FLOAT32),
}


def record(problem: str, target: str) -> list[Launch]:
    """The launches of a problem of :data:`PROBLEMS` on one of :data:`TARGETS`, each as often as it is made."""
    with recording(amd=TARGETS[target].backend == "hip") as launches:
        PROBLEMS[problem]()
    return launches


_POINTERS = {FLOAT32: "*fp32", FLOAT16: "*fp16", BFLOAT16: "*bf16"}


def _source(launch: Launch) -> Any:
    """What Triton's launcher would compile for these arguments: with its specialisation of 1 and of multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_for(launch: Launch, target: str) -> Any:
    """Triton's own description of the kernel, with its code."""
    options = launch.blocks.options(TARGETS[target].warp_size)
    return triton.compile(_source(launch), target=TARGETS[target], options=options)


def lower(launch: Launch, target: str) -> Any:
    """The kernel in Triton's first language, which shows all that its front end refuses in a hundredth of the time."""
    backend = make_backend(TARGETS[target])
    source = _source(launch)
    options = backend.parse_options(launch.blocks.options(TARGETS[target].warp_size))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generators, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    return source.make_ir(TARGETS[target], options, generators, modules, context)


def specialised(launch: Launch) -> dict[str, Launch]:
    """The launch with each of its integers 1, with all of them 1, and with 64-bit offsets, by what was changed.

    Triton compiles an integer argument of 1 as a constant, which has no methods, and what is computed from constants is
    one too. Such arguments are the rule: a batch of 1, one channel, a plane.
    """
    kernel, arguments = launch.kernel, launch.arguments
    integers = [p.name for p in kernel.params if not p.is_constexpr and type(arguments[p.name]) is int]
    changes: dict[str, dict[str, Any]] = {name: {name: 1} for name in integers}
    changes["all"] = dict.fromkeys(integers, 1)
    if "INDEX" in arguments:
        changes["INDEX"] = {"INDEX": tl.int64}
        changes["all and INDEX"] = changes["all"] | changes["INDEX"]
    return {name: dataclasses.replace(launch, arguments=arguments | change) for name, change in changes.items()}


def unspecialisable(problem: str, target: str) -> list[str]:
    """The launches of a problem that do not compile where arguments are specialised, a line each."""
    found = []
    for launch in _distinct(record(problem, target)):
        for change, changed in specialised(launch).items():
            try:
                lower(changed, target)
            except Exception as error:  # whatever the compiler raises is the finding
                said = str(error).strip().splitlines()[-1]
                found.append(f"{problem}: {launch.kernel.__name__} on {target}, specialised: {change}: {said}")
    return found


def _distinct(launches: Iterable[Launch]) -> list[Launch]:
    """One of each that compile to the same."""
    return list({_source(launch).hash(): launch for launch in launches}.values())


def compile_launch(problem: str, launch: Launch, target: str) -> CompiledKernel:
    """Compile what a launch needs for one of :data:`TARGETS`."""
    compiled = compile_for(launch, target)
    if target.startswith("sm_"):
        registers, spills = _nvidia_usage(compiled.asm["cubin"])
        products = len(re.findall(r"^\s*(?:@\S+ )?(?:mma\.sync|wgmma\.mma_async)", compiled.asm["ptx"], re.MULTILINE))
    else:
        registers, spills = _amd_usage(compiled.asm["amdgcn"])
        products = len(re.findall(r"^\s*v_mfma", compiled.asm["amdgcn"], re.MULTILINE))
    return CompiledKernel(
        problem,
        launch.kernel.__name__,
        target,
        launch.blocks.threads,
        registers,
        spills,
        compiled.metadata.shared,
        products,
    )


def _nvidia_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of its stack, where spills go."""
    cuobjdump = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Vector registers a lane and bytes of its scratch memory, where spills go."""
    found = {name: re.search(rf"\.{name}:\s+(\d+)", assembly) for name in ("vgpr_count", "private_segment_fixed_size")}
    registers, scratch = (int(match[1]) if match else -1 for match in found.values())
    return registers, scratch


def _compiled(task: tuple[str, str]) -> list[CompiledKernel]:
    problem, target = task
    return list(dict.fromkeys(compile_launch(problem, launch, target) for launch in record(problem, target)))


def collect(problems: Iterable[str], targets: Iterable[str]) -> Iterator[CompiledKernel]:
    """Every launch of these problems on these targets, a process a core."""
    tasks = [(problem, target) for problem in problems for target in targets]
    with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as pool:
        for kernels in pool.map(_compiled, tasks):
            yield from kernels


def compare(now: Iterable[CompiledKernel], table: dict[str, Any], release: str) -> list[str]:
    """What is wrong, a line each: spills in any case, registers by the table if the release is the same."""
    found = []
    before: dict[tuple[Any, ...], list[int]] = {
        (k["problem"], k["kernel"], k["target"], k["threads"]): [] for k in table["kernels"]
    }
    for kernel in table["kernels"]:
        before[kernel["problem"], kernel["kernel"], kernel["target"], kernel["threads"]].append(kernel["registers"])
    for kernel in now:
        name = f"{kernel.problem}: {kernel.kernel} on {kernel.target}"
        if kernel.spill_bytes > SPILLS:
            found.append(f"{name} spills {kernel.spill_bytes} bytes")
        registers = before.get((kernel.problem, kernel.kernel, kernel.target, kernel.threads))
        if registers is None:
            found.append(f"{name} is not in the table; make it anew with --write")
        elif release == table["triton"] and kernel.registers > max(registers) * TOLERANCE:
            found.append(f"{name} takes {kernel.registers} registers, {max(registers)} in the table")
    return found


def refusal() -> str | None:
    """Why nothing can be compiled in this process; None if it can."""
    if INTERPRETS:
        return "TRITON_INTERPRET is set: the interpreter compiles nothing; unset it"
    return None


def main(arguments: list[str] | None = None) -> int:
    """The command line of ``python -m build_tools.triton_report``."""
    parser = argparse.ArgumentParser(prog="python -m build_tools.triton_report", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument("--specialised", action="store_true", help="check only that arguments may be 1")
    parser.add_argument("--problem", action="append", choices=[*PROBLEMS], help="only this one; may be repeated")
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    if (reason := refusal()) is not None:
        print(reason, file=sys.stderr)
        return 1
    if options.specialised:
        found = [
            line
            for problem in options.problem or PROBLEMS
            for target in options.target or TARGETS
            for line in unspecialisable(problem, target)
        ]
        print("\n".join(found) or "every argument may be 1")
        return 1 if found else 0
    kernels = []
    for kernel in collect(options.problem or PROBLEMS, options.target or TARGETS):
        kernels.append(kernel)
        print(f"{kernel.target:8} {kernel.registers:4} registers, {kernel.spill_bytes:4} bytes spilt, "
              f"{kernel.shared_bytes:6} shared, {kernel.tensor_core_products:4} products  "
              f"{kernel.kernel}, {kernel.problem}", flush=True)  # fmt: skip
    if options.write:
        rows = [asdict(kernel) for kernel in kernels]
        TABLE.write_text(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n")
        return 0
    problems = compare(kernels, json.loads(TABLE.read_text()), triton.__version__)
    print("\n".join(problems) or "as in the table")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
