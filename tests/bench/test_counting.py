"""Operations and bytes that problems take, counted from their sizes."""

from __future__ import annotations

import pytest
import torch

from mednext.bench.counting import Work, block_work, multiply_adds, network_work, op_work
from mednext.bench.networks import NetworkProblem, eager_network
from mednext.bench.operators import OpProblem
from mednext.eager import EagerBlock

#: Table 1 and supplement of Roy et al. (MICCAI 2023): GMACs at 1x128^3.
PUBLISHED = {3: {"S": 127, "B": 167, "M": 244, "L": 495}, 5: {"S": 166, "B": 205, "M": 304, "L": 559}}


@pytest.mark.parametrize("kernel_size", PUBLISHED)
@pytest.mark.parametrize("variant", "SBML")
def test_the_arithmetic_is_the_published_one(variant, kernel_size):
    network = eager_network(NetworkProblem(variant, kernel_size, 128), deep_supervision=False).to("meta")
    counted = multiply_adds(network, torch.empty(1, 1, 128, 128, 128, device="meta"))
    assert round(counted / 1e9) == PUBLISHED[kernel_size][variant]


def test_a_network_takes_what_its_convolutions_take():
    network = eager_network(NetworkProblem("S", 3, 32), deep_supervision=False).to("meta")
    shape = (1, 1, 32, 32, 32)
    inference, training = (network_work(network, shape, "fp32", training) for training in (False, True))
    assert inference.operations == 2 * multiply_adds(network, torch.empty(shape, device="meta"))
    assert training.operations == 3 * inference.operations
    assert network_work(network, shape, "bf16", False).bytes * 2 == inference.bytes


@pytest.mark.parametrize(
    ("problem", "pass_name", "elements", "operations"),
    [
        (OpProblem("depthwise_conv3d", (2, 8, 4, 6, 8), (3, 3, 3)), "forward", 2 * 3072, 2 * 27 * 3072),
        (OpProblem("depthwise_conv3d", (2, 8, 4, 6, 8), (5, 5, 5)), "backward weight", 2 * 3072, 2 * 125 * 3072),
        (
            OpProblem("depthwise_conv3d", (1, 1, 4, 4, 4), (3, 3, 3), (2, 2, 2)),
            "backward data",
            64 + 8,
            2 * 27 * 8,
        ),
        (
            OpProblem("depthwise_conv_transpose3d", (1, 1, 4, 4, 4), (3, 3, 3), (2, 2, 2)),
            "forward",
            64 + 7**3,
            2 * 27 * 64,
        ),
        (OpProblem("inverted_bottleneck", (1, 4, 2, 2, 2), ratio=3), "forward", 4 * 32, 2 * 2 * 3 * 16 * 8),
        (
            OpProblem("inverted_bottleneck", (1, 4, 2, 2, 2), ratio=3, outputs=8),
            "forward",
            2 * 32 + 2 * 64,
            2 * 12 * (4 + 8) * 8,
        ),
    ],
)
def test_an_operator_moves_its_tensors_once(problem, pass_name, elements, operations):
    assert op_work(problem, pass_name) == Work(4 * elements, operations)


def test_a_block_writes_its_convolution_and_reads_it_again():
    block = EagerBlock(4, 4, 2, 3, True, step=0, axes=3, grn=False).to("meta")
    work = block_work(block, torch.empty(1, 4, 8, 8, 8, device="meta"), "fp32", training=False)
    assert work.bytes == 4 * 5 * 4 * 8**3
    assert work.operations == 2 * 8**3 * (4 * 27 + 2 * 4 * 8)


def test_the_floor_is_the_slower_of_moving_and_computing():
    assert Work(100, 10).floor_seconds(10.0, 10.0) == 10.0
    assert Work(10, 1000).floor_seconds(10.0, 10.0) == 100.0
