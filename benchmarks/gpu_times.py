"""Times of our kernels at the stages of MedNeXt, and of training steps, on a GPU: in seconds, with nothing to compile.

    python benchmarks/gpu_times.py --output h200.json            # ours
    python benchmarks/gpu_times.py --output h200.json --eager    # PyTorch's operators too
    python benchmarks/gpu_times.py --output h200.json --only networks --baselines eager compile monai --seconds 400

Operators are CUDA graphs on a cold L2 cache, each the median of nine (mednext/bench/clocks.py). A training step is that
of `mednext bench network`: forward, cross entropy at every level, backward, AdamW; launched by Python, and for ours as
one CUDA graph too. No result is checked here: tests and benchmarks/parity do that.

Ours comes first, of all networks B k3 and L k5. Each row has its own attempt in a process beside this one: what is out
of memory or of time, cannot be compiled or compared is told in its row, as its `error`. The file is written anew after
every row; what `--seconds` left no time for is named there as `not_measured`. The exit status is 1 if a row of ours has
an error, 3 if there is no GPU.

Fields of a network's row: `ms` and `graph_ms`, medians of a step; `launched_ms`, what Python takes to launch one;
`first_call_s`, with everything that is compiled or chosen then; `peak_mib`, the most that torch's allocator held during
a step, weights, gradients, optimizer and input included.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from row_process import Job, RowProcess

from mednext.atomic_file import replacing
from mednext.bench.clocks import Timer
from mednext.bench.counting import op_work
from mednext.bench.network_task import TRAINING, NetworkTask
from mednext.bench.networks import NetworkProblem
from mednext.bench.op_task import OpTask
from mednext.bench.operators import OPERATORS, OpProblem
from mednext.bench.suites import BASELINES
from mednext.bench.task import Implementation
from mednext_ops import info

OURS = Implementation("mednext", "mednext")
STAGES = [(32 * 2**level, 128 // 2**level) for level in range(5)]
SAMPLES, FEW_SAMPLES = 9, 3  # of ours; of baselines, whose step takes seconds
FIRST = [("B", 3), ("L", 5)]  # the networks that are asked for most


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


def operators(dtypes: list[str], formats: list[bool], eager: bool) -> Iterator[Job]:
    sources = ("mednext", "eager") if eager else ("mednext",)
    for problem, channels_last in problems(dtypes, formats):
        for name in OPERATORS[problem.op].passes:
            names: dict[str, Any] = {"problem": str(problem), "pass": name, "dtype": problem.dtype}
            names |= {"channels_last": channels_last, "bytes": op_work(problem, name).bytes}
            yield Job("operators", names, operator_pass, (problem, name, channels_last, sources))


def operator_pass(
    device: torch.device, problem: OpProblem, name: str, channels_last: bool, sources: Sequence[str]
) -> dict[str, Any]:
    row = {}
    timer = Timer(device, 0.0, SAMPLES)
    for source in sources:
        implementation = Implementation(source, source, channels_last=channels_last)
        call = OpTask(problem, name).bind(implementation, device).call
        call()
        sampled = timer.time_in_turn({source: timer.prepare(call, True)})[source]
        row[f"{source}_us"] = round(sampled.median * 1e6, 1)
    return row


def networks(variants: Sequence[str], kernel_sizes: Sequence[int], patch: int, baselines: Sequence[str]) -> list[Job]:
    """Ours of all networks, then each baseline; those of :data:`FIRST` before the others."""
    chosen = [(variant, k) for variant in variants for k in kernel_sizes]
    groups = [[each for each in FIRST if each in chosen], [each for each in chosen if each not in FIRST]]
    rivals = [BASELINES[name] for name in baselines]
    jobs = []
    for implementations in ([OURS], rivals):
        for group in groups:
            for implementation in implementations:
                for variant, k in group:
                    problem = NetworkProblem(variant, k, patch, 1, "bf16")
                    names = {"network": str(problem), "dtype": problem.dtype, "source": implementation.name}
                    jobs.append(Job("networks", names, training_step, (problem, implementation)))
    return jobs


def training_step(device: torch.device, problem: NetworkProblem, implementation: Implementation) -> dict[str, Any]:
    ours, gpu = implementation.source == "mednext", device.type == "cuda"
    row: dict[str, Any] = {}
    for graph in (False, True) if ours and gpu else (False,):
        before = torch.cuda.memory_allocated(device) if gpu else 0
        bound = NetworkTask("network", problem, TRAINING).bind(replace(implementation, graph=graph), device)
        if graph:
            for _ in range(3):
                bound.call()
        else:
            started = time.perf_counter()
            bound.call()
            row |= {"first_call_s": round(_since(started, device), 1)}
            if gpu:
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            bound.call()
            row["launched_ms"] = round((time.perf_counter() - started) * 1e3, 1)
            if gpu:
                torch.cuda.synchronize(device)
                row["peak_mib"] = round((torch.cuda.max_memory_allocated(device) - before) / 2**20)
        timer = Timer(device, 0.0, SAMPLES if ours else FEW_SAMPLES)
        sampled = timer.time_in_turn({"step": timer.prepare(bound.call, graph)})["step"]
        if graph and sampled.clock != "CUDA graph":
            row["graph_error"] = "the step could not be captured"
        else:
            row["graph_ms" if graph else "ms"] = round(sampled.median * 1e3, 2)
        del bound, timer, sampled
        if implementation.compile:
            torch.compiler.reset()  # which would keep the network
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    return row


def _since(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=["bf16", "fp16", "fp32"], help="of operators")
    parser.add_argument("--channels-last", action="store_true", help="in channels_last_3d too")
    parser.add_argument("--eager", action="store_true", help="PyTorch's operators beside ours")
    parser.add_argument("--only", choices=["operators", "networks"], help="one part alone")
    parser.add_argument("--baselines", nargs="*", default=[], choices=list(BASELINES), help="in this order after ours")
    parser.add_argument("--variant", nargs="*", default=["S", "B"])
    parser.add_argument("--kernel-size", nargs="*", type=int, default=[3, 5, 7])
    parser.add_argument("--patch", type=int, default=128, help="edge of the networks' cube, voxels (default 128)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no row goes on for longer, all together")
    parser.add_argument("--row-seconds", type=float, default=150, help="nor this long by itself (default 150)")
    parser.add_argument("--device", default="cuda", help="cpu shows that all of it runs where there is no GPU")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    deadline = time.monotonic() + options.seconds
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured")
        return 3
    if device.type == "cuda":
        device = torch.device("cuda", device.index or torch.cuda.current_device())
    jobs: list[Job] = []
    if options.only != "networks":
        jobs += operators(options.dtype, [False, True] if options.channels_last else [False], options.eager)
    if options.only != "operators":
        jobs += networks(options.variant, options.kernel_size, options.patch, options.baselines)
    facts = info.collect()
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/gpu_times.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": facts["versions"],
        "git": facts["build"].get("git"),
        "not_measured": [],
    }
    report |= {job.part: [] for job in jobs}
    process = RowProcess(device)
    try:
        for job in jobs:
            left = deadline - time.monotonic()
            row = process.row(job, min(options.row_seconds, left)) if left > 0 else job.names
            if left <= 0 or ("error" in row and time.monotonic() >= deadline):
                report["not_measured"].append(job.names)
            else:
                report[job.part].append(row)
                print(json.dumps(row), flush=True)
            with replacing(options.output) as part:
                part.write_text(json.dumps(report, indent=1) + "\n")
    finally:
        process.close()
    rows = report.get("operators", []) + report.get("networks", [])
    failed = [row for row in rows if "error" in row]
    beyond = len(report["not_measured"])
    print(f"{len(rows)} rows, {len(failed)} with an error; for {beyond} there was no time; in {options.output}")
    return int(any(row.get("source", OURS.name) == OURS.name for row in failed))


if __name__ == "__main__":
    sys.exit(main())
