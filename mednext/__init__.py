"""MedNeXt networks on fused operators: the official arguments, state dicts and results, with less time and memory."""

from mednext.accelerate import accelerate
from mednext.blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, OutBlock
from mednext.checkpoints import CheckpointReport, load_checkpoint
from mednext.network import MedNeXt
from mednext.shared_windows import ShareWindows
from mednext.upkern import upkern
from mednext.variants import create_mednext

__all__ = [
    "CheckpointReport",
    "MedNeXt",
    "MedNeXtBlock",
    "MedNeXtDownBlock",
    "MedNeXtUpBlock",
    "OutBlock",
    "ShareWindows",
    "accelerate",
    "create_mednext",
    "load_checkpoint",
    "upkern",
]
