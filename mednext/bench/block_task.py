"""A pass of a MedNeXt block as a task: inference, or forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mednext.bench.accuracy import GATE_SLACK, judge
from mednext.bench.blocks import BlockProblem, draw_input, eager_block, our_block
from mednext.bench.counting import Work, block_work
from mednext.bench.op_task import gradient_like
from mednext.bench.operators import DTYPES, Tensors
from mednext.bench.task import Bound, Implementation, NotComparable

__all__ = ["BlockTask"]

PASSES = ("inference", "forward + backward")


@dataclass(frozen=True)
class BlockTask:
    """A pass of a block."""

    problem: BlockProblem
    pass_name: str
    graph: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "suite": "blocks",
            "problem": str(self.problem),
            "pass_name": self.pass_name,
            "dtype": self.problem.dtype,
            "kernel_size": self.problem.kernel_size,
        }

    def work(self) -> Work:
        block: Any = eager_block(self.problem).to("meta")
        input = torch.empty(self.problem.shape, device="meta")
        return block_work(block, input, self.problem.dtype, self.pass_name == PASSES[1])

    def needed_bytes(self, implementation: Implementation) -> int | None:
        return None

    def bind(self, implementation: Implementation, device: torch.device) -> Bound:
        if implementation.source not in ("mednext", "eager") or implementation.checkpoint:
            raise NotComparable(f"{implementation.name} has no form of a block")
        problem = replace(self.problem, channels_last=implementation.channels_last)
        block = (our_block if implementation.source == "mednext" else eager_block)(problem, device)
        run = _Pass(problem, self.pass_name, block, implementation.compiled(block, own_graph=True), device)

        def check() -> Any:
            plain = replace(problem, channels_last=False)
            eager = _Pass(plain, self.pass_name, layers := eager_block(plain, device), layers, device).results()
            exact = _Pass(plain, self.pass_name, layers.double(), layers, device).results()
            # With a group a channel the convolution's bias cancels: its exact gradient is zero.
            names = [name for name in exact if not name.endswith("conv1.bias")]
            return judge(run.results(), eager, exact, names, GATE_SLACK)

        forward = run.forward if self.pass_name == PASSES[1] else None
        return Bound(run.call, forward, block, check, "output and all gradients against float64")


class _Pass:
    """A block with its input."""

    def __init__(
        self, problem: BlockProblem, pass_name: str, block: nn.Module, function: Any, device: torch.device
    ) -> None:
        self.dtype, self.training, self.device = DTYPES[problem.dtype], pass_name == PASSES[1], device
        self.block, self.function = block.train(self.training), function
        parameter = next(block.parameters())
        input = draw_input(problem, device)["input"]
        self.exact = parameter.dtype == torch.float64
        self.input = (input.double() if self.exact else input).requires_grad_(self.training)
        self._grad: torch.Tensor | None = None

    def forward(self) -> torch.Tensor:
        low = self.dtype.itemsize == 2 and not self.exact
        # Without the cache of cast weights, which a CUDA graph must not keep.
        with torch.autocast(self.device.type, self.dtype if low else None, enabled=low, cache_enabled=False):
            return self.function(self.input)

    def call(self) -> Any:
        if not self.training:
            with torch.no_grad():
                return self.forward()
        output = self.forward()
        if self._grad is None:
            self._grad = gradient_like(output.detach(), self.dtype)
        return output, torch.autograd.grad(output, [self.input, *self.block.parameters()], self._grad)

    def results(self) -> Tensors:
        if not self.training:
            return {"output": self.call()}
        output, gradients = self.call()
        names = ["input", *(name for name, _ in self.block.named_parameters())]
        named = {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}
        return {"output": output.detach()} | named
