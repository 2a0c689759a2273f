"""What a network keeps for backward where the CUDA kernels run it: every variant, and no more than its shapes say."""

from __future__ import annotations

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

import mednext
import mednext_ops as ops
from mednext.backends_used import BackendsUsed
from mednext.memory import saved_bytes_per_voxel

BASE, LARGE = {None: 1100, "conv": 600}, {None: 1600, "conv": 900}  # bytes a voxel, as in tests/mednext/test_memory.py
LIMITS = {"S": BASE, "B": BASE, "M": LARGE, "L": LARGE, "v2-base": LARGE}
EXTENTS = (16, 32)


@pytest.mark.parametrize("recompute", [None, "conv"])
@pytest.mark.parametrize("variant", LIMITS)
def test_saved_bytes_a_voxel(emulated, variant, recompute):
    network = mednext.create_mednext(variant, 1, 3, deep_supervision=True, recompute=recompute)
    with ops.use_backend("emulated"), emulated.launches_only(), BackendsUsed() as used:  # sizes need no values
        found = saved_bytes_per_voxel(network, extents=EXTENTS)
    assert used.names() == ["emulated"]
    assert found <= LIMITS[variant][recompute]
    with FakeTensorMode():
        twin = mednext.create_mednext(variant, 1, 3, deep_supervision=True, recompute=recompute)
        assert found == saved_bytes_per_voxel(twin, extents=EXTENTS)
