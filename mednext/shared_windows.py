"""Sliding-window inference over several processes: each window is computed by one of them, and all get all results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["ShareWindows"]


class ShareWindows:
    """A predictor for any sliding-window inference, MONAI's too, that shares each batch of windows among the processes.

    Every process runs the same inference over the same scan and holds the same result in the end: that of one process
    which computes as many windows at a time as each of these does. Make the batch of windows a multiple of the number
    of processes. Without a process group, or with one process, it is ``network``.

    Args:
        network: anything that makes one tensor [B, ...] of windows [B, C, ...].
        group: the processes that share; all by default.

    Example:
        >>> inferer = monai.inferers.SlidingWindowInferer((128, 128, 128), sw_batch_size=2 * dist.get_world_size())
        >>> logits = inferer(scan, mednext.ShareWindows(network))
    """

    def __init__(self, network: Callable[..., Any], group: Any = None) -> None:
        if not callable(network):
            raise TypeError(f"network must be a module or a function of windows, got {type(network).__name__}")
        self.network = network
        self.group = group

    def __call__(self, windows: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
        """What ``network`` makes of ``windows``; ``arguments`` are passed on to it.

        Raises:
            TypeError: the network's output is no tensor (switch deep supervision off).
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self.group) == 1:
            return self.network(windows, *arguments, **more)
        processes, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        share = -(-len(windows) // processes)
        mine = windows[rank * share : (rank + 1) * share]
        spare = share - len(mine)  # windows that this process lacks at the end of a batch: it repeats the last one
        if spare:
            mine = torch.cat([mine, windows[-1:].expand(spare, *windows.shape[1:])])
        output = self.network(mine, *arguments, **more)
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"network must return one tensor, got {type(output).__name__}: switch deep supervision off")
        output = output.contiguous()
        parts = [torch.empty_like(output) for _ in range(processes)]
        dist.all_gather(parts, output, group=self.group)
        return torch.cat(parts)[: len(windows)]
