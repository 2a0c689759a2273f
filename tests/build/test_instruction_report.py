"""The instruction report finds a kernel's main loop and says what became worse."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from build_tools import instruction_report
from build_tools.instruction_report import (
    KernelInstructions,
    compare,
    main,
    main_loop,
    not_compared,
    page,
    read_disassembly,
)
from build_tools.toolchain import Nvcc

SASS = """\
	code for sm_90a
		Function : _Z6kernelPf
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;
        /*0020*/               @P0 BRA 0x10 ;
        /*0030*/                   LDSM.16.M88.4 R4, [R3] ;
        /*0040*/                   HMMA.16816.F32.BF16 R8, R4, R12, R8 ;
        /*0050*/              @!P1 HMMA.16816.F32.BF16 R8, R4, R14, R8 ;
        /*0060*/              @!P0 BRA 0x30 ;
        /*0070*/                   BRA 0x10 ;
        /*0080*/                   EXIT ;
		Function : _Z5otherPf
        /*0000*/                   FFMA R0, R1, R2, R3 ;
"""
KERNEL = KernelInstructions("core<3>", "sm_90a", 100, 0, 0, 0, 500, 200, {"HMMA": 36, "LDS": 4})


def table(*kernels: KernelInstructions, cuda: str = "13.0") -> dict:
    return {"cuda": cuda, "kernels": [asdict(k) for k in kernels]}


def test_functions_and_the_shortest_loop_with_the_most_products() -> None:
    functions = read_disassembly(SASS)
    assert {name: len(body) for name, body in functions.items()} == {"_Z6kernelPf": 9, "_Z5otherPf": 1}
    assert [address for address, _ in main_loop(functions["_Z6kernelPf"])] == [0x30, 0x40, 0x50, 0x60]
    assert main_loop(functions["_Z5otherPf"]) == []


def test_the_same_kernel_is_not_worse() -> None:
    assert (
        compare(
            [KERNEL, replace(KERNEL, architecture="sm_80")],
            table(KERNEL, replace(KERNEL, architecture="sm_80")),
            "13.0",
        )
        == []
    )


def test_what_is_worse_is_named() -> None:
    def said(kernel: KernelInstructions, release: str = "13.0") -> str:
        return "; ".join(compare([kernel], table(KERNEL), release))

    assert said(replace(KERNEL, spill_bytes=8)) == "core<3> on sm_90a spills 8 bytes a thread"
    assert said(replace(KERNEL, stack_bytes=8)) == (
        "core<3> on sm_90a has a stack frame of 8 bytes a thread: an array not in registers"
    )
    assert "registers went from 100 to 120" in said(replace(KERNEL, registers=120))
    assert "loop instructions went from 200 to 300" in said(replace(KERNEL, loop_instructions=300))
    assert "had 36 tensor-core products, now 35" in said(replace(KERNEL, loop={"HMMA": 35}))
    assert "other on sm_90a is not in the table" in said(replace(KERNEL, kernel="other"))
    assert "core<3> on sm_90a is in the table and was not built" in said(replace(KERNEL, kernel="other"))


def test_another_compiler_may_allocate_otherwise_but_may_not_spill() -> None:
    assert compare([replace(KERNEL, registers=150)], table(KERNEL), "13.4") == []
    assert len(compare([replace(KERNEL, spill_bytes=4)], table(KERNEL), "13.4")) == 1
    assert len(compare([replace(KERNEL, stack_bytes=4)], table(KERNEL), "13.4")) == 1


def test_what_another_compiler_leaves_uncompared_is_said() -> None:
    assert not_compared(table(KERNEL), "13.0") is None
    assert not_compared(table(KERNEL), "13.4") == (
        "not compared: registers, loops and their tensor-core products, since this build is of CUDA 13.4 and the table "
        "of CUDA 13.0; compared: spills, stack frames and which kernels there are"
    )


def test_two_kernels_of_one_name_fail() -> None:
    twice = [KERNEL, replace(KERNEL, registers=90)]
    assert compare(twice, table(KERNEL), "13.0") == ["core<3> on sm_90a is the name of 2 kernels"]
    assert compare([KERNEL], table(*twice), "13.4") == ["in the table core<3> on sm_90a is the name of 2 kernels"]


def nvcc(minor: int) -> Nvcc:
    return Nvcc("nvcc", (13, minor), Path("include"), Path("libcudart_static.a"), frozenset({80, 90}), "PATH")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[KernelInstructions]:
    """The kernels that a build is said to have, for :func:`main` in an empty folder."""
    kernels = [KERNEL]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(instruction_report, "find_nvcc", lambda _: nvcc(0))
    monkeypatch.setattr(instruction_report, "_find_cuobjdump", lambda _: Path("cuobjdump"))
    monkeypatch.setattr(instruction_report, "collect", lambda *_: kernels)
    return kernels


def test_what_is_written_compares(built: list[KernelInstructions], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write"]) == 0
    assert main([]) == 0
    built[0] = replace(KERNEL, registers=120)
    assert main([]) == 1
    assert "1 kernels compared with docs/kernels/instructions.json, 1 worse" in capsys.readouterr().out


def test_a_comparison_with_another_compilers_table_says_what_it_left_out(
    built: list[KernelInstructions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--write"]) == 0
    monkeypatch.setattr(instruction_report, "find_nvcc", lambda _: nvcc(4))
    built[0] = replace(KERNEL, registers=150)
    assert main([]) == 0
    assert "not compared: registers, loops" in capsys.readouterr().out


def test_no_table_is_written_of_two_kernels_of_one_name(
    built: list[KernelInstructions], capsys: pytest.CaptureFixture[str]
) -> None:
    built.append(KERNEL)
    assert main(["--write"]) == 1
    assert "core<3> on sm_90a is the name of 2 kernels" in capsys.readouterr().err
    assert not instruction_report.TABLE.exists()


def test_the_page_shows_products_and_their_share() -> None:
    assert "| `core<3>` | sm_90a | 100 | 0 | 200 | 36 HMMA | 18 % | 4 LDS |" in page([KERNEL], "13.0")
