"""The tests that every backend passes, tests/ops, with Triton's kernels below the ops.

Of those tests the ones in float64 go to the reference and would show nothing; what is taken here meets each op's
autograd, autocast and shape functions in the types that Triton serves. In the interpreter a program costs milliseconds,
so of the many combinations of a test a few are run that differ in every parameter.
"""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops
from mednext_ops import backends

from ..ops import test_contract as contract
from ..ops import test_depthwise_convolution as convolution
from ..ops import test_group_norm as group_norm
from ..ops import test_mednext_block as block
from ..ops import test_nn as layers

#: An op of each family of implementations; opcheck runs each a dozen times.
CHECKED = [
    "depthwise_conv3d_backward_weight", "group_norm_statistics", "depthwise_conv3d_group_norm", "inverted_bottleneck",
    "mednext_block",
]  # fmt: skip

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def calls(request, triton_backend, device, monkeypatch):
    """Every op that Triton takes runs on it: the test fails where it took none."""
    if request.cls is TestOnTheCpu and device != "cpu":
        pytest.skip("these tensors are on the CPU")
    module = backends._module("triton")
    if device == "cpu" and not module.interpreted():
        pytest.skip("compiled kernels run on the GPU")
    served = []
    serve = module._served
    monkeypatch.setattr(module, "_served", lambda op, *args: served.append(op) or serve(op, *args))
    with ops.use_backend("triton", "reference"):
        yield served
    assert served


@pytest.mark.parametrize(("kernel", "dtype"), [((3, 3, 3), FLOAT32), ((3, 3, 3), BFLOAT16), ((3, 3, 3), FLOAT16)])
def test_convolutions_error_is_within_twice_that_of_pytorch(device, kernel, dtype):
    convolution.test_error_is_within_twice_that_of_pytorch(device, kernel, dtype)


@pytest.mark.parametrize("op", [ops.depthwise_conv3d, ops.depthwise_conv_transpose3d])
def test_an_empty_batch_gives_empty_output_and_zero_weight_gradient(device, op):
    convolution.test_empty_batch_gives_empty_output_and_zero_weight_gradient(device, op)


def test_16_bit_inputs_take_float32_parameters_and_give_float32_gradients(device):
    convolution.test_16_bit_inputs_take_float32_parameters_and_give_float32_gradients(device)


@pytest.mark.parametrize(("dtype", "shift"), [(FLOAT32, 1000.0), (BFLOAT16, 0.0), (FLOAT16, 1000.0)])
def test_statistics_are_accurate_where_the_mean_dwarfs_the_deviation(device, dtype, shift):
    group_norm.test_statistics_are_accurate_where_the_mean_dwarfs_the_deviation(device, dtype, shift)


def test_a_constant_channel_gives_the_norms_bias(device):
    group_norm.test_a_constant_channel_gives_the_norms_bias(device)


@pytest.mark.parametrize(
    ("form", "stride", "with_grn", "dtype"),
    [
        ("regular", (1, 1, 1), True, FLOAT32),
        ("regular", (1, 1, 1), False, BFLOAT16),
        ("down", (2, 2, 2), False, FLOAT32),
        ("down", (1, 2, 2), True, BFLOAT16),
        ("up", (2, 2, 2), True, FLOAT16),
    ],
)
def test_a_blocks_error_is_within_twice_that_of_pytorch(device, form, stride, with_grn, dtype):
    block.test_error_is_within_twice_that_of_pytorch(device, form, stride, with_grn, dtype)


@pytest.mark.parametrize("extreme", ["mean", "gamma", "variance"])
def test_extremes_of_the_norm_stay_within_twice_the_error_of_pytorch(device, extreme):
    block.test_extremes_of_the_norm_stay_within_twice_the_error_of_pytorch(device, extreme)


def test_autocast_casts_activations_and_keeps_float32_gradients_of_parameters(device):
    contract.test_autocast_casts_activations_and_keeps_float32_gradients_of_parameters(device, BFLOAT16)


class TestOnTheCpu:
    """Tests that draw their tensors on the CPU."""

    @pytest.mark.parametrize("name", CHECKED)
    def test_opcheck(self, name):
        """Schema, shape function, autograd registration and tracing, with float32 parameters of a 16-bit volume."""
        contract.test_opcheck(name, torch.contiguous_format, BFLOAT16, FLOAT32)

    def test_autocast_computes_the_same_as_casting_by_hand(self):
        contract.test_autocast_computes_the_same_as_casting_by_hand()

    def test_saved_tensors_are_the_input_the_convolution_and_the_statistics(self):
        block.test_saved_tensors_are_the_input_the_convolution_and_the_statistics()

    def test_the_parts_of_a_pruned_layer_keep_autocasts_dtype(self):
        layers.test_the_parts_of_a_pruned_layer_keep_autocasts_dtype()
