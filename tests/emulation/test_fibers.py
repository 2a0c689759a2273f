"""The switches between fibers: the hand-written one of this machine and the portable one do the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

DRIVER = r"""
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>
#include "csrc/emulation/fiber.h"

using mednext_ops::emulation::Fiber;

struct Count {
    Fiber fiber;
    int steps = 0;
    double sum = 0.5;
    bool caught = false;
};

void count(void* argument) {
    auto& self = *static_cast<Count*>(argument);
    double kept[16];  // lives across switches, in registers or on this stack
    for (int i = 0; i < 16; ++i) kept[i] = self.sum + i;
    for (int step = 0; step < 100; ++step) {
        ++self.steps;
        self.fiber.suspend();
        for (double& value : kept) value += 1.0;
    }
    try {
        throw std::runtime_error("inside");
    } catch (const std::runtime_error&) {
        self.caught = true;
    }
    for (const double value : kept) self.sum += value;
}

int main() {
    std::vector<std::unique_ptr<Count>> all;
    for (int i = 0; i < 300; ++i) all.push_back(std::make_unique<Count>());
    for (int again = 0; again < 3; ++again) {
        for (auto& one : all) one->steps = 0, one->sum = 0.5, one->fiber.start(count, one.get());
        const int resumes = again == 1 ? 50 : 101;  // the second time they are abandoned half-way
        for (int i = 0; i < resumes; ++i) {
            for (auto& one : all) one->fiber.resume();
        }
        for (auto& one : all) {
            if (one->steps != (again == 1 ? 50 : 100)) return 1;
            if (again != 1 && (!one->caught || one->sum != 0.5 + 16 * 0.5 + 120 + 16 * 100)) return 2;
        }
    }
    std::puts("all fibers came back");
}
"""


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
@pytest.mark.parametrize("portable", [False, True], ids=["this machine's", "ucontext"])
def test_fibers_keep_their_stacks_and_catch_their_exceptions(portable: bool, sanitize: bool, tmp_path: Path) -> None:
    from build_tools.native import find_tools
    from build_tools.toolchain import Compiler

    compiler = find_tools().compiler
    if not isinstance(compiler, Compiler):
        pytest.skip(str(compiler))
    (tmp_path / "driver.cpp").write_text(DRIVER)
    flags = ["-std=c++20", "-O2", f"-I{ROOT}"]
    flags += ["-DMEDNEXT_OPS_EMULATION_UCONTEXT"] if portable else []
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if sanitize else []
    sources = [str(tmp_path / "driver.cpp"), str(ROOT / "csrc" / "emulation" / "fiber.cpp")]
    command = [compiler.command, *flags, *sources, "-o", str(tmp_path / "driver")]
    subprocess.run(command, check=True)
    done = subprocess.run([str(tmp_path / "driver")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all fibers came back\n"
