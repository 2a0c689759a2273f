"""A tensor for which there is no memory: the caller is told which, by the exception that PyTorch has for it."""

from __future__ import annotations

import types

import pytest
import torch

import mednext_ops as ops
from mednext_ops.backends.failures import as_torch_raises

#: An output of 2^50 bytes: more than a process can address.
PADDING = 2**15


@pytest.mark.parametrize("channels", [1, 3])
def test_an_output_that_is_too_large_is_named(channels):
    if "cpu" not in ops.available_backends():
        pytest.skip("the CPU library is not built")
    x, weight = torch.ones(1, channels, 2, 2, 2), torch.ones(channels, 1, 3, 3, 3)
    extent = 2 * PADDING
    with ops.use_backend("cpu"), pytest.raises(RuntimeError) as raised:
        ops.depthwise_conv3d(x, weight, padding=PADDING)
    said = str(raised.value)
    assert f"a tensor of [1, {channels}, {extent}, {extent}, {extent}] could not be allocated on the CPU" in said
    assert "API call failed" not in said
    ops.depthwise_conv3d(x, weight, padding=1)  # and the next call is well


NATIVE = "a tensor of [1, 32, 128, 128, 128] could not be allocated on the GPU"


@pytest.mark.parametrize("reason", ["", ": CUDA out of memory. Tried to allocate 20 GiB"])
def test_a_gpu_that_is_out_of_memory_raises_what_pytorch_raises(reason):
    told = as_torch_raises(RuntimeError(NATIVE + reason), "cuda")
    assert type(told) is torch.OutOfMemoryError
    assert NATIVE in str(told) and "out of memory" in str(told).lower()


@pytest.mark.parametrize(
    ("error", "device_type"),
    [
        (RuntimeError(NATIVE + ": an illegal memory access was encountered"), "cuda"),
        (RuntimeError("depthwise_conv3d: stride must be 1 or 2"), "cuda"),
        (RuntimeError("a tensor of [2] could not be allocated on the CPU"), "cpu"),
        (torch.OutOfMemoryError("CUDA out of memory"), "cuda"),
    ],
)
def test_other_errors_stay_as_they_are(error, device_type):
    assert as_torch_raises(error, device_type) is error


def test_the_caller_of_an_op_gets_it(monkeypatch):
    """Through the dispatcher, from a backend that says it runs on a GPU."""
    from mednext_ops import backends

    def fail(*_):
        raise RuntimeError(NATIVE)

    monkeypatch.setattr(backends, "as_torch_raises", lambda error, _: as_torch_raises(error, "cuda"))
    with ops.use_backend("reference"):
        monkeypatch.setattr(backends.reference, "depthwise_conv3d", fail)
        with pytest.raises(torch.OutOfMemoryError, match="could not be allocated"):
            ops.depthwise_conv3d(torch.ones(1, 1, 3, 3, 3), torch.ones(1, 1, 3, 3, 3))


FUSED = {
    "depthwise_conv3d_statistics": lambda x, w, m: ops.depthwise_conv3d_group_norm(
        x, w, None, torch.ones(4), torch.zeros(4), num_groups=4, padding=1
    ),
    "pointwise_conv3d": lambda x, w, m: ops.pointwise_conv3d(x, m, None),
    "up_bottleneck": lambda x, w, m: ops.mednext_block(
        x, w, None, torch.ones(4), torch.zeros(4), torch.ones(8, 4), None, torch.ones(2, 8), None,
        form="up", residual=False,
    ),
    "packed_voxels": lambda x, w, m: ops.mednext_block(
        x, w, None, torch.ones(4), torch.zeros(4), torch.ones(8, 4), None, torch.ones(8, 8), None,
        form="down", residual_weight=torch.ones(8, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_the_caller_of_a_fused_form_gets_it_too(monkeypatch, name):
    """Forms that only some backends have; here one that has nothing else, before the reference."""
    from mednext_ops import backends

    def fail(*_):
        raise RuntimeError(NATIVE)

    memory_less = types.SimpleNamespace(
        NAME="cpu", unavailable=lambda: None, supports=lambda p: None if p.op == name else "not asked", **{name: fail}
    )
    module = backends._module
    monkeypatch.setattr(backends, "_module", lambda n: memory_less if n == "cpu" else module(n))
    monkeypatch.setattr(backends, "as_torch_raises", lambda error, _: as_torch_raises(error, "cuda"))
    backends._first_taker.cache_clear()
    try:
        with ops.use_backend("cpu", "reference"), pytest.raises(torch.OutOfMemoryError, match="could not be allocated"):
            FUSED[name](torch.ones(1, 4, 4, 4, 4), torch.ones(4, 1, 3, 3, 3), torch.ones(4, 4))
    finally:
        backends._first_taker.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_on_a_gpu(backend):
    if backend not in ops.available_backends():
        pytest.skip(f"{backend} is not here")
    x, weight = torch.ones(1, 1, 2, 2, 2, device="cuda"), torch.ones(1, 1, 3, 3, 3, device="cuda")
    with ops.use_backend(backend), pytest.raises(torch.OutOfMemoryError):
        ops.depthwise_conv3d(x, weight, padding=PADDING // 4)  # 2^44 bytes
    with ops.use_backend(backend):
        assert ops.depthwise_conv3d(x, weight, padding=1).sum() == 64
