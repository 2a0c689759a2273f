"""What the suites measure, seen from the runner: tasks, and implementations that they bind to something callable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

import mednext_ops as ops
from mednext.bench.accuracy import Verdict
from mednext.bench.counting import Work

__all__ = ["Bound", "Implementation", "NotComparable", "Task"]


class NotComparable(Exception):
    """This implementation has no form for this task, and why; there is no row of it."""


@dataclass(frozen=True)
class Implementation:
    """Whose code runs.

    Attributes:
        name: in tables and plots.
        source: "mednext", "eager" (plain PyTorch), "monai" or "user".
        backend: that ours is forced to; None for the default choice.
        channels_last: weights and voxels are in channels_last_3d.
        compile: the mode of ``torch.compile``, or None.
        factory: the user's ``package.module:function``.
        graph: the whole pass, a training step with its optimizer, is one CUDA graph.
        checkpoint: of a network in training: each block keeps its input alone and runs again in the backward pass.
    """

    name: str
    source: str
    backend: str | None = None
    channels_last: bool = False
    compile: str | None = None
    factory: str | None = None
    graph: bool = False
    checkpoint: bool = False

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """While this is open, calls run on its backend; the reference serves what that has no kernel for."""
        if self.backend is None:
            yield
        else:
            with ops.use_backend(*dict.fromkeys((self.backend, "reference"))):
                yield

    def compiled(self, function: Any, own_graph: bool = False) -> Any:
        """The function or module as this implementation runs it; ``own_graph``: its CUDA graph is made by the timer."""
        if self.compile is None:
            return function
        from torch._dynamo import config as dynamo  # takes seconds
        from torch._functorch import config as functorch

        functorch.donated_buffer = False  # a backward pass is run again and again
        dynamo.fail_on_recompile_limit_hit = True  # or it would run as it is, under this name
        mode = self.compile + "-no-cudagraphs" if own_graph and self.compile == "max-autotune" else self.compile
        return torch.compile(function, mode=mode, dynamic=False)


@dataclass
class Bound:
    """An implementation of a task on its tensors.

    Attributes:
        call: the pass that is timed.
        forward: what autograd saves tensors of, if the pass has a backward part.
        module: whose weights do not count as saved.
        check: its result against the exact one; raises a ``ValueError`` where the shape is wrong.
        checked: what that compares, in words.
        note: a remark for the row.
    """

    call: Callable[[], Any]
    forward: Callable[[], Any] | None
    module: nn.Module
    check: Callable[[], Verdict]
    checked: str
    note: str = ""

    def weights_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.module.parameters())


class Task(Protocol):
    """A pass of a problem."""

    @property
    def fields(self) -> dict[str, Any]:
        """Of :class:`~mednext.bench.rows.Row`: suite, problem, pass_name, dtype, kernel_size, variant."""

    @property
    def graph(self) -> bool:
        """Whether to time it as a CUDA graph where that can be."""

    def work(self) -> Work:
        """What it takes, whoever runs it."""

    def needed_bytes(self, implementation: Implementation) -> int | None:
        """Memory that it will take at least, where that should be known before it is tried."""

    def bind(self, implementation: Implementation, device: torch.device) -> Bound:
        """The implementation, ready to be called.

        Raises:
            NotComparable: it has no form for this.
        """
