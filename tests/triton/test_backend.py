"""The Triton backend as a choice: where it stands in the order, what it lacks to run, what it declines."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import mednext_ops as ops
from mednext_ops import backends, info
from mednext_ops.backends import triton as backend
from mednext_ops.backends.problem import Problem

SHAPE = (2, 4, 5, 5, 5)


@pytest.fixture
def fresh(monkeypatch):
    backend.unavailable.cache_clear()
    yield monkeypatch
    backend.unavailable.cache_clear()


def test_a_gpu_tensor_goes_to_cuda_then_triton_and_a_cpu_tensor_never_to_triton_by_itself():
    assert backends.DEFAULT_ORDER["cuda"] == ("cuda", "triton", "reference")
    assert "triton" not in backends.DEFAULT_ORDER["cpu"]


def test_triton_stands_in_for_a_cuda_library_that_is_missing(monkeypatch, triton_backend):
    """A GPU's tensor on a machine without the CUDA library, asked as a problem: no GPU is needed to decide."""
    monkeypatch.setattr(backends._module("cuda"), "unavailable", lambda: "it was not built")
    backends._first_taker.cache_clear()
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    monkeypatch.setattr(backend, "unavailable", lambda: None)
    problem = Problem("group_norm", "cuda", torch.bfloat16, SHAPE)
    module, declined = backends._first_taker(problem, None)
    assert module.NAME == "triton" and declined == "cuda: it was not built"
    module, declined = backends._first_taker(Problem("group_norm", "cuda", torch.float64, SHAPE), None)
    assert module.NAME == "reference" and "triton: it has no kernel for torch.float64" in declined
    backends._first_taker.cache_clear()


def test_what_a_cuda_library_declines_goes_to_pytorch_and_to_triton_only_if_asked(monkeypatch, triton_backend):
    cuda = backends._module("cuda")
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(cuda, "supports", lambda problem: "too large")
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    monkeypatch.setattr(backend, "unavailable", lambda: None)
    backends._first_taker.cache_clear()
    problem = Problem("group_norm", "cuda", torch.bfloat16, SHAPE)
    module, declined = backends._first_taker(problem, None)
    assert module.NAME == "reference"
    assert declined == "cuda: too large; triton: it stands in for the CUDA library, which is here"
    assert backends._first_taker(problem, ("cuda", "triton"))[0].NAME == "triton"
    backends._first_taker.cache_clear()


def test_without_triton_it_says_what_to_install(fresh):
    found = importlib.util.find_spec
    fresh.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))
    assert backend.unavailable() == "triton is not installed; pip install 'mednext-ops[triton]' (Linux)"


def test_a_triton_that_does_not_start_is_told_with_its_own_words(fresh):
    def broken():
        raise AttributeError("module 'triton' has no attribute 'knobs'")

    fresh.setattr(backend, "interpreted", broken)
    assert "AttributeError: module 'triton' has no attribute 'knobs'; pip install -U" in backend.unavailable()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU is")
def test_without_a_gpu_and_the_interpreter_it_names_both(triton_backend):
    code = "import triton; from mednext_ops.backends import triton as b; print(b.unavailable())"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "torch sees no GPU" in said and "TRITON_INTERPRET=1" in said


def test_the_package_does_not_import_triton():
    code = (
        "import sys, mednext_ops, mednext; mednext_ops.backends._module('triton'); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_declines_with_a_reason(triton_backend):
    here = "cpu" if backend.interpreted() else "cuda"

    def reason(op="group_norm", device=here, dtype=torch.float32, shape=SHAPE, **details):
        return backend.supports(Problem(op, device, dtype, shape, **details))

    assert reason() is None
    assert (reason(device="cpu") is None) == backend.interpreted()
    assert (reason(device="cuda") is None) == (not backend.interpreted())
    assert "not on mps" in reason(device="mps")
    assert "no kernel for an_op_to_come" in reason("an_op_to_come")
    assert "no kernel for torch.float64" in reason(dtype=torch.float64)
    assert "no kernel for torch.float64" in reason(parameter_dtype=torch.float64)
    assert "not 4 dimensions" in reason(shape=SHAPE[1:])


def test_info_tells_of_it(triton_backend):
    facts = info.collect()
    assert facts["backends"]["triton"] is None
    assert facts["versions"]["triton"] is not None
    said = info.describe(facts)
    assert "TRITON_INTERPRET" in said or torch.cuda.is_available()


def test_every_op_is_served_by_it_when_forced(triton_backend, device):
    x = torch.randn(1, 4, 4, 5, 6, device=device)
    w = torch.randn(4, 1, 3, 3, 3, device=device)
    weight = torch.ones(4, device=device)
    with ops.use_backend("triton"):
        ops.depthwise_conv3d_group_norm(x.requires_grad_(), w, None, weight, weight, activation="gelu").sum().backward()
        ops.depthwise_conv_transpose3d(x, w, stride=2)
        mean, rstd = ops.group_norm_statistics(x)
        expand = torch.randn(8, 4, device=device)
        y = ops.inverted_bottleneck(x, mean, rstd, weight, weight, expand, None, expand.t().contiguous(), None)
        y.sum().backward()
    assert x.grad.isfinite().all()


def test_the_tests_move_every_tensor_and_nothing_else():
    """What lets checks on CPU tensors run on a GPU, shown with the meta device."""
    from mednext_ops.backends.problem import GroupNormGradient

    from .conftest import moved

    x = torch.ones(2)
    gradient = moved(GroupNormGradient(x, x, x, x, x), "meta")
    assert isinstance(gradient, GroupNormGradient) and all(t.device.type == "meta" for t in gradient)
    tensor, nothing, (inner, number) = moved((x, None, (x, 3)), "meta")
    assert tensor.device.type == inner.device.type == "meta" and nothing is None and number == 3
