"""What leaves Python computes the same, over sizes, and keeps the fused blocks where the documentation says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import mednext
from mednext.export import (
    export_aot_inductor,
    export_onnx,
    export_program,
    export_safetensors,
    plain_copy,
)

SIZES = [(1, 1, 32, 48, 32), (3, 1, 48, 32, 64)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture
def network(tiny, filled):
    return filled(mednext.MedNeXt(**tiny), 31).float().eval()


def example(*shape):
    return torch.randn(*(shape or (1, 1, 32, 32, 32)))


def documented():
    """The table of docs/export.md: format -> "all" or "none"."""
    rows = re.findall(r"^\| (\w[\w. ]*?) \| (all|none) \|", DOCUMENT.read_text(), re.MULTILINE)
    return dict(rows)


def check_calls(name, network, run):
    """The fused operator runs once for each block, or never, as documented; ``run`` gives the network's output."""
    blocks = sum(isinstance(module, mednext.MedNeXtBlock) for module in network.modules())
    with torch.no_grad(), torch.profiler.profile() as profile:
        run()
    calls = sum(event.count for event in profile.key_averages() if event.key == "mednext_ops::mednext_block")
    assert calls == {"all": blocks, "none": 0}[documented()[name]], name


def check_output(network, run, tolerance=1e-4):
    for size in SIZES:
        x = example(*size)
        with torch.no_grad():
            torch.testing.assert_close(run(x), network(x), rtol=0, atol=tolerance)


def test_the_table_names_every_format():
    assert set(documented()) == {"eager", "torch.export", "AOTInductor", "ONNX", "plain_copy"}


def test_eager_and_a_plain_copy(network):
    plain = plain_copy(network)
    assert plain.state_dict().keys() == network.state_dict().keys()
    check_calls("eager", network, lambda: network(example()))
    check_calls("plain_copy", network, lambda: plain(example()))
    check_output(network, plain)
    names = {type(module).__module__ for module in plain.modules() if not list(module.children())}
    assert names <= {"torch.nn.modules.conv", "torch.nn.modules.normalization", "torch.nn.modules.activation"}


def test_torch_export(network, tmp_path):
    network.train()
    export_program(network, tmp_path / "network.pt2", example())
    assert network.training
    network.eval()
    program = torch.export.load(tmp_path / "network.pt2").module()
    check_calls("torch.export", network, lambda: program(example()))
    check_output(network, program, tolerance=3e-5)  # of logits up to 10: stem and heads round as convolutions do


@pytest.mark.slow
def test_aot_inductor(network, tmp_path):
    export_aot_inductor(network, tmp_path / "network.pt2", example())
    package = torch._inductor.aoti_load_package(str(tmp_path / "network.pt2"))
    check_calls("AOTInductor", network, lambda: package(example()))
    check_output(network, package)


def test_onnx_runtime(network, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the packages of mednext-ops[export]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the packages of mednext-ops[export]")
    pytest.importorskip("onnxscript", reason="needs the packages of mednext-ops[export]")
    export_onnx(network, tmp_path / "network.onnx", example())
    model = onnx.load(tmp_path / "network.onnx")
    assert {node.domain for node in model.graph.node} == {""}  # ONNX's own operators
    assert not model.functions
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])

    def run(x):
        return torch.from_numpy(session.run(["logits"], {"scan": x.numpy()})[0])

    check_calls("ONNX", network, lambda: run(example()))
    check_output(network, run)


def test_safetensors(network, tiny, tmp_path):
    export_safetensors(network, tmp_path / "network.safetensors")
    other = mednext.MedNeXt(**tiny)
    mednext.load_checkpoint(other, tmp_path / "network.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_shape_alone(network, tmp_path):
    export_program(network, tmp_path / "network.pt2", example(1, 1, 16, 16, 16), dynamic=False)
    x = example(1, 1, 16, 16, 16)
    with torch.no_grad():  # stem and heads are convolutions there and matrix products here: they round differently
        found = torch.export.load(tmp_path / "network.pt2").module()(x)
        torch.testing.assert_close(found, network(x), rtol=0, atol=1e-4)


def test_what_cannot_be_exported_is_named_and_nothing_is_written(network, tmp_path):
    path = tmp_path / "network.pt2"
    with pytest.raises(ValueError, match="two or more total strides"):
        export_program(network, path, example(1, 1, 16, 32, 32))
    with pytest.raises(ValueError, match="must have extents divisible"):
        export_program(network, path, example(1, 1, 33, 32, 32))
    with pytest.raises(ValueError, match=r"path must end in \.pt2"):
        export_aot_inductor(network, tmp_path / "network.so", example())
    with pytest.raises(TypeError, match=r"network must be a mednext\.MedNeXt, got Conv3d"):
        export_program(torch.nn.Conv3d(1, 1, 1), path, example())
    network.deep_supervision = True
    with pytest.raises(ValueError, match="deep supervision off"):
        export_program(network, path, example())
    assert not list(tmp_path.iterdir())
