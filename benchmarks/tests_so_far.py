"""A pytest plugin that writes into a file what the tests have shown so far: one that is killed writes no report.

    PYTHONPATH=benchmarks pytest -p tests_so_far --so-far tests.json

Counts of tests, failures, errors and skipped ones; `failed`, what each failure said; `exit_status`, None until the end.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--so-far", type=Path, help="the file for what the tests have shown so far")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--so-far")
    if file is not None and not hasattr(config, "workerinput"):  # pytest-xdist's workers tell their controller
        config.pluginmanager.register(SoFar(file))


class SoFar:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._report: dict[str, Any] = {"exit_status": None, "tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        self._report["failed"] = {}
        self._write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            self._report["tests"] += 1
        if report.skipped:
            self._report["skipped"] += 1
        if report.failed:
            self._fail("failures" if report.when == "call" else "errors", report)
        self._write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._fail("errors", report)
            self._write()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._report["exit_status"] = int(exitstatus)
        self._write()

    def _fail(self, kind: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        self._report[kind] += 1
        self._report["failed"][report.nodeid] = report.longreprtext[-2000:]

    def _write(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._report, indent=1) + "\n")
        os.replace(part, self._file)
