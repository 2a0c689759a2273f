"""How a way of cutting a kernel is chosen: timed once, kept on disk, and never where nothing may be timed."""

from __future__ import annotations

import json

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry

from ..emulation.test_inverted_bottleneck import Case, check_backward, check_forward

OVER = torch.empty(1, 32, 8, 8, 8)


@pytest.fixture
def tuning(triton_backend, monkeypatch, tmp_path):
    """The module as on a GPU, with times made up: a way takes as many milliseconds as its tile has voxels."""
    from mednext_ops.backends.triton import tuning

    monkeypatch.setattr(tuning, "INTERPRETS", False)
    monkeypatch.setattr(tuning, "_may_time", lambda: True)
    monkeypatch.setattr(tuning, "_milliseconds", lambda run, way: run(way))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (test)")
    monkeypatch.setenv("MEDNEXT_OPS_TRITON_CACHE", str(tmp_path))
    tuning._Times.of.cache_clear()
    yield tuning
    tuning._Times.of.cache_clear()


@pytest.fixture
def ways(tuning):
    return [tuning.Blocks.of(128, BV=voxels) for voxels in (1024, 256, 512)]


class Runs(list):
    def __call__(self, way):
        self.append(way["BV"])
        return way["BV"]


def test_the_fastest_is_taken_and_timed_only_once_a_kind(tuning, ways):
    runs = Runs()
    for _ in range(3):
        assert tuning.choose("kernel", ("bfloat16", 32), ways, OVER, runs)["BV"] == 256
    assert runs == [1024, 256, 512]
    tuning.choose("kernel", ("bfloat16", 64), ways, OVER, runs)
    assert len(runs) == 6


def test_a_later_process_finds_it_in_the_file(tuning, ways, tmp_path):
    tuning.choose("kernel", ("bfloat16", 32), ways, OVER, Runs())
    (file,) = tmp_path.iterdir()
    assert "NVIDIA-H200" in file.name and "triton-" in file.name and "mednext-ops-" in file.name
    tuning._Times.of.cache_clear()
    runs = Runs()
    assert tuning.choose("kernel", ("bfloat16", 32), ways, OVER, runs)["BV"] == 256
    assert runs == []


def test_what_another_process_found_meanwhile_is_kept(tuning, ways, tmp_path):
    tuning.choose("kernel", ("a",), ways, OVER, Runs())
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"another": {}}))
    tuning.choose("kernel", ("b",), ways, OVER, Runs())
    assert json.loads(file.read_text()).keys() == {"kernel a", "kernel b", "another"}


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"kernel bfloat16 32": {"sizes": [["BV", 77]]}}'])
def test_a_file_that_holds_nothing_of_use_is_made_anew(tuning, ways, content):
    file = tuning.cache_file("NVIDIA H200 (test)")
    file.write_text(content)
    assert tuning.choose("kernel", ("bfloat16", 32), ways, OVER, Runs())["BV"] == 256
    assert json.loads(file.read_text())["kernel bfloat16 32"]["sizes"] == [["BV", 256]]


def test_a_folder_that_cannot_be_written_is_done_without(tuning, ways, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDNEXT_OPS_TRITON_CACHE", str(tmp_path / "file" / "folder"))
    assert tuning.choose("kernel", ("bfloat16", 32), ways, OVER, Runs())["BV"] == 256


def test_a_way_that_the_gpu_has_no_room_for_is_never_fastest(triton_backend, monkeypatch):
    import triton

    from mednext_ops.backends.triton import tuning

    def run(way):
        raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")

    assert tuning._milliseconds(run, tuning.Blocks.of(BV=1024)) == float("inf")


def test_a_captured_graph_has_the_way_that_a_run_before_found(tuning, ways, monkeypatch, caplog):
    runs = Runs()
    tuning.choose("kernel", ("warm",), ways, OVER, runs)
    monkeypatch.setattr(tuning, "_may_time", lambda: False)
    with caplog.at_level("WARNING", logger="mednext_ops"):
        assert tuning.choose("kernel", ("warm",), ways, OVER, runs)["BV"] == 256
        assert not caplog.records
        assert tuning.choose("kernel", ("cold",), ways, OVER, runs) is ways[0]
    assert len(runs) == 3 and "run the step once outside of it" in caplog.text
    monkeypatch.setattr(tuning, "_may_time", lambda: True)
    assert tuning.choose("kernel", ("cold",), ways, OVER, runs)["BV"] == 256


def test_nothing_is_timed_while_a_graph_is_captured(triton_backend, monkeypatch):
    from mednext_ops.backends.triton import tuning

    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda answer=capturing: answer)
        assert tuning._may_time() == (not capturing)


def test_where_nothing_is_to_be_timed_the_first_is_taken(tuning, ways, monkeypatch):
    runs = Runs()
    tuning.choose("kernel", (), ways, OVER, runs)
    monkeypatch.setenv("MEDNEXT_OPS_TRITON_TUNE", "0")
    assert tuning.choose("kernel", (), ways, OVER, runs) is ways[0] and len(runs) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="here times decide")
def test_the_interpreter_times_nothing_and_takes_large_tiles(triton_backend):
    from mednext_ops.backends.triton import tuning

    ways = [tuning.Blocks.of(256, BV=64, BC=4), tuning.Blocks.of(BV=32, BC=4)]
    runs = Runs()
    for voxels, tile in ((1, 64), (64, 64), (65, 128), (2000, 2048), (10_000, 2048)):
        chosen = tuning.choose("kernel", (), ways, torch.empty(1, 1, 1, 1, voxels), runs)
        assert (chosen["BV"], chosen["BC"], chosen.threads) == (tile, 4, 256)
    assert runs == []


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("form", ["plain", "strided", "transposed"])
def test_a_gpus_tiles_give_the_same_convolution(triton_backend, form, channels_last, index):
    """To rounding, since another tile adds in another order: many tiles where the interpreter has one."""
    from mednext_ops.backends.triton import tuning

    stride = (1, 1, 1) if form == "plain" else (2, 1, 2)
    geometry = ConvGeometry((1, 3, 3), stride, (0, 1, 1), transposed=form == "transposed")
    x, w = torch.randn(1, 2, 3, 14, 17), torch.randn(2, 1, 1, 3, 3)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    grad = torch.randn(1, 2, *geometry.output_size(x.shape[2:]))

    def run():
        y, mean, rstd = triton_backend.depthwise_conv3d_statistics(x, w, None, geometry, 2, 1e-5)
        return y, mean, rstd, *triton_backend.depthwise_conv3d_backward(grad, x, w, geometry, None, True, True)

    expected = run()
    with tuning.taking(index):
        for ours, first in zip(run(), expected, strict=True):
            assert torch.allclose(ours, first, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpus_tiles_give_the_same_bottleneck(triton_backend, dtype, index):
    from mednext_ops.backends.triton import tuning

    case = Case.draw((12, 36, 12), (1, 5, 14), 1, dtype, grn=True)
    with tuning.taking(index):
        check_forward(triton_backend, case)
        check_backward(triton_backend, case)


def test_64_bit_offsets_give_the_same_bits(triton_backend, monkeypatch):
    """A tensor that needs them does not fit here: the same kernels with the type of such a tensor's offsets."""
    case = Case.draw((12, 20, 12), (3, 5, 5), 2, torch.bfloat16, grn=True)
    grad_output = torch.randn(2, 12, 3, 5, 5).bfloat16()
    geometry = ConvGeometry((3, 3, 3), (1, 2, 1), (1, 1, 1))
    x, w = torch.randn(2, 3, 4, 5, 6), torch.randn(3, 1, 3, 3, 3)
    grad = torch.randn(2, 3, 4, 3, 6)

    def run():
        mean, rstd = triton_backend.group_norm_statistics(x, 3, 1e-5)
        arguments = (x, mean, rstd, w[:, 0, 0, 0, 0], w[:, 0, 0, 0, 0], "gelu")
        return [
            case.fused(triton_backend),
            *case.fused_gradients(triton_backend, grad_output),
            triton_backend.depthwise_conv3d(x, w, None, geometry),
            *triton_backend.depthwise_conv3d_backward(grad, x, w, geometry, None, True, True),
            triton_backend.group_norm(*arguments),
            *triton_backend.group_norm_backward(x, *arguments),
        ]

    expected = run()
    from mednext_ops.backends.triton import launch

    monkeypatch.setattr(launch, "_MOST", 0)  # needs_64_bits reads it at each call
    assert launch.needs_64_bits(x)
    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


def test_which_tensors_need_64_bit_offsets(triton_backend):
    from mednext_ops.backends.triton import launch

    def needs(*shape):
        return launch.needs_64_bits(torch.empty(shape, device="meta"))

    assert not needs(100, 32, 128, 128, 128)  # the samples' own offsets have 64 bits always
    assert needs(1, 32, 512, 512, 512)
