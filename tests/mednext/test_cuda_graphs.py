"""A whole training step as a CUDA graph: the code of docs/cuda_graphs.md."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import mednext

pytestmark = pytest.mark.gpu


def training_step(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, capturable=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            outputs = network(images)
        loss = torch.zeros((), device="cuda")
        for level, output in enumerate(outputs):
            loss = loss + F.cross_entropy(output.float(), labels[:, :: 2**level, :: 2**level, :: 2**level])
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_captured_training_step_has_the_bits_of_the_plain_one(kernel_size):
    """Five steps on five batches, from the same weights: plainly, and two of them plain and the others replayed."""
    plain = mednext.create_mednext("S", 1, 3, kernel_size, deep_supervision=True).cuda()
    captured = copy.deepcopy(plain)
    generator = torch.Generator("cuda").manual_seed(0)
    batches = [
        (
            torch.randn(1, 1, 32, 32, 64, device="cuda", generator=generator),
            torch.randint(3, (1, 32, 32, 64), device="cuda", generator=generator),
        )
        for _ in range(5)
    ]
    losses: dict[str, list[float]] = {"plain": [], "captured": []}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        images, labels = (tensor.clone() for tensor in batches[0])
        step = training_step(plain, images, labels)
        for image, label in batches:
            images.copy_(image)
            labels.copy_(label)
            losses["plain"].append(step().item())

        images, labels = (tensor.clone() for tensor in batches[0])
        step = training_step(captured, images, labels)
        for image, label in batches[:2]:
            images.copy_(image)
            labels.copy_(label)
            losses["captured"].append(step().item())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            loss = step()
        for image, label in batches[2:]:
            images.copy_(image)
            labels.copy_(label)
            graph.replay()
            losses["captured"].append(loss.item())
    torch.cuda.current_stream().wait_stream(stream)
    assert losses["plain"] == losses["captured"]
    for (name, one), two in zip(plain.named_parameters(), captured.parameters(), strict=True):
        assert torch.equal(one, two), name
