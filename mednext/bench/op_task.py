"""A pass of an operator as a task."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mednext.bench.accuracy import GATE_SLACK, judge
from mednext.bench.counting import Work, op_work
from mednext.bench.operators import DTYPES, OPERATORS, OpProblem, Tensors, draw
from mednext.bench.task import Bound, Implementation, NotComparable

__all__ = ["OpTask", "gradient_like"]

EAGER = Implementation("eager", "eager")


@dataclass(frozen=True)
class OpTask:
    """A pass of an operator."""

    problem: OpProblem
    pass_name: str
    graph: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        kernel = self.problem.kernel
        return {
            "suite": "ops",
            "problem": str(self.problem),
            "pass_name": self.pass_name,
            "dtype": self.problem.dtype,
            "kernel_size": kernel[2] if "conv" in self.problem.op else None,
        }

    def work(self) -> Work:
        return op_work(self.problem, self.pass_name)

    def needed_bytes(self, implementation: Implementation) -> int | None:
        return None

    def bind(self, implementation: Implementation, device: torch.device) -> Bound:
        if implementation.source not in ("mednext", "eager") or implementation.checkpoint:
            raise NotComparable(f"{implementation.name} has no form of an operator")
        run = _Pass(self.problem, self.pass_name, implementation, device)

        def check() -> Any:
            exact = _Pass(self.problem, self.pass_name, EAGER, device, torch.float64).results()
            return judge(
                run.results(), _Pass(self.problem, self.pass_name, EAGER, device).results(), exact, slack=GATE_SLACK
            )

        forward = run.forward if run.wanted else None
        return Bound(run.call, forward, nn.Module(), check, "all results against float64")


def gradient_like(output: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A gradient in the output's layout and dtype, of the same values for all: they are rounded to ``dtype`` first."""
    generator = torch.Generator(output.device).manual_seed(1)
    values = torch.randn(output.shape, device=output.device, generator=generator)
    return torch.empty_like(output).copy_(values.to(dtype))


class _Pass:
    """One implementation with its tensors; a backward pass keeps its forward pass' results."""

    def __init__(
        self,
        problem: OpProblem,
        pass_name: str,
        implementation: Implementation,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        problem = replace(problem, channels_last=implementation.channels_last)
        operator = OPERATORS[problem.op]
        function = operator.ours if implementation.source == "mednext" else operator.eager
        self.function = implementation.compiled(functools.partial(function, problem), own_graph=True)
        self.dtype = DTYPES[problem.dtype]
        self.names = operator.results
        drawn = {name: t if dtype is None else t.to(dtype) for name, t in draw(problem, device).items()}
        self.wanted = [name for name in operator.passes[pass_name] if name in drawn]
        self.leaves: Tensors = {name: t.requires_grad_(name in self.wanted) for name, t in drawn.items()}
        self._output: Any = None
        self._grad: Any = None

    def forward(self) -> Any:
        return self.function(self.leaves)

    def call(self) -> Any:
        if not self.wanted:
            with torch.no_grad():
                return self.forward()
        if self._output is None:
            self._output = self.forward()
            self._grad = gradient_like(self._output, self.dtype)
        leaves = [self.leaves[name] for name in self.wanted]
        return torch.autograd.grad(self._output, leaves, self._grad, retain_graph=True)

    def results(self) -> Tensors:
        found = self.call()
        if self.wanted:
            return {f"gradient of {name}": t for name, t in zip(self.wanted, found, strict=True)}
        return dict(zip(self.names, found if isinstance(found, tuple) else (found,), strict=True))
