"""MedNeXt in nnU-Net v2: trainers that nnU-Net finds by itself, a planner for the published setting, UpKern.

Nothing here is imported by the rest of the package, and importing this module does not import nnU-Net.
"""

from pathlib import Path

__all__ = ["TRAINERS"]

TRAINERS = Path(__file__).parent / "external"  # what nnUNet_extTrainer must name
