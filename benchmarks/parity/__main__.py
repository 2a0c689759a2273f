"""Is every kernel right on this machine? Against float64, repeats, streams, graphs, huge tensors.

First comes a fixed list of problems that runs every kernel of csrc/cuda, then what chance brings.

    python benchmarks/parity --problems 500 --output parity.json          # the CUDA backend, on the GPU
    python benchmarks/parity --backend emulated --problems 5 --size tiny  # its kernels on the emulation, on the CPU

Imports the installed package. The report counts what was tried and what passed; the exit status is 1 if anything
failed, and 3 if the backend does not run here, so that nothing was tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulated_twins
import huge
import random_problems
import repeats
import torch

import mednext_ops as ops
from mednext_ops import info

CHECKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "random": random_problems.check,
    "bitwise": repeats.check_bitwise,
    "stream": repeats.check_stream,
    "graph": repeats.check_graph,
    "huge": huge.check,
    "emulation": emulated_twins.check,
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda", help="whose kernels are checked (default cuda)")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="default: all")
    parser.add_argument("--problems", type=int, default=100, help="random problems an operator and dtype (default 100)")
    parser.add_argument("--runs", type=int, default=250, help="of the bitwise check (default 250)")
    parser.add_argument("--size", choices=random_problems.SIZES, default="normal", help="of the random problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="no new problem after this long, for each check")
    parser.add_argument(
        "--reference-device",
        choices=("cpu", "cuda"),
        help="where the random problems are drawn and PyTorch computes them (default: where the backend runs); cpu: "
        "the GPU runs no convolution but the backend's: a sanitizer stumbles over those of libraries",
    )
    parser.add_argument("--tell", action="store_true", help="print each random problem before it is tried")
    parser.add_argument("--output", type=Path, help="write the report as JSON into this file")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    chosen.device = "cpu" if chosen.backend in ("cpu", "emulated", "reference") else "cuda"
    chosen.reference_device = chosen.reference_device or chosen.device
    torch.backends.cudnn.allow_tf32 = False  # TF32 is wrong by 2^-11: any float32 result would pass beside it
    try:
        with ops.use_backend(chosen.backend):
            pass
    except (RuntimeError, ValueError) as error:
        print(f"nothing was tried: {error}")
        _write(chosen, {"nothing_tried": str(error)})
        return 3
    report: dict[str, Any] = {}
    for name in chosen.checks:
        started = time.monotonic()
        chosen.deadline = started + chosen.seconds
        try:
            report[name] = CHECKS[name](chosen)
        except Exception as error:  # a check that breaks is a finding; the next one still runs
            report[name] = {"tried": 1, "passed": 0, "failures": [f"{type(error).__name__}: {error}"]}
        report[name]["seconds"] = round(time.monotonic() - started, 1)
        _say(name, report[name])
        _write(chosen, report)
    return int(any(check["passed"] < check["tried"] for check in report.values()))


def _say(name: str, result: dict[str, Any]) -> None:
    word = result.get("skipped") or f"{result['passed']} of {result['tried']} passed"
    late = f", no time for {result['left_out']}" if result.get("left_out") else ""
    print(f"{name}: {word}{late} ({result['seconds']} s)", flush=True)
    for failure in result.get("failures", []):
        print(f"  failed: {failure}")


def _write(chosen: argparse.Namespace, report: dict[str, Any]) -> None:
    if chosen.output is not None:
        facts = info.collect()
        content = {
            "backend": chosen.backend,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "sources": facts["build"].get("git"),
            "fingerprint": facts["build"].get("fingerprint"),
            "versions": facts["versions"],
            "seed": chosen.seed,
            "checks": report,
        }
        chosen.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
