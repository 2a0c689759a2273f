"""Memory of freed results serves the next ones, within its bounds, and nobody can tell but by the clock."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

from mednext_ops import native
from mednext_ops.backends import ConvGeometry

LARGE_PAGE = 2 << 20
# torch 2.10 cannot make a tensor of memory that is not its own through the stable ABI.
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the pool is of Linux's memory"),
    pytest.mark.skipif(torch.__version__.startswith("2.10."), reason="the pool needs torch 2.11"),
]

POOLED = 4 << 20  # bytes of a result of `convolve`


@pytest.fixture
def backend():
    module = importlib.import_module("mednext_ops.backends.cpu")
    if module.unavailable() is not None:
        pytest.skip(module.unavailable())
    return module


def problem(bytes_=POOLED):
    torch.manual_seed(7)
    channels = bytes_ // (4 * 16**3)
    return torch.randn(1, channels, 16, 16, 16), torch.randn(channels, 1, 3, 3, 3)


def convolve(backend, x, weight):
    return backend.depthwise_conv3d(x, weight, None, ConvGeometry((3, 3, 3), padding=(1, 1, 1)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_result_is_an_ordinary_tensor(backend, memory_format, dtype):
    x, weight = problem(2 * POOLED)
    x = x.to(dtype).contiguous(memory_format=memory_format)
    found = convolve(backend, x, weight)
    assert found.data_ptr() % LARGE_PAGE == 0, "not of the pool"
    assert found.shape == x.shape
    assert found.stride() == x.stride()
    assert found.dtype == dtype
    assert found.device == x.device == torch.device("cpu")
    assert found.is_contiguous(memory_format=memory_format)
    kept = found.clone()

    stored = io.BytesIO()
    torch.save(found, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored), kept)
    assert torch.equal(torch.from_dlpack(found), kept)
    if dtype != torch.bfloat16:
        assert (found.numpy() == kept.numpy()).all()
    view, pointer = found[0, 1:], found.data_ptr()
    del found
    again = convolve(backend, x, weight)
    assert again.data_ptr() != pointer, "memory was taken while a view of it lived"
    assert torch.equal(view, kept[0, 1:])
    again.share_memory_()
    assert torch.equal(again, kept)


def test_freed_memory_serves_the_next_result_of_about_that_size(backend):
    x, weight = problem()
    first = convolve(backend, x, weight)
    pointer = first.data_ptr()
    first.fill_(float("nan"))
    del first
    second = convolve(backend, x, weight)
    assert second.data_ptr() == pointer
    assert torch.equal(second, convolve(backend, x, weight))
    assert not second.isnan().any()
    del second
    larger = convolve(backend, *problem(8 * POOLED))
    assert larger.data_ptr() != pointer, "a block of 4 MiB cannot hold 32"


def test_a_large_block_is_not_wasted_on_a_small_result(backend):
    large = convolve(backend, *problem(8 * POOLED))
    pointer = large.data_ptr()
    del large
    small = convolve(backend, *problem())
    assert small.data_ptr() != pointer
    assert convolve(backend, *problem(8 * POOLED)).data_ptr() == pointer


def test_threads_take_and_free_at_once(backend):
    problems = [problem(), problem(2 * POOLED)]
    expected = [convolve(backend, *p).clone() for p in problems]
    wrong = []

    def work(which):
        for turn in range(20):
            index = (which + turn) % 2
            if not torch.equal(convolve(backend, *problems[index]), expected[index]):
                wrong.append((which, turn))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_a_child(backend, mine, expected, connection):
    torch.set_num_threads(1)  # of OpenMP's threads none outlives a fork
    x, weight = problem()
    found = convolve(backend, x, weight)
    connection.send(bool(torch.equal(found, expected) and torch.equal(mine, expected)))
    found.zero_()


def test_a_forked_child_has_its_own(backend):
    x, weight = problem()
    mine = convolve(backend, x, weight)
    expected = mine.clone()
    convolve(backend, x, weight)  # freed at once: idle in both processes
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_a_child, args=(backend, mine, expected, sender))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv()
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(mine, expected)
    assert torch.equal(convolve(backend, x, weight), expected)


SCRIPT = """
import sys
import torch
from mednext_ops.backends import ConvGeometry, cpu

def convolve():
    return cpu.depthwise_conv3d(torch.ones(1, 256, 16, 16, 16), torch.ones(256, 1, 3, 3, 3), None,
                                ConvGeometry((3, 3, 3), padding=(1, 1, 1)))

def mapped(pointer):
    for line in open("/proc/self/maps"):
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= pointer < last:
            return True
    return False

assert convolve().sum() > 0
results = [convolve() for _ in range(5)]
pointers = [result.data_ptr() for result in results]
print("pooled", all(pointer % (2 << 20) == 0 for pointer in pointers))
print("resizable", results[0].untyped_storage().resizable())
last = results[-1]
while len(results) > 1:
    results.pop(0)
del results
print("mapped", *[int(mapped(pointer)) for pointer in pointers[:4]])
# `last` lives until the interpreter is gone
"""


def run(backend, pool):
    environment = {**os.environ, "MEDNEXT_OPS_CPU_POOL": pool}
    return subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("pool", "mapped"),
    [("1024", "1 1 1 1"), ("", "1 1 1 1"), ("8", "0 0 1 1"), ("11", "0 0 1 1"), ("4", "0 0 0 1"), ("3", "0 0 0 0")],
)
def test_more_than_the_bound_goes_back_to_the_system_the_oldest_first(backend, pool, mapped):
    done = run(backend, pool)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["pooled True", "resizable False", f"mapped {mapped}"]


def test_without_a_pool_results_are_memory_of_torch(backend):
    done = run(backend, "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["pooled False", "resizable True"]


@pytest.mark.parametrize("pool", ["much", "-1", "1.5", "1e3", "12345678901234567890"])
def test_a_bound_that_is_no_number_is_refused(backend, pool):
    done = run(backend, pool)
    assert done.returncode != 0
    assert f"MEDNEXT_OPS_CPU_POOL is '{pool}'; it must be a whole number of MiB to keep, 0 for none" in done.stderr


def test_an_impossible_size_is_an_error_of_memory(backend):
    """Before 2.13 torch does not tell a library why there was no memory."""
    x = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, 1, 1, 1)
    geometry = ConvGeometry((1, 1, 1), padding=(20000, 20000, 20000))
    with pytest.raises(RuntimeError, match=r"(?i)memory|overflow|int32|large|could not be allocated"):
        backend.depthwise_conv3d(x, torch.ones(1, 1, 1, 1, 1), None, geometry)
    assert native.cpu_capabilities()  # alive
