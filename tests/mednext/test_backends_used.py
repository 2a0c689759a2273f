"""The report names the backends that ran the operators, also those of problems that ran before."""

from __future__ import annotations

import logging

import torch

import mednext_ops as ops
from mednext.backends_used import BackendsUsed


def test_every_run_hears_of_its_backends_and_leaves_the_log_as_it_was() -> None:
    x, weight = torch.randn(1, 2, 4, 4, 4), torch.randn(2, 1, 3, 3, 3)
    logger = logging.getLogger("mednext_ops")
    before = (logger.level, list(logger.handlers))
    for _ in range(2):
        with ops.use_backend("reference"), BackendsUsed() as used:
            ops.depthwise_conv3d(x, weight)
        assert used.names() == ["reference"]
        assert used.by_op() == {"depthwise_conv3d": ["reference"]}
        assert (logger.level, list(logger.handlers)) == before
