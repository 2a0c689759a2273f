"""The `mednext` command itself."""

from __future__ import annotations

import importlib.metadata

import torch
from typer.testing import CliRunner

from mednext.commands import app

from .scans import mednext


def test_version() -> None:
    result = mednext("--version")
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.strip() == f"mednext-ops {importlib.metadata.version('mednext-ops')}, torch {torch.__version__}"
    )


def test_without_arguments_it_says_what_it_can_do() -> None:
    said = CliRunner().invoke(app, []).output
    assert "demo" in said and "segment" in said and "--version" in said
