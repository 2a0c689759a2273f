"""The command line of the harness, as a user runs it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time

import pytest
import torch

from mednext import variants
from mednext.bench import command, networks, suites
from mednext.bench.operators import OPERATORS
from mednext.bench.rows import key, read
from mednext.variants import Variant

FAST = ["--quick", "--samples", "2", "--seconds", "0", "--device", "cpu"]
TINY_OPS = ["ops", *FAST, "--patch", "4", "--kernel-size", "3"]

PLANTED = '''
import torch
from mednext import create_mednext


def right(variant, in_channels, num_classes, kernel_size, deep_supervision):
    return create_mednext(variant, in_channels, num_classes, kernel_size, deep_supervision)


def wrong(**arguments):
    """The right network, a per cent off."""
    network = right(**arguments)
    network.register_forward_hook(lambda m, x, y: [1.01 * v for v in y] if isinstance(y, list) else 1.01 * y)
    return network


class Hungry(torch.nn.Conv3d):
    def forward(self, x):
        raise torch.OutOfMemoryError("out of memory: tried to allocate 300 GiB")


def hungry(**arguments):
    return Hungry(1, 3, 1)


def no_network(**arguments):
    return "a network"
'''


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch):
    """MedNeXt-S with an eighth of the channels and half the blocks: the harness is under test here."""
    tiny = {"S": Variant(2, (1,) * 9, n_channels=4)}
    for module in (variants, networks, suites, command):
        monkeypatch.setattr(module, "VARIANTS", tiny)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "planted_networks.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    yield "planted_networks"
    sys.modules.pop("planted_networks", None)


def test_ops_leave_rows_plots_and_a_report(tmp_path, capsys):
    assert command.main([*TINY_OPS, "--output", str(tmp_path)]) == 0
    rows, facts = read(tmp_path)
    assert facts["finished"] and facts["ceilings"]["fp32"]["bytes_per_second"] > 1e8
    assert {row.implementation for row in rows} == {"mednext", "eager", "eager channels_last_3d"}
    assert {row.problem.split()[0] for row in rows} == set(OPERATORS)
    for row in rows:
        assert row.status == "ok" and row.seconds and row.machine and "torch" in row.versions and row.git
        assert row.command.startswith("mednext bench ops --quick") and "--patch 4" in row.command
    with open(tmp_path / "results.csv", newline="") as file:
        assert [r["problem"] for r in csv.DictReader(file)] == [row.problem for row in rows]
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("speed_ups.png", "roofline.png"))
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "depthwise_conv_transpose3d" in page
    assert 'src="http' not in page
    printed = capsys.readouterr().out
    assert "speed-up" in printed and "results.json, results.csv, report.html" in printed


def test_what_an_implementation_has_no_form_of_is_said(tmp_path, capsys):
    arguments = ["ops", *FAST, "--patch", "2", "--kernel-size", "3", "--baselines", "eager-checkpoint"]
    assert command.main([*arguments, "--output", str(tmp_path)]) == 0
    rows, _ = read(tmp_path)
    assert {row.implementation for row in rows} == {"mednext"}
    said = f"eager checkpointed: no row of {len(rows)} of {len(rows)} tasks: eager checkpointed has no form of an op"
    assert said in capsys.readouterr().out


def test_blocks(tmp_path):
    arguments = ["blocks", *FAST, "--variant", "S", "--patch", "4", "--kernel-size", "3", "--baselines", "eager"]
    assert command.main([*arguments, "--output", str(tmp_path)]) == 0
    rows, _ = read(tmp_path)
    assert {row.problem.split()[0] for row in rows} == {"regular", "down", "up"}
    assert {row.pass_name for row in rows} == {"inference", "forward + backward"}


def test_network_beside_networks_of_the_user(tmp_path, planted):
    arguments = ["network", *FAST, "--variant", "S", "--kernel-size", "3", "--patch", "32", "--baselines", "eager"]
    for name in ("right", "wrong", "hungry"):
        arguments += ["--baseline", f"{planted}:{name}"]
    status = command.main([*arguments, "--output", str(tmp_path)])
    rows, facts = read(tmp_path)
    assert status == 1, "for the wrong one"
    assert facts["finished"]
    for pass_name in ("inference", "training step"):
        status = {row.implementation.split(":")[-1]: row for row in rows if row.pass_name == pass_name}
        told = {name: row.status for name, row in status.items()}
        assert told == {"mednext": "ok", "eager": "ok", "right": "ok", "wrong": "wrong", "hungry": "out of memory"}
        assert "output" in status["wrong"].note and status["wrong"].seconds is None


@pytest.mark.parametrize("suite", suites.SUITES)
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_measured_without_options_can_be_measured(suite, quick, device):
    patch = suites.default_choice(suite, device, quick).patch
    assert suite in ("ops", "blocks") or (patch % 16 == 0 and patch >= 32)


def test_no_seconds_and_few_samples_are_what_they_say(tmp_path):
    assert command.main([*TINY_OPS, "--baselines", "--output", str(tmp_path)]) == 0
    assert {row.samples for row in read(tmp_path)[0]} == {2}


def test_compiled_networks_ours_and_pytorchs(tmp_path):
    arguments = ["network", *FAST, "--variant", "S", "--kernel-size", "3", "--patch", "32"]
    arguments += ["--baselines", "compile", "--graphs", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    rows, facts = read(tmp_path)
    assert facts["choice"]["graphs"]
    names = ["mednext", "mednext reduce-overhead", "torch.compile"]
    assert [(row.implementation, row.status) for row in rows] == 2 * [(name, "ok") for name in names]
    assert rows[1].backends == rows[0].backends, "what ran within the compiled network"


def test_scaling_and_memory(tmp_path):
    small = ["--quick", "--device", "cpu", "--variant", "S", "--kernel-size", "1", "3", "--patch", "32"]
    small += ["--baselines", "--output"]
    assert command.main(["memory", *small, str(tmp_path / "memory")]) == 0
    rows, _ = read(tmp_path / "memory")
    assert all(row.saved_bytes and row.peak_bytes and row.seconds is None for row in rows)
    assert command.main(["scaling", *small, str(tmp_path / "scaling"), "--samples", "1", "--seconds", "0"]) == 0
    assert {row.kernel_size for row in read(tmp_path / "scaling")[0]} == {1, 3}
    assert (tmp_path / "scaling" / "scaling.png").is_file()


def test_a_planted_slowdown_makes_compare_fail(tmp_path, plant, capsys):
    arguments = [*TINY_OPS, "--baselines", "eager", "--samples", "15", "--output"]
    command.main([*arguments, str(tmp_path / "before")])
    plant(lambda y: (time.sleep(0.2), y)[1])
    command.main([*arguments, str(tmp_path / "after")])
    capsys.readouterr()
    before, after = str(tmp_path / "before"), str(tmp_path / "after" / "results.json")
    assert command.main(["compare", before, after]) == 1
    slower = [line for line in capsys.readouterr().out.splitlines() if line.startswith("slower")]
    forward = [line for line in slower if "depthwise_conv3d 1x32x4x4x4" in line and "forward, mednext" in line]
    assert len(forward) == 2  # of stride 1 and of stride 2
    assert command.main(["compare", before, before]) == 0
    assert "same" in capsys.readouterr().out


def test_a_row_that_became_wrong_makes_compare_fail(tmp_path, capsys):
    command.main([*TINY_OPS, "--baselines", "--output", str(tmp_path / "before")])
    content = json.loads((tmp_path / "before" / "results.json").read_text())
    content["rows"][3] |= {"status": "wrong", "note": "output: error 1e-1", "seconds": None}
    (tmp_path / "after.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert command.main(["compare", str(tmp_path / "before"), str(tmp_path / "after.json")]) == 1
    assert "broken" in capsys.readouterr().out


def test_ctrl_c_keeps_the_rows_that_are_done(tmp_path, plant, capsys):
    def interrupt(y):
        raise KeyboardInterrupt

    plant(interrupt)
    assert command.main([*TINY_OPS, "--output", str(tmp_path)]) == 130
    rows, facts = read(tmp_path)
    assert rows and not facts["finished"]
    assert {row.problem.split()[0] for row in rows} == {"group_norm_statistics", "inverted_bottleneck"}
    assert "it was stopped" in (tmp_path / "report.html").read_text()
    assert "kept" in capsys.readouterr().err


def test_resume_goes_on_after_the_last_whole_task(tmp_path, monkeypatch, capsys):
    arguments = [*TINY_OPS, "--baselines", "eager", "--output"]
    assert command.main([*arguments, str(tmp_path / "whole")]) == 0
    whole, facts = read(tmp_path / "whole")
    # As a kill leaves it: the last task lacks its second row, and there are no plots.
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    content = json.loads((tmp_path / "whole" / "results.json").read_text())
    (stopped / "results.json").write_text(json.dumps({**content, "finished": False, "rows": content["rows"][:7]}))
    assert command.main([*arguments, str(stopped), "--resume"]) == 0
    rows, told = read(stopped)
    assert told["finished"] and told["ceilings"] == facts["ceilings"]
    assert [key(row) for row in rows] == [key(row) for row in whole]
    assert [row.seconds for row in rows[:6]] == [row.seconds for row in whole[:6]]
    assert "--resume" not in rows[-1].command and "6 rows kept" in capsys.readouterr().out
    assert (stopped / "roofline.png").is_file()
    # Killed between two tasks: none is run again.
    (stopped / "results.json").write_text(json.dumps({**content, "finished": False, "rows": content["rows"][:-2]}))
    assert command.main([*arguments, str(stopped), "--resume"]) == 0
    assert f"1 tasks, 2 implementations, {len(whole) - 2} rows kept" in capsys.readouterr().out
    rows, _ = read(stopped)
    # A run that ended: nothing is measured, everything is drawn.
    (stopped / "report.html").unlink()
    monkeypatch.setattr(command, "measure_ceilings", None)
    assert command.main([*arguments, str(stopped), "--resume"]) == 0
    assert read(stopped)[0] == rows and (stopped / "report.html").is_file()


def test_resume_without_a_run_starts_one(tmp_path):
    assert command.main([*TINY_OPS, "--baselines", "--output", str(tmp_path / "new"), "--resume"]) == 0
    assert read(tmp_path / "new")[1]["finished"]


def test_resume_refuses_another_run(tmp_path, capsys):
    arguments = [*TINY_OPS, "--baselines", "--output", str(tmp_path), "--resume"]
    assert command.main(arguments) == 0
    file = tmp_path / "results.json"
    before = file.read_text()

    def refused(*changes: str, suite: str = "ops") -> str:
        assert command.main([suite, *arguments[1:], *changes]) == 2
        return capsys.readouterr().err

    assert "had another patch" in refused("--patch", "6")
    assert "had another suite" in refused(suite="blocks")
    assert file.read_text() == before, "nothing is lost"
    file.write_text(before.replace('"versions": "', '"versions": "torch 1.0, '))
    assert "was made with torch 1.0" in refused()
    file.write_text(before.replace('"bytes_per_second"', '"bytes"'))
    assert "no ceilings" in refused()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["network", "--patch", "20"], "multiple of 16"),
        (["network", "--patch", "16"], "at least 32"),
        (["ops", "--patch", "8", "--baseline", "a:b"], "belongs to network"),
        (["ops", "--patch", "8", "--graphs"], "--graphs and --cuda-graph run whole networks"),
        (["ops", "--seconds", "-1"], "--seconds must not be negative"),
        (["ops", "--samples", "0"], "--samples must be at least 1"),
        (["ops", "--device", "tpu"], "--device 'tpu'"),
        (["compare", "nowhere", "nowhere"], "holds no results"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(arguments, sentence, tmp_path, capsys):
    more = [] if arguments[0] == "compare" else ["--output", str(tmp_path)]
    assert command.main([*arguments, *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_backend_that_does_not_run_here_is_refused(tmp_path, monkeypatch, capsys):
    from mednext_ops import backends

    monkeypatch.setattr(backends._module("cuda"), "unavailable", lambda: "torch sees no GPU; check nvidia-smi")
    output = tmp_path / "out"
    assert command.main([*TINY_OPS, "--backend", "reference", "cuda", "--output", str(output)]) == 2
    assert "'cuda'): this backend does not run here: torch sees no GPU; check nvidia-smi." in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("factory", "sentence"), [("nowhere:make", "cannot be found"), ("planted_networks:no_network", "made a str")]
)
def test_a_baseline_that_is_none_is_said_in_a_sentence(factory, sentence, planted, tmp_path, capsys):
    arguments = ["network", *FAST, "--variant", "S", "--kernel-size", "3", "--patch", "32", "--baselines"]
    assert command.main([*arguments, "--baseline", factory, "--output", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert command.main(["ops", "--device", "cuda", "--output", str(tmp_path)]) == 3
    assert "there is no GPU" in capsys.readouterr().err


def test_it_is_a_command_of_mednext(tmp_path):
    for start in (["-m", "mednext.cli", "bench"], ["-m", "mednext.bench"]):
        done = subprocess.run([sys.executable, *start, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "compare" in done.stdout and "scaling" in done.stdout


def test_the_process_ends_without_complaints(tmp_path):
    command_line = [sys.executable, "-m", "mednext.bench", *TINY_OPS, "--baselines", "--output", str(tmp_path / "out")]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr
