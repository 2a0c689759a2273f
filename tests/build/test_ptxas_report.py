"""The report of registers, spills and stack reads what ptxas writes, and names kernels so that no two are alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build_tools.ptxas_report import Kernel, allowed_frame, demangle, main, read_report

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5cleanPf' for 'sm_90a'
ptxas info    : Function properties for _Z5cleanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 53 registers, used 1 barriers, 96 bytes smem
ptxas info    : Compiling entry function '_Z8spillingPf' for 'sm_75'
ptxas info    : Function properties for _Z8spillingPf
    8 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Function properties for __internal_helper
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, 384 bytes cmem[0]
"""
CLEAN = REPORT[: REPORT.index("ptxas info    : Compiling entry function '_Z8")]

#: Kernels as nvcc mangled them, and as a report shows them.
NAMES = {
    "_ZN11mednext_ops4cuda16depthwise_conv3d19strided_convolutionI13__nv_bfloat16Li7ELNS1_11StridedFillE1EEEvNS1_17Strided"
    "ParametersE": "depthwise_conv3d::strided_convolution<__nv_bfloat16, 7, StridedFill 1>",
    "_ZN11mednext_ops4cuda16depthwise_conv3d15strided_scatterI6__halfLi7ELNS1_11StridedFillE2EEEvNS1_17ScatterParameters"
    "E": "depthwise_conv3d::strided_scatter<__half, 7, StridedFill 2>",
    "_ZN11mednext_ops4cuda16depthwise_conv3d23strided_weight_gradientI6__halfLi7ELb1ELb1ELNS1_6MappedE2EEEvNS1_23Strided"
    "WeightParametersE": "depthwise_conv3d::strided_weight_gradient<__half, 7, true, true, Mapped 2>",
    "_ZN11mednext_ops4cuda19inverted_bottleneck14fused_backwardI6__halfLi64ELi64ELb1ELi32ELNS1_12BackwardPass4KindE2EEEvNS1"
    "_18BackwardParametersE": "inverted_bottleneck::fused_backward<__half, 64, 64, true, 32, BackwardPass::Kind 2>",
    "_ZN11mednext_ops4cuda16depthwise_conv3d21streaming_convolutionIfNS1_6GatherILi7ELi7ELi2ELi2ELb1EEEEEvNS1_19Streaming"
    "ParametersE": "depthwise_conv3d::streaming_convolution<float, depthwise_conv3d::Gather<7, 7, 2, 2, true> >",
    "_Z5cleanPf": "clean",
    "_Z5calls3IntPFviE": "calls",
    "kernel_in_c": "kernel_in_c",
}


def test_kernels_are_read_in_order() -> None:
    assert read_report(REPORT) == [
        Kernel("_Z5cleanPf", "sm_90a", 53, 0, 0, 0),
        Kernel("_Z8spillingPf", "sm_75", 80, 16, 20, 8),
    ]


def test_a_spill_fails_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel.o.ptxas").write_text(REPORT)
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "spilling" in out
    assert "2 kernels, 1 with spills, 0 with a stack frame that nothing explains, at most 80 registers" in out


def test_no_spill_passes(tmp_path: Path) -> None:
    (tmp_path / "kernel.o.ptxas").write_text(CLEAN)
    assert main([str(tmp_path)]) == 0


def test_no_report_fails(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1


def test_a_stack_frame_fails_as_a_spill_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel.o.ptxas").write_text(CLEAN.replace("0 bytes stack frame", "16 bytes stack frame"))
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "clean   <- STACK FRAME" in out
    assert "1 kernels, 0 with spills, 1 with a stack frame that nothing explains" in out


def test_the_frame_of_a_function_that_was_not_inlined_counts() -> None:
    inner = REPORT.replace(
        "__internal_helper\n    0 bytes stack frame, 0 bytes", "__internal_helper\n    40 bytes stack frame, 0 bytes"
    )
    assert read_report(inner)[1] == Kernel("_Z8spillingPf", "sm_75", 80, 16, 20, 40)


def test_a_frame_is_allowed_for_the_kernel_architecture_and_size_it_is_known_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planar = (
        "_ZN11mednext_ops4cuda16depthwise_conv3d18planar_convolutionI6__halfLi5ELi5ELi4ELb0EEEvNS1_16PlanarParametersE"
    )
    framed = CLEAN.replace("_Z5cleanPf", planar).replace("sm_90a", "sm_120").replace("0 bytes stack", "8 bytes stack")
    (tmp_path / "kernel.o.ptxas").write_text(framed)
    assert main([str(tmp_path)]) == 0
    assert "1 on sm_120 have a stack frame of 8 bytes: ptxas's own" in capsys.readouterr().out
    for name in (planar, *demangle([planar])):
        assert allowed_frame(name, "sm_120", 8) is not None
        assert allowed_frame(name, "sm_120", 16) is None
        assert allowed_frame(name, "sm_90a", 8) is None
    assert allowed_frame("depthwise_conv3d::banded_convolution<__half, 3, 3, false, 4>", "sm_120", 8) is None


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt, so names stay as they are")
def test_names_end_where_their_parameters_begin() -> None:
    assert demangle(list(NAMES)) == list(NAMES.values())
