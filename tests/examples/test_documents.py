"""What the pages about MONAI, export and distributed training say runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def run(command, folder, timeout=900):
    environment = os.environ | {
        "OMP_WAIT_POLICY": "passive",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture
def folder(tmp_path):
    for name in ("bundles", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["export.md", "monai.md"])
def test_the_python_of_a_page_runs(page, folder):
    for module in {"export.md": ("onnxscript", "safetensors"), "monai.md": ("monai",)}[page]:
        pytest.importorskip(module)
    run([sys.executable, "-c", "\n".join(fences(page, "python"))], folder)


@pytest.mark.slow
def test_the_commands_about_many_processes_run(folder):
    (commands,) = fences("distributed.md", "sh")
    run(["bash", "-ec", commands.replace("--output", "--patch 16 --channels 2 --output")], folder)


@pytest.mark.slow
def test_the_checks_of_the_bundle_run(folder):
    """The last command of the page; the test of the bundle runs what the others do."""
    pytest.importorskip("fire")
    (commands,) = fences("monai.md", "sh")
    lines = commands.splitlines()
    run(["bash", "-ec", "\n".join([*lines[:2], lines[-1]])], folder)


def test_the_options_of_nnunet_are_documented():
    from mednext.nnunet.options import PREFIX, Options

    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| (\S+) \|", (ROOT / "docs" / "nnunet.md").read_text(), re.MULTILINE)
    defaults = {name.lower(): text for name, text in rows}
    assert defaults == {name: str(value) for name, value in vars(Options()).items()}


def test_the_commands_about_nnunet_are_those_that_the_end_to_end_run_starts():
    program = (ROOT / "benchmarks" / "nnunet_end_to_end.py").read_text()
    lines = [line for block in fences("nnunet.md", "sh") for line in block.splitlines()]
    run_there = {"nnUNetv2_plan_and_preprocess", "nnUNetv2_preprocess", "nnUNetv2_train", "mednext", "eval"}
    assert {line.split()[0] for line in lines} == run_there | {"nnUNetv2_extract_fingerprint"}
    for option in {word for line in lines for word in re.findall(r"(?<= )--?[a-zA-Z_]\w+", line)}:
        assert f'"{option}"' in program, option


def test_the_numbers_about_nnunet_are_the_committed_ones():
    import json

    result = json.loads((ROOT / "benchmarks" / "results" / "nnunet-end-to-end.json").read_text())["test Dice"]
    rows = re.findall(
        r"^\| (k\d[^|]*) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs" / "nnunet.md").read_text(), re.MULTILINE
    )
    expected = [[f"{value[tissue]:.2f}" for tissue in ("grey matter", "white matter")] for value in result.values()]
    assert [list(row[1:]) for row in rows] == expected
