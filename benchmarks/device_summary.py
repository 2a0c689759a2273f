"""Makes summary.json of what benchmarks/device_check.sh left in its folder, and prints one line a step.

The exit status is 0 if every step passed, 1 if one failed, 3 if there was no GPU, so that nothing was shown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

WORDS = {0: "passed", 3: "nothing to do", 99: "failed", 124: "out of time", 137: "out of time"}
LAST_LINES = 5


def steps(folder: Path) -> dict[str, Any]:
    """What was run: exit status, seconds, time limit and last words, by name, in the order in which they ended."""
    found = {}
    for file in sorted((folder / "steps").iterdir(), key=lambda f: f.stat().st_mtime):
        status, seconds, limit, command = file.read_text().splitlines()[:4]
        log = folder / "logs" / f"{file.name}.log"
        words = log.read_text(errors="replace").splitlines() if log.is_file() else []
        found[file.name] = {
            "result": WORDS.get(int(status), "failed"),
            "exit_status": int(status),
            "command": command,
            "seconds": int(seconds),
            "limit_seconds": int(limit),
            "last_words": [line[:300] for line in words if line.strip()][-LAST_LINES:],
        }
    return found


def tests(file: Path) -> dict[str, Any] | None:
    """What benchmarks/tests_so_far.py counted."""
    if not file.is_file():
        return None
    report = json.loads(file.read_text())
    return {name: count for name, count in report.items() if name != "failed"}


def checks(file: Path) -> dict[str, Any]:
    """How many problems a parity report tried and passed."""
    report = json.loads(file.read_text())
    counted = {
        name: {key: check[key] for key in ("tried", "passed", "skipped", "left_out") if key in check}
        for name, check in report["checks"].items()
        if isinstance(check, dict)
    }
    return counted or report["checks"]


def rows(file: Path) -> dict[str, int]:
    """How many rows a benchmark measured, by their status."""
    counted: dict[str, int] = {}
    for row in json.loads(file.read_text())["rows"]:
        counted[row["status"]] = counted.get(row["status"], 0) + 1
    return counted


def networks(file: Path) -> dict[str, int] | None:
    """How many networks benchmarks/gpu_times.py measured, could not measure, and had no time for."""
    if not file.is_file():
        return None
    report = json.loads(file.read_text())
    failed = sum("error" in row for row in report["networks"])
    return {"ok": len(report["networks"]) - failed, "error": failed, "not_measured": len(report["not_measured"])}


def gpu(folder: Path) -> str | None:
    """Its name, as torch gave it in the log of the first step."""
    log = folder / "logs" / "environment.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    names = [line.removeprefix("GPU: ") for line in lines if line.startswith("GPU: ")]
    return names[0] if names and not names[0].startswith("none") else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", required=True)
    parser.add_argument("--seconds", type=int, required=True)
    options = parser.parse_args()
    folder = options.folder
    summary: dict[str, Any] = {
        "form": options.form,
        "gpu": gpu(folder),
        "git": os.environ.get("MEDNEXT_OPS_GIT") or None,
        "seconds": options.seconds,
        "steps": steps(folder),
        "tests": tests(folder / "tests.json"),
        "triton_tests": tests(folder / "triton.json"),
        "parity": {f.stem.removeprefix("parity-"): checks(f) for f in sorted(folder.glob("parity-*.json"))},
        "benchmarks": {f.parent.name: rows(f) for f in sorted(folder.glob("*/results.json"))},
        "networks": networks(folder / "networks.json"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    failed = [name for name, step in summary["steps"].items() if step["result"] in ("failed", "out of time")]
    print(f"{len(summary['steps'])} steps in {options.seconds} s, summary in {folder / 'summary.json'}")
    if failed:
        print(f"not passed: {', '.join(failed)}")
    if summary["gpu"] is None:
        print("there is no GPU here: nothing about kernels on a GPU was shown")
        return 3
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
