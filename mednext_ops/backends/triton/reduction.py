"""Sums of the parts that programs left in a workspace: in double and in a fixed order, so the same bits every time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mednext_ops.backends.triton.launch import INTERPRETS, Blocks, cdiv, launch

__all__ = ["sum_of_parts"]


@triton.jit
def add_parts(workspace, sums, rows, parts, BR: tl.constexpr, BP: tl.constexpr):
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    total = tl.zeros((BR, BP), tl.float64)
    for begin in range(0, parts, BP):
        part = begin + tl.arange(0, BP)
        mask = (row < rows)[:, None] & (part < parts)[None, :]
        place = row.to(tl.int64)[:, None] * parts + part[None, :]
        total += tl.load(workspace + place, mask, 0.0).to(tl.float64)
    tl.store(sums + row, tl.sum(total, 1).to(tl.float32), row < rows)


def sum_of_parts(workspace: torch.Tensor) -> torch.Tensor:
    """The sum over the last dimension of a contiguous float32 tensor."""
    sums = workspace.new_empty(workspace.shape[:-1])
    parts = workspace.shape[-1]
    if parts == 0:
        return sums.zero_()
    # In the interpreter a program costs the same whatever its size.
    blocks = Blocks.of(BR=256 if INTERPRETS else 4, BP=128)
    launch(
        add_parts,
        cdiv(sums.numel(), blocks["BR"]),
        blocks,
        workspace=workspace,
        sums=sums,
        rows=sums.numel(),
        parts=parts,
    )
    return sums
