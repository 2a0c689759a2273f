"""Times of our kernels at the stages of MedNeXt, and of training steps, on a GPU: in seconds, with nothing to compile.

    python benchmarks/gpu_times.py --output h200.json            # ours
    python benchmarks/gpu_times.py --output h200.json --eager    # PyTorch's operators too
    python benchmarks/gpu_times.py --output h200.json --only networks --baselines eager compile monai --variant B

Operators are CUDA graphs on a cold L2 cache, each the median of nine (mednext/bench/clocks.py). A training step is that
of `mednext bench network`: forward, cross entropy at every level, backward, AdamW; launched by Python, and for ours as
one CUDA graph too. No result is checked here: tests and benchmarks/parity do that. What cannot run is told in its row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mednext.bench.clocks import Timer
from mednext.bench.counting import op_work
from mednext.bench.network_task import TRAINING, NetworkTask
from mednext.bench.networks import NetworkProblem
from mednext.bench.op_task import OpTask
from mednext.bench.operators import OPERATORS, OpProblem
from mednext.bench.suites import BASELINES
from mednext.bench.task import Implementation
from mednext_ops import info

STAGES = [(32 * 2**level, 128 // 2**level) for level in range(5)]
SAMPLES = 9


def problems(dtypes: list[str], formats: list[bool]) -> Iterator[tuple[OpProblem, bool]]:
    """Operators at the five stages, and those with a stride between them; and whether in channels_last_3d."""
    for dtype in dtypes:
        for channels_last in formats:
            for level, (channels, extent) in enumerate(STAGES):
                shape = (1, channels, extent, extent, extent)
                yield OpProblem("group_norm_statistics", shape, dtype=dtype), channels_last
                for ratio in (2, 3, 4, 8) if level < 2 else (2,):
                    yield OpProblem("inverted_bottleneck", shape, ratio=ratio, dtype=dtype), channels_last
                for k in (3, 5, 7):
                    yield OpProblem("depthwise_conv3d", shape, (k,) * 3, dtype=dtype), channels_last
                    if level < 2:
                        yield OpProblem("depthwise_conv3d_group_norm", shape, (k,) * 3, dtype=dtype), channels_last
            for channels, extent in STAGES[:4]:
                fine, coarse = (1, channels, *(extent,) * 3), (1, 2 * channels, *(extent // 2,) * 3)
                for k in (3, 5, 7):
                    yield OpProblem("depthwise_conv3d", fine, (k,) * 3, (2, 2, 2), dtype=dtype), channels_last
                    yield (
                        OpProblem("depthwise_conv_transpose3d", coarse, (k,) * 3, (2, 2, 2), dtype=dtype),
                        channels_last,
                    )


def operators(device: torch.device, dtypes: list[str], formats: list[bool], eager: bool) -> list[dict[str, Any]]:
    rows = []
    timer = Timer(device, 0.0, SAMPLES)
    for problem, channels_last in problems(dtypes, formats):
        for name in OPERATORS[problem.op].passes:
            row: dict[str, Any] = {"problem": str(problem), "pass": name, "dtype": problem.dtype}
            row |= {"channels_last": channels_last, "bytes": op_work(problem, name).bytes}
            for source in ("mednext", "eager") if eager else ("mednext",):
                implementation = Implementation(source, source, channels_last=channels_last)
                call = OpTask(problem, name).bind(implementation, device).call
                call()
                sampled = timer.time_in_turn({source: timer.prepare(call, True)})[source]
                row[f"{source}_us"] = round(sampled.median * 1e6, 1)
            rows.append(row)
    return rows


def training_step(device: torch.device, problem: NetworkProblem, implementation: Implementation) -> dict[str, Any]:
    row: dict[str, Any] = {"network": str(problem), "dtype": problem.dtype, "source": implementation.name}
    samples = SAMPLES if implementation.source == "mednext" else 3
    timer = Timer(device, 0.0, samples)
    for graph in (False, True) if implementation.source == "mednext" else (False,):
        bound = NetworkTask("network", problem, TRAINING).bind(replace(implementation, graph=graph), device)
        for _ in range(3):
            bound.call()
        if not graph:
            torch.cuda.reset_peak_memory_stats(device)
            bound.call()
            row["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
            started = time.perf_counter()
            bound.call()
            row["launched_ms"] = round((time.perf_counter() - started) * 1e3, 1)
        sampled = timer.time_in_turn({"step": timer.prepare(bound.call, graph)})["step"]
        row["graph_ms" if graph else "ms"] = round(sampled.median * 1e3, 2)
        del bound
        torch.cuda.empty_cache()
    return row


def networks(
    device: torch.device, variants: list[str], kernel_sizes: list[int], baselines: list[str]
) -> Iterator[dict[str, Any]]:
    ours = Implementation("mednext", "mednext")
    for implementation in (ours, *(BASELINES[name] for name in baselines)):
        for variant in variants:
            for k in kernel_sizes:
                problem = NetworkProblem(variant, k, 128, 1, "bf16")
                try:
                    yield training_step(device, problem, implementation)
                except (RuntimeError, ImportError) as error:  # torch.OutOfMemoryError is a RuntimeError
                    name = {"network": str(problem), "source": implementation.name}
                    yield name | {"error": f"{type(error).__name__}: {str(error)[:200]}"}
                    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--channels-last", action="store_true", help="in channels_last_3d too")
    parser.add_argument("--eager", action="store_true", help="PyTorch's operators beside ours")
    parser.add_argument("--only", choices=["operators", "networks"], help="one part alone")
    parser.add_argument(
        "--baselines", nargs="*", default=[], choices=sorted(BASELINES), help="other networks beside ours"
    )
    parser.add_argument("--variant", nargs="*", default=["S", "B"])
    parser.add_argument("--kernel-size", nargs="*", type=int, default=[3, 5, 7])
    options = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    facts = info.collect()
    report: dict[str, Any] = {
        "command": "python benchmarks/gpu_times.py",
        "device": torch.cuda.get_device_name(device),
        "versions": facts["versions"],
        "git": facts["build"].get("git"),
    }
    formats = [False, True] if options.channels_last else [False]

    # Written after every row: what has been measured is kept, whatever comes.
    def keep() -> None:
        options.output.write_text(json.dumps(report, indent=1) + "\n")

    with torch.cuda.stream(torch.cuda.Stream()):
        if options.only != "networks":
            report["operators"] = operators(device, options.dtype, formats, options.eager)
            keep()
        if options.only != "operators":
            report["networks"] = []
            for row in networks(device, options.variant, options.kernel_size, options.baselines):
                report["networks"].append(row)
                keep()
    counts = " and ".join(f"{len(report[part])} {part}" for part in ("operators", "networks") if part in report)
    print(f"{counts} in {options.output}")


if __name__ == "__main__":
    main()
