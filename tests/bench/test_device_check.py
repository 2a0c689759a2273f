"""The script for GPU machines and its parts, as far as a machine without one can run them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from mednext.bench.operators import OpProblem, draw

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NINJA_FILE = """
ninja_required_version = 1.7

rule copy
  command = cat $in > $out && echo done > $out.seen
  description = copy $out

rule join
  command = cat $in > $out
  description = join $out

build made/a: copy a.txt

build made/b: copy b.txt | a.txt

build whole: join made/a made/b

build all: phony whole
"""


def run(*command, cwd, **environment):
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_parity_counts_what_it_tried(parity, options):
    report = parity["random_problems"].check(options(backend="reference"))
    assert report["tried"] == report["passed"] >= 15 and not report["failures"]
    ran = report["operators"]["group_norm_statistics bf16"]["ran_on"]
    assert ran == {"group_norm_statistics": ["reference"]}


def test_parity_draws_and_compares_elsewhere_if_told(parity, options, capsys):
    """The drawn tensors and PyTorch's results stay on the one device, ours are moved there and back."""
    chosen = options(backend="reference", device=torch.device("cpu"), reference_device=torch.device("cpu"), tell=True)
    report = parity["random_problems"].check(chosen)
    assert report["tried"] == report["passed"] and not report["failures"]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == sum(counts["tried"] for counts in report["operators"].values())
    assert told[0].startswith("fp32 depthwise_conv3d ")


def test_parity_finds_a_planted_error(parity, options, plant):
    plant(lambda y: y * (1 + 1e-2))
    report = parity["random_problems"].check(options(backend="reference", problems=3))
    assert report["passed"] < report["tried"]
    # The worst result is named: the gradients are wrong by as much as the output.
    assert any("depthwise_conv3d" in failure and "error 1.00e-02" in failure for failure in report["failures"])


def test_gradients_of_large_volumes_fit_into_fp16(parity):
    """A parameter's gradient is a sum over all voxels: beyond 65504 ours and PyTorch's are infinite alike."""
    largest = {}
    for dtype in ("fp16", "bf16"):
        problem = OpProblem("depthwise_conv3d_group_norm", (2, 1, 64, 64, 64), (3, 3, 3), (1, 1, 1), 2, dtype)
        exact = parity["results_of"].of_eager(problem, draw(problem, "cpu"), torch.float64)
        largest[dtype] = max(values.abs().max().item() for name, values in exact.items() if name != "output")
    assert largest["fp16"] < torch.finfo(torch.float16).max / 2
    assert largest["bf16"] > torch.finfo(torch.float16).max


def test_parity_finds_what_was_left_unwritten(parity, options, plant):
    plant(lambda y: torch.cat([y[:, :, :-1], torch.empty_like(y[:, :, -1:])], 2))
    report = parity["random_problems"].check(options(backend="reference"))
    assert any("nan" in failure for failure in report["failures"])


def test_parity_finds_bits_that_differ_from_run_to_run(parity, options, plant):
    plant(lambda y: y + 1e-6 * torch.rand(()))
    report = parity["repeats"].check_bitwise(options(backend="reference"))
    assert report["passed"] < report["tried"] and "run 2 gives other bits in output" in report["failures"][0]


def test_parity_says_when_there_was_nothing_to_try(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(sys.executable, BENCHMARKS / "parity", "--output", "parity.json", cwd=tmp_path)
    assert done.returncode == 3 and "nothing was tried" in done.stdout, done.stderr


def test_the_stand_in_for_ninja_makes_what_is_stale_and_no_more(tmp_path):
    (tmp_path / "build.ninja").write_text(NINJA_FILE)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    command = (sys.executable, BENCHMARKS / "ninja_stand_in.py", "-f", "build.ninja", "-j", "2", "all")
    assert run(*command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "whole").read_text() == "ab"
    assert run(*command, cwd=tmp_path).stdout == ""
    later = time.time() + 5
    (tmp_path / "b.txt").write_text("c")
    os.utime(tmp_path / "b.txt", (later, later))
    made = run(*command, cwd=tmp_path).stdout.split()
    assert "made/b" in made and "made/a" not in made
    (tmp_path / "a.txt").unlink()
    assert run(*command, cwd=tmp_path).returncode == 1


def test_the_script_runs_without_a_gpu_and_says_so(tmp_path):
    environment = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "PYTHON": sys.executable}
    steps = ("environment", "tests", "memcheck", "networks", "network")
    script = BENCHMARKS / "device_check.sh"
    done = run("bash", script, "quick", *steps, cwd=tmp_path, INSTALLED="1", **environment)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["steps"]) == set(steps)
    assert summary["steps"]["environment"]["result"] == "passed"
    if not torch.cuda.is_available():
        assert done.returncode == 3 and summary["gpu"] is None
        for name in ("tests", "networks", "network"):
            assert summary["steps"][name]["result"] == "nothing to do", name
        assert "there is no GPU here" in done.stdout


def limits(form: str) -> tuple[list[str], int]:
    """The steps that a form runs where none is named, and how long they may take together, by the script's text."""
    script = (BENCHMARKS / "device_check.sh").read_text()
    start, _, forms = script.partition("# What is not timed")[2].partition("if [[ $form == quick ]]; then\n")
    quick, _, full = forms.partition("\nelse\n")
    of_networks = dict(zip(("quick", "full"), re.findall(r"NETWORKS_SECONDS:=(\d+)", script), strict=True))
    lines = (start + {"quick": quick, "full": full}[form]).replace('"$NETWORKS_SECONDS"', of_networks[form])
    steps = re.findall(r"^ *(?:step|alone) (\w+) (\d+) .*?(&?)$", lines, re.M)
    together = sum(int(seconds) for _, seconds, beside in steps if not beside)
    return [name for name, _, _ in steps], together + max(int(seconds) for _, seconds, beside in steps if beside)


@pytest.mark.parametrize("form", ["quick", "full"])
def test_the_limits_of_the_steps_fit_into_the_time_for_all(form):
    script = (BENCHMARKS / "device_check.sh").read_text()
    every = re.search(r"^steps=\(([^)]*)\)", script, re.M)[1].split()
    found, together = limits(form)
    only_full = {"initcheck", "synccheck", "blocks"}
    assert set(found) == set(every) - {"scaling"} - (only_full if form == "quick" else set())
    assert len(found) == len(set(found))
    assert together <= int(re.search(r"SECONDS_IN_ALL:-(\d+)", script)[1]) <= 570


def test_the_step_of_networks_takes_what_is_asked_for(tmp_path):
    """A stand-in for Python tells its arguments."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\ncase "$1" in *gpu_times.py) echo "$@";; *) exec "{sys.executable}" "$@";; esac\n')
    stand_in.chmod(0o755)
    out = tmp_path / "out"
    environment = {"OUT": str(out), "WORK": str(tmp_path / "work"), "PYTHON": str(stand_in), "INSTALLED": "1"}
    script = BENCHMARKS / "device_check.sh"

    def told(form, **changes):
        run("bash", script, form, "networks", cwd=tmp_path, **environment | changes)
        words = (out / "logs" / "networks.log").read_text()
        return words.partition(" --only ")[2].replace(str(out), "OUT").strip()

    output = "--output OUT/networks.json"
    baselines = "--baselines eager eager-checkpoint"
    assert told("quick") == f"networks --variant B L --kernel-size 3 5 {baselines} --seconds 65 {output}"
    assert f"networks --variant S B M L --kernel-size 3 5 7 {baselines} monai compile" in told("full")
    asked = {"VARIANTS": "M", "KERNEL_SIZES": "7", "BASELINES": "", "SECONDS": "300"}
    found = told("full", **{f"NETWORKS_{name}": value for name, value in asked.items()})
    assert found == f"networks --variant M --kernel-size 7 --baselines --seconds 290 {output}"
    left = re.search(r"--seconds (\d+)", told("quick", SECONDS_IN_ALL="40"))
    assert int(left[1]) <= 30, "no more than is left for all"


def test_networks_that_were_measured_are_counted(tmp_path):
    (tmp_path / "steps").mkdir()
    rows = [{"source": "mednext", "ms": 16.3}, {"source": "MONAI", "error": "not comparable: MONAI is not installed"}]
    (tmp_path / "networks.json").write_text(json.dumps({"networks": rows, "not_measured": [{"source": "eager"}]}))
    run(sys.executable, BENCHMARKS / "device_summary.py", tmp_path, "--form", "full", "--seconds", "1", cwd=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["networks"] == {"ok": 1, "error": 1, "not_measured": 1}


def test_tests_that_are_killed_leave_what_they_have_shown(tmp_path):
    """Two workers: what they found comes from their controller."""
    (tmp_path / "test_planted.py").write_text(
        "import pytest, time\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('not here')\n"
        "def test_endless(): time.sleep(600)\n"
    )
    workers = ["-n", "2"] if importlib.util.find_spec("xdist") else []
    running = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests_so_far", "--so-far", "so_far.json", *workers],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        report = {"tests": 0}
        while report["tests"] < 4 and time.monotonic() < until:
            time.sleep(0.2)
            if (tmp_path / "so_far.json").exists():
                report = json.loads((tmp_path / "so_far.json").read_text())
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    counts = {name: report[name] for name in ("exit_status", "tests", "failures", "errors", "skipped")}
    assert counts == {"exit_status": None, "tests": 4, "failures": 1, "errors": 0, "skipped": 1}
    assert "assert 1 == 2" in report["failed"]["test_planted.py::test_wrong"]


def test_tests_that_are_gone_on_a_gpu_are_a_failure(tmp_path):
    """Where every worker crashes at the collection, pytest says as much as where there is nothing to run: 5."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit 0\n[ "$2" = pytest ] && echo "no tests ran" && exit 5\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    stand_in.chmod(0o755)
    environment = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "PYTHON": str(stand_in)}
    run("bash", BENCHMARKS / "device_check.sh", "quick", "tests", cwd=tmp_path, INSTALLED="1", **environment)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["steps"]["tests"]["exit_status"] == 5 and summary["steps"]["tests"]["result"] == "failed"


def test_a_crash_is_a_failure_and_the_debugger_says_where(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import ctypes, sys\nif '--backend' in sys.orig_argv:\n    ctypes.string_at(0)\n"
    )
    environment = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "PYTHON": sys.executable}
    environment |= {"PACK": "1", "PYTHONPATH": str(tmp_path)}
    run("bash", BENCHMARKS / "device_check.sh", "quick", "cpu", cwd=tmp_path, INSTALLED="1", **environment)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["device-check.tgz", "summary.json"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["steps"]["cpu"]["exit_status"] == 139 and summary["steps"]["cpu"]["result"] == "failed"
    with tarfile.open(tmp_path / "out" / "device-check.tgz") as packed:
        log = packed.extractfile("./logs/cpu.log").read().decode()
    if shutil.which("gdb"):
        assert "received signal SIGSEGV" in log and "#0 " in log


@pytest.mark.parametrize("arguments", [("fast",), ("full", "everything")])
def test_the_script_refuses_what_it_does_not_know(arguments, tmp_path):
    done = run("bash", BENCHMARKS / "device_check.sh", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and "device_check.sh: " in done.stderr
