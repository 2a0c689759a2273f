"""A pass of a network as a task: inference, or a whole training step with its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mednext.bench.accuracy import FACTOR, GATE_SLACK, Verdict, judge, rms_error
from mednext.bench.counting import Work, network_work
from mednext.bench.networks import CLASSES, NetworkProblem, build, eager_network, outputs_of
from mednext.bench.operators import DTYPES, Tensors
from mednext.bench.task import Bound, Implementation, NotComparable
from mednext.memory import saved_bytes

__all__ = ["INFERENCE", "TRAINING", "NetworkTask"]

INFERENCE, TRAINING = "inference", "training step"
CHECKED_PATCH = 32  # edge of the cube on which gradients are compared: float64 at full size would not fit


@dataclass(frozen=True)
class NetworkTask:
    """A pass of a network. Training is with deep supervision, inference without, as nnU-Net does."""

    suite: str
    problem: NetworkProblem
    pass_name: str
    graph: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "problem": str(self.problem),
            "pass_name": self.pass_name,
            "dtype": self.problem.dtype,
            "kernel_size": self.problem.kernel_size,
            "variant": self.problem.variant,
        }

    @property
    def training(self) -> bool:
        return self.pass_name == TRAINING

    def work(self) -> Work:
        network = eager_network(self.problem, self.training).to("meta")
        return network_work(network, self.problem.shape, self.problem.dtype, self.training)

    def needed_bytes(self, implementation: Implementation) -> int | None:
        """What autograd will keep, from sizes alone; None for code that fake tensors may not run through."""
        if not self.training or implementation.source not in ("mednext", "eager"):
            return None
        with FakeTensorMode():
            network, _ = build(implementation, self.problem, True)
            x = torch.empty(self.problem.shape)
            return saved_bytes(network, lambda: _autocast(network, x, self.problem.dtype))

    def bind(self, implementation: Implementation, device: torch.device) -> Bound:
        if implementation.graph and (device.type != "cuda" or self.problem.dtype == "fp16"):
            # A gradient scaler asks the device whether to skip the step.
            raise NotComparable("a CUDA graph is of a GPU, in bf16 or fp32")
        if implementation.checkpoint and not self.training:
            raise NotComparable("nothing is kept for a backward pass in inference: it is the network without")
        network, twin = build(implementation, self.problem, self.training)
        memory_format = torch.channels_last_3d if implementation.channels_last else torch.contiguous_format
        placed: Any = network.to(device).train(self.training)
        placed = placed.to(memory_format=memory_format)
        x = scan(self.problem.shape, device).contiguous(memory_format=memory_format)
        function = implementation.compiled(placed)
        dtype = self.problem.dtype

        def forward() -> Any:
            return _autocast(function, x, dtype, cache=not implementation.graph)

        def infer() -> Any:
            with torch.no_grad():
                return forward()

        def check() -> Verdict:
            return self._check(implementation, placed, twin, infer, device)

        call = _training_step(placed, forward, x, dtype, implementation.graph) if self.training else infer
        checked = f"outputs at {self.problem.patch}^3 against float64"
        if twin is None:
            checked += " of the same network"
        elif self.training and implementation.compile is None:
            checked += f", gradients at {min(CHECKED_PATCH, self.problem.patch)}^3"
        note = "its own arithmetic and weights" if twin is None else ""
        return Bound(call, forward if self.training else None, placed, check, checked, note)

    def _check(
        self,
        implementation: Implementation,
        network: nn.Module,
        twin: nn.Module | None,
        infer: Callable[[], Any],
        device: torch.device,
    ) -> Verdict:
        eager = (twin or eager_network(self.problem, self.training)).to(device).train(self.training)
        x = scan(self.problem.shape, device)
        dtype = self.problem.dtype
        with torch.no_grad():
            low = _named(_autocast(eager, x, dtype))
            exact = _named(eager.double()(x.double()))
            if twin is None:
                own = copy.deepcopy(network).double()
                return _like(_named(infer()), _named(own(x.double())), low, exact)
            verdict = judge(_named(infer()), low, exact, slack=GATE_SLACK)
        if not verdict.ok or not self.training or implementation.compile is not None:
            return verdict
        small = scan((1, *self.problem.shape[1:2], *(min(CHECKED_PATCH, self.problem.patch),) * 3), device)
        wanted = _gradients(eager, small.double(), None)
        gradients = _gradients(network, small, dtype)
        pytorchs = _gradients(eager.float(), small, dtype)
        return max(verdict, judge(gradients, pytorchs, wanted, slack=GATE_SLACK), key=lambda v: v.error / v.allowed)


def scan(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Random voxels, the same in every run."""
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(0))


def _autocast(network: Any, x: torch.Tensor, dtype: str, cache: bool = True) -> Any:
    """Under autocast; without its cache in a CUDA graph, whose own the cached copies of the weights would be."""
    if dtype == "fp32":
        return network(x)
    with torch.autocast(x.device.type, DTYPES[dtype], cache_enabled=cache):
        return network(x)


def _named(result: Any) -> Tensors:
    return {f"output {level}": output for level, output in enumerate(outputs_of(result))}


def _like(results: Tensors, own: Tensors, low: Tensors, exact: Tensors) -> Verdict:
    """A network of other arithmetic, by its own float64 twin, with the error of plain PyTorch's MedNeXt in the rule."""
    eager_error = max(rms_error(low[name], exact[name]) for name in exact)
    error = max(rms_error(results[name], own[name]) for name in own)
    rounding = torch.finfo(next(iter(results.values())).dtype).eps
    return Verdict("outputs", error, eager_error, FACTOR * eager_error + rounding + GATE_SLACK)


def _gradients(network: nn.Module, x: torch.Tensor, dtype: str | None) -> Tensors:
    """Of the weights, those of one kind joined: one small tensor's error is a draw."""
    outputs = outputs_of(network(x) if dtype is None else _autocast(network, x, dtype))
    loss = sum((y.double() * scan(tuple(y.shape), y.device)).sum() / y.numel() ** 0.5 for y in outputs)
    named = {name: p for name, p in network.named_parameters() if p.requires_grad and name != "dummy_tensor"}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, gradient in zip(named, found, strict=True):
        kind = ".".join(name.split(".")[-2:])
        if gradient is not None and kind != "conv1.bias":  # which cancels
            kinds.setdefault(f"gradients of {kind}", []).append(gradient.flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}


def _training_step(
    network: nn.Module, forward: Callable[[], Any], x: torch.Tensor, dtype: str, graph: bool
) -> Callable[[], torch.Tensor]:
    """Forward, cross entropy at every level, backward, AdamW; with a GradScaler in fp16; fit for a CUDA graph."""
    # A rate of zero: step after step with the same weights, at the same cost.
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0, capturable=graph)
    scaler = torch.amp.GradScaler(x.device.type, enabled=dtype == "fp16")
    generator = torch.Generator(x.device).manual_seed(1)
    truth = torch.randint(CLASSES, (x.shape[0], *x.shape[2:]), device=x.device, generator=generator)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=x.device)
        for level, output in enumerate(outputs_of(forward())):
            every = x.shape[2] // output.shape[2]
            loss = loss + 0.5**level * F.cross_entropy(output.float(), truth[:, ::every, ::every, ::every])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
