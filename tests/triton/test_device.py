"""What only a GPU shows of the Triton backend: its compiled kernels, captured in graphs, under torch.compile, again and
again. The interpreter's tests of the same kernels lie beside this file.
"""

from __future__ import annotations

import pytest
import torch

import mednext
import mednext_ops as ops
from mednext_ops.backends.problem import ConvGeometry

from ..ops.eager import Block, assert_within_twice
from .problems import check_backward, check_forward
from .test_depthwise_convolution import block

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# What differs is compiled anew, which takes seconds each: every form, kernel size and dtype once.
BLOCKS = [
    ("regular", 3, torch.float32), ("regular", 5, torch.bfloat16), ("regular", 7, torch.float16),
    ("down", 3, torch.bfloat16), ("up", 5, torch.float16),
]  # fmt: skip
FORMATS = [torch.contiguous_format, torch.channels_last_3d]
RUNS = 100


@pytest.fixture(autouse=True)
def _on_triton(triton_backend, tmp_path, monkeypatch):
    """Every op that Triton has a kernel for runs on it, in the first way of its list; ``timed`` finds the fastest."""
    from mednext_ops.backends.triton import tuning

    monkeypatch.setenv("MEDNEXT_OPS_TRITON_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDNEXT_OPS_TRITON_TUNE", "0")
    tuning._Times.of.cache_clear()
    with ops.use_backend("triton", "reference"):
        yield
    tuning._Times.of.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.setenv("MEDNEXT_OPS_TRITON_TUNE", "1")


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize(("form", "kernel", "dtype"), BLOCKS)
def test_a_block_is_within_twice_pytorchs_error(form, kernel, dtype, memory_format):
    stride = (1, 1, 1) if form == "regular" else (2, 2, 2)
    low = Block.random(form, (kernel,) * 3, (12, 15, 32), 2, 32, 64, True, memory_format=memory_format)
    low = low.to(dtype, DEVICE).leaves()
    low.input = low.input.detach().contiguous(memory_format=memory_format).requires_grad_()
    wide = low.to(torch.float64, DEVICE).leaves()
    plain = low.to(dtype, DEVICE)  # contiguous: some of PyTorch's own channels_last_3d paths leave NaN
    plain.input, wide.input = plain.input.contiguous(), wide.input.detach().contiguous().requires_grad_()
    plain = plain.leaves()
    ours, theirs, exact = low.ours(form, stride, 32), plain.eager(form, stride, 32), wide.eager(form, stride, 32)
    assert ours.is_contiguous(memory_format=memory_format)
    assert_within_twice(ours, theirs, exact, "output")
    grad = torch.randn_like(exact).to(dtype)
    columns = [torch.autograd.grad(y, list(b.tensors().values()), grad.to(y.dtype))
               for y, b in ((ours, low), (theirs, plain), (exact, wide))]  # fmt: skip
    for name, our, their, right in zip(low.tensors(), *columns, strict=True):
        if name != "conv_bias":  # zero: what PyTorch computes of it is noise
            assert_within_twice(our, their, right, name)


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize(("kernel", "width"), [(3, 32), (5, 32), (5, 33), (7, 32)])
def test_every_way_to_cut_a_convolution_is_right(triton_backend, kernel, width, way):
    """Banded on tensor cores and direct, in many tiles."""
    from mednext_ops.backends.triton import tuning

    p = block(kernel, torch.bfloat16, size=(37, 24, width), channels=4)
    with tuning.taking(way):
        check_forward(triton_backend, p)
        check_backward(triton_backend, p)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = mednext.MedNeXt(1, 16, 3, 2, 3, do_res=True, do_res_up_down=True, block_counts=[1] * 9)
    return net.to(DEVICE)


class Blocks(torch.nn.Module):
    """Nothing but our ops between the input and the loss, so that every bit of a step is decided by them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (Block.random("regular", (k,) * 3, (1, 1, 1), 1, 32, 64, True) for k in (3, 5))
        for name, b in (("first", self.first), ("second", self.second)):
            for key, tensor in b.to(torch.float32, DEVICE).tensors().items():
                if key != "input":
                    self.register_parameter(f"{name}_{key}", torch.nn.Parameter(tensor))
                    setattr(b, key, self.get_parameter(f"{name}_{key}"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for b in (self.first, self.second):
            b.input = x
            x = b.ours("regular", (1, 1, 1), 32)
        return x


def training_step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
        output = net(x)
    loss = output.float().square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def captured_losses(net: torch.nn.Module, inputs: list[torch.Tensor], caplog) -> list[torch.Tensor]:
    """The losses of training steps out of a CUDA graph: three outside of it, as a warm-up, then replays."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    x, losses = torch.empty_like(inputs[0]), []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in inputs[:3]:
            x.copy_(step)
            losses.append(training_step(net, optimizer, x))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with caplog.at_level("DEBUG", logger="mednext_ops"), torch.cuda.graph(graph):
        loss = training_step(net, optimizer, x)
    assert " ms" not in caplog.text and "was not timed" not in caplog.text
    for step in inputs[3:]:
        x.copy_(step)
        graph.replay()
        losses.append(loss.clone())
    return losses


def losses_of(net: torch.nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    return [training_step(net, optimizer, x) for x in inputs]


def test_a_training_step_in_a_cuda_graph_gives_the_bits_of_one_outside(caplog, timed):
    """Warmed up as PyTorch asks for, which compiles and times; then a capture does neither."""
    captured, plain = Blocks(), Blocks()
    inputs = [torch.randn(1, 32, 16, 24, 32, device=DEVICE) for _ in range(6)]
    ours, expected = captured_losses(captured, inputs, caplog), losses_of(plain, inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    for (name, parameter), right in zip(captured.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, right), name


def test_a_networks_training_step_is_captured(caplog):
    inputs = [torch.randn(1, 1, 32, 32, 32, device=DEVICE) for _ in range(6)]
    ours, expected = captured_losses(network(), inputs, caplog), losses_of(network(), inputs)
    assert torch.allclose(torch.stack(ours), torch.stack(expected), rtol=0.02)


def test_a_compiled_network_has_no_graph_break_and_gives_the_same():
    net = network()
    x = torch.randn(1, 1, 32, 32, 32, device=DEVICE)
    compiled = torch.compile(net, fullgraph=True)
    expected = net(x)
    gradients = torch.autograd.grad(expected.square().mean(), [p for p in net.parameters() if p.requires_grad],
                                    allow_unused=True)  # fmt: skip
    output = compiled(x)
    assert torch.allclose(output, expected, rtol=1e-3, atol=1e-4)
    found = torch.autograd.grad(output.square().mean(), [p for p in net.parameters() if p.requires_grad],
                                allow_unused=True)  # fmt: skip
    for ours, right in zip(found, gradients, strict=True):
        assert (ours is None) == (right is None)
        if ours is not None:
            assert torch.allclose(ours, right, rtol=1e-2, atol=1e-2 * right.abs().max().item() + 1e-7)


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize(("form", "kernel", "dtype"), BLOCKS[:3])
def test_a_block_gives_the_same_bits_a_hundred_times(form, kernel, dtype, memory_format):
    b = Block.random(form, (kernel,) * 3, (16, 24, 32), 2, 32, 64, True).to(dtype, DEVICE).leaves()
    b.input = b.input.detach().contiguous(memory_format=memory_format).requires_grad_()
    grad = torch.randn_like(b.input)

    def run():
        y = b.ours(form, (1, 1, 1), 32)
        return [y, *torch.autograd.grad(y, list(b.tensors().values()), grad)]

    first = run()
    for _ in range(RUNS):
        assert all(torch.equal(a, c) for a, c in zip(first, run(), strict=True))


def test_on_another_stream_the_input_of_that_stream_is_read():
    w = torch.randn(16, 1, 5, 5, 5, device=DEVICE).bfloat16()
    x = torch.randn(1, 16, 24, 24, 24, device=DEVICE).bfloat16()
    expected, late = ops.depthwise_conv3d(x, w, padding=2), torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # about 30 ms
        late.copy_(x)
        found = ops.depthwise_conv3d(late, w, padding=2)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_more_than_2_31_elements_of_a_sample(triton_backend):
    """4.3 GB a tensor: the last planes of the last channel, against those of a part that is small."""
    free, _ = torch.cuda.mem_get_info()
    if free < 12 * 2**30:
        pytest.skip("less than 12 GiB of memory are free")
    module = ops.backends._module("triton")
    x = torch.zeros(1, 2, 1024, 1024, 1028, device=DEVICE, dtype=torch.bfloat16)
    tail = torch.randn(1, 2, 8, 1024, 1028, device=DEVICE).bfloat16()
    x[:, :, -8:] = tail
    w = torch.randn(2, 1, 5, 5, 5, device=DEVICE)
    geometry = ConvGeometry((5, 5, 5), padding=(2, 2, 2))
    from mednext_ops.backends.triton import tuning

    with tuning.taking(0):  # the same order of sums, whatever is faster for each extent
        output, last = (module.depthwise_conv3d(t, w, None, geometry)[:, :, -20:] for t in (x, tail))
    assert torch.equal(output[:, :, -4:], last[:, :, -4:])
    assert not output[:, :, :-10].any() and output[:, :, -10:].any()
