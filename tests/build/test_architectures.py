"""MEDNEXT_OPS_CUDA_ARCHS, and which GPUs the result runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_tools.architectures import gencode_flags, is_specific, parse_architectures, split_known
from build_tools.settings import DEFAULT_ARCHITECTURES, BuildError
from mednext_ops import native


def test_the_default_becomes_machine_code_for_each_and_ptx_of_the_newest() -> None:
    assert gencode_flags(parse_architectures(DEFAULT_ARCHITECTURES)) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=sm_86",
        "-gencode=arch=compute_80,code=sm_89",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_those_of_one_generation_share_what_is_compiled_for_the_least_of_them() -> None:
    assert gencode_flags(parse_architectures("89;86;90;90a;100f;103+PTX")) == [
        "-gencode=arch=compute_86,code=sm_89",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100f,code=sm_100f",
        "-gencode=arch=compute_103,code=sm_103",
        "-gencode=arch=compute_103,code=compute_103",
    ]


def test_what_asks_for_nothing_beyond_80_is_compiled_once_for_all_from_there_on() -> None:
    assert gencode_flags(parse_architectures(DEFAULT_ARCHITECTURES), specific=False) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=sm_86",
        "-gencode=arch=compute_80,code=sm_89",
        "-gencode=arch=compute_80,code=sm_90a",
        "-gencode=arch=compute_80,code=sm_100",
        "-gencode=arch=compute_80,code=sm_120",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    assert gencode_flags(parse_architectures("90a;120+PTX"), specific=False) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize(
    ("line", "specific"),
    [
        ("", False),
        ("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800", False),
        ("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800", False),
        ("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800", True),
        ("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900", True),
        ("constexpr int kArchitecture = __CUDA_ARCH__ / 10;", True),
        ("#ifdef __CUDA_ARCH__", True),
        ("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 800", True),
        ("#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 800", True),
        ("#if defined(__CUDA_ARCH__) && (900 <= __CUDA_ARCH__)", True),
        ("#if defined(__CUDA_ARCH_FEAT_SM90_ALL)", True),
        ("NV_IF_TARGET(NV_PROVIDES_SM_90, (fast();))", True),
        ("// Compiled for each architecture: else it spills.", True),
    ],
)
def test_what_asks_for_more_is_found_through_includes(tmp_path: Path, line: str, specific: bool) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "deep.cuh").write_text(f'#pragma once\n#include "deep.cuh"\n{line}\n')
    (tmp_path / "middle.cuh").write_text('#include <cstdint>\n#  include "common/deep.cuh"\n')
    source = tmp_path / "kernel.cu"
    source.write_text('#include "middle.cuh"\n#include "absent.h"\n')
    assert is_specific(source) is specific


@pytest.mark.parametrize("text", ["8.6;9.0a", "86, 90a", "86 90a", "86;86;90A"])
def test_the_spellings_of_other_projects_are_understood(text: str) -> None:
    assert [str(a) for a in parse_architectures(text)] == ["86", "90a"]


@pytest.mark.parametrize("text", ["sm_86", "ampere", "9", "86+ptxas"])
def test_a_word_that_is_no_architecture_is_named(text: str) -> None:
    with pytest.raises(BuildError, match=r"MEDNEXT_OPS_CUDA_ARCHS has '.*'; expected architectures such as 86"):
        parse_architectures(text)


def test_what_nvcc_does_not_know_is_told_apart() -> None:
    known, unknown = split_known(parse_architectures("75;90a;120+PTX"), {75, 80, 90})
    assert [str(a) for a in known] == ["75", "90a"]
    assert [str(a) for a in unknown] == ["120+PTX"]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["80"], (8, 0), True),
        (["80"], (8, 9), True),  # machine code runs on later minors of its major
        (["86"], (8, 0), False),
        (["80"], (9, 0), False),
        (["90a"], (9, 0), True),
        (["100a"], (10, 3), False),  # "a" is for that one only
        (["100f"], (10, 3), True),
        (["75", "90+PTX"], (12, 0), True),
        (["80+PTX"], (8, 9), True),
        (["75", "80+PTX"], (9, 0), False),  # kernels for the copy engine, which its PTX does not have
        (["75+PTX"], (8, 0), False),
        (["120+PTX"], (9, 0), False),
        (["90a+PTX"], (12, 0), False),
        ([], (8, 0), False),
    ],
)
def test_which_gpu_a_build_covers(architectures: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert native.covers(architectures, capability) is runs
