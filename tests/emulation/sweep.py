"""Random problems on the emulation, judged and counted: at most twice PyTorch's own error, against float64.

    python benchmarks/emulated_sweep.py --problems 2000 --output benchmarks/results/emulated-sweep.json

run in a clone builds the emulated library where it must, tries so many problems of each operator and writes how many
passed, an operator, dtype and core. The exit status is 1 if one failed. The tests try the first 200 of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from mednext_ops import backends, info, native
from mednext_ops.plans import PASSES

from ..ops.eager import rms_error
from .random_problems import OPS, Drawn, cores_of, draw
from .random_results import Comparison, comparisons, results

__all__ = ["FEW", "Pools", "check"]

#: Numbers of a tensor, or of a pool, whose error is a draw.
FEW = 64
FACTOR = 2.0


class Pools:
    """Errors of tensors of a few numbers, of many problems together, by name and type.

    Each number is a sum, and measured in what was added up: of one the error is a draw, of hundreds it is a rule.
    """

    def __init__(self) -> None:
        self._squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._numbers: Counter[str] = Counter()

    def add(self, p: Drawn, compared: Comparison) -> None:
        assert compared.terms is not None
        pool = f"{compared.name} in {name_of(p.dtype)}"
        summed = compared.terms > 0
        assert not compared.ours[~summed].any(), f"{compared.name} of nothing, of {p}"
        exact, terms = compared.exact[summed], compared.terms[summed]
        for at, values in enumerate((compared.ours, compared.theirs)):
            self._squares[pool][at] += ((values[summed].double() - exact) / terms).square().sum().item()
        self._numbers[pool] += exact.numel()

    def errors(self) -> dict[str, dict[str, float]]:
        """Root mean squares, ours and PyTorch's, and of how many numbers."""
        return {
            name: {"ours": math.sqrt(our / n), "pytorch": math.sqrt(their / n), "numbers": n}
            for name, (our, their) in self._squares.items()
            if (n := self._numbers[name])
        }

    def failures(self) -> list[str]:
        return [
            f"{name}, {e['numbers']} of them together: error {e['ours']:.2e}, PyTorch's own {e['pytorch']:.2e}"
            for name, e in self.errors().items()
            if e["numbers"] >= FEW and not e["ours"] <= min(FACTOR * e["pytorch"], sys.float_info.max)
        ]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(emulated: Any, p: Drawn, pools: Pools) -> int:
    """Try one problem; ``pools`` takes what cannot be judged alone.

    Returns:
        Of how many results PyTorch's own were no numbers: those are compared with one rounding instead.

    Raises:
        AssertionError: a result is wrong; the text names it and the problem.
    """
    not_numbers = 0
    for compared in comparisons(p, results(emulated, p)):
        name, ours, theirs, exact, terms = compared
        assert ours.isfinite().all() and ours.shape == exact.shape, f"{name} of {p}"
        few = int((exact if terms is None else terms).count_nonzero()) < FEW
        if terms is not None and (few or exact.dim() == 1) and not theirs.isnan().any():
            pools.add(p, compared)
            continue
        our, their = rms_error(ours, exact), rms_error(theirs, exact)
        if math.isnan(their):  # PyTorch's convolutions on a CPU have read memory that nobody wrote
            their = torch.finfo(p.dtype).eps
            not_numbers += 1
        # In 16 bits no more than that. One rounding of a few numbers in float32 is a draw.
        slack = torch.finfo(torch.float32).eps if few and ours.dtype == torch.float32 else 0.0
        assert our <= FACTOR * their + slack, f"{name}: error {our:.2e}, PyTorch's own {their:.2e}, of {p}"
    return not_numbers


def sweep(emulated: Any, op: str, problems: int) -> dict[str, Any]:
    """The report of one operator."""
    tried: Counter[tuple[str, ...]] = Counter()
    failed: Counter[tuple[str, ...]] = Counter()
    pools, failures, not_numbers = Pools(), [], 0
    for seed in range(problems):
        p = draw(op, seed)
        keys = [(), ("dtype", name_of(p.dtype)), *cores_of(p).items()]
        tried.update(keys)
        try:
            not_numbers += check(emulated, p, pools)
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            failures.append(str(error))
            failed.update(keys)

    def counts(kind: str) -> dict[str, dict[str, int]]:
        keys = sorted(key for key in tried if key[:1] == (kind,))
        return {key[1]: {"tried": tried[key], "passed": tried[key] - failed[key]} for key in keys}

    return {
        "tried": problems,
        "passed": problems - failed[()],
        "failures": failures + pools.failures(),
        "results_of_pytorch_that_were_nan": not_numbers,
        "dtypes": counts("dtype"),
        "cores": {name: counts(name) for name in PASSES},
        "errors_of_all_together": pools.errors(),
    }


def main() -> int:
    from .conftest import ROOT, build

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000, help="an operator (default 2000)")
    parser.add_argument("--output", type=Path, help="write the counts as JSON into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[native.EMULATED_LIBRARY_VARIABLE] = str(build(sanitize=False) / "libmednext_ops_emulated.so")
    emulated = backends._module("emulated")
    revision = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/emulated_sweep.py", *sys.argv[1:]]),
        "git": subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip(),
        "versions": info.collect()["versions"],
        "operators": {},
    }
    for op in OPS:
        started = time.monotonic()
        found = report["operators"][op] = sweep(emulated, op, options.problems)
        found["seconds"] = round(time.monotonic() - started, 1)
        print(f"{op}: {found['passed']} of {found['tried']} passed ({found['seconds']} s)", flush=True)
        for failure in found["failures"]:
            print(f"  failed: {failure}")
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(found["failures"] for found in report["operators"].values()))


if __name__ == "__main__":
    sys.exit(main())
