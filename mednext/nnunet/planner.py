"""Plans a data set for nnU-Net as MedNeXt was published: 1 mm isotropic, patches of 128^3 voxels, two a step.

nnU-Net looks for planners in its own folder only, so `mednext nnunet plan` runs this one. It writes a plans file beside
nnU-Net's, which `nnUNetv2_preprocess` and `nnUNetv2_train` take with `-plans_name` and `-p`.
"""

from __future__ import annotations

from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from mednext.errors import InputError, first_line
from mednext.model_file import STRIDE
from mednext.network import LEVELS

__all__ = ["PLANS", "MedNeXtPlanner", "plan"]

PLANS = "nnUNetMedNeXtPlans"


class MedNeXtPlanner(ExperimentPlanner):
    """nnU-Net's planner with a given spacing, patch and batch in 3D. What it plans for 2D is nnU-Net's."""

    def __init__(self, dataset: str | int, spacing: float, patch_size: list[int], batch_size: int, name: str) -> None:
        super().__init__(dataset, plans_name=name, overwrite_target_spacing=[float(spacing)] * 3)
        self.patch_size = patch_size
        self.batch_size = batch_size

    def get_plans_for_configuration(self, spacing: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
        """nnU-Net's entry for a configuration, with our patch and the topology of MedNeXt."""
        entry = super().get_plans_for_configuration(spacing, *arguments, **more)
        if len(spacing) != 3:
            return entry
        levels = LEVELS + 1
        entry["patch_size"] = list(self.patch_size)
        entry["batch_size"] = self.batch_size
        entry["architecture"]["arch_kwargs"] |= {
            "n_stages": levels,
            "features_per_stage": [
                min(self.UNet_base_num_features * 2**level, self.UNet_max_features_3d) for level in range(levels)
            ],
            "kernel_sizes": [[3, 3, 3]] * levels,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * LEVELS,
            "n_conv_per_stage": list(self.UNet_blocks_per_stage_encoder[:levels]),
            "n_conv_per_stage_decoder": list(self.UNet_blocks_per_stage_decoder[:LEVELS]),
        }
        return entry


def plan(
    dataset: str, spacing: float = 1.0, patch_size: list[int] | None = None, batch_size: int = 2, name: str = PLANS
) -> dict[str, Any]:
    """Writes the plans of a data set whose fingerprint nnU-Net has extracted, and returns them.

    Args:
        dataset: nnU-Net's number or name of it.
        spacing: mm a voxel.
        patch_size: voxels of a training patch; 128 an axis by default.
        batch_size: patches a step.
        name: of the plans file.

    Raises:
        InputError: a number that cannot be, no such data set, no fingerprint of it.
    """
    patch_size = [128] * 3 if patch_size is None else patch_size
    if not 0 < spacing < 100:
        raise InputError(f"the spacing is {spacing:g} mm; a number above 0 was expected.")
    if len(patch_size) != 3 or any(extent < STRIDE or extent % STRIDE for extent in patch_size):
        raise InputError(f"the patch size is {patch_size}; three multiples of {STRIDE} were expected.")
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; 1 or more was expected.")
    number = int(dataset) if dataset.isdigit() else dataset
    try:
        planner = MedNeXtPlanner(number, spacing, patch_size, batch_size, name)
    except (RuntimeError, OSError, ValueError) as error:  # nnU-Net's, where a folder or the fingerprint is missing
        raise InputError(
            f"data set {dataset} cannot be planned: {first_line(error)}; run nnUNetv2_extract_fingerprint before."
        ) from error
    return planner.plan_experiment()
