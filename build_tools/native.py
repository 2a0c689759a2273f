"""The build itself: decide what can be built, run ninja, record what came out and why the rest did not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_tools import artefacts
from build_tools.architectures import parse_architectures, split_known
from build_tools.artefacts import Artefact
from build_tools.ninja_file import NinjaFile
from build_tools.settings import BuildError, Settings
from build_tools.toolchain import (
    MINIMUM_TORCH,
    REINSTALL,
    Compiler,
    Missing,
    Nvcc,
    PybindModule,
    Torch,
    find_compiler,
    find_ninja,
    find_nvcc,
    find_pybind,
    find_torch,
    package_directories,
    run_tool,
)

__all__ = ["INFORMATION_FILE", "PARTS", "Tools", "build_native", "find_tools", "report", "write_information"]

PARTS = ("cpu", "cuda", "information")
INFORMATION_FILE = "_build_info.json"
_MEND_CHOSEN = f"unset MEDNEXT_OPS_BUILD, then {REINSTALL}"


@dataclasses.dataclass(frozen=True)
class Tools:
    """Everything that was found, or why not."""

    compiler: Compiler | Missing
    ninja: str | Missing
    torch: Torch | Missing
    nvcc: Nvcc | Missing
    pybind: PybindModule | Missing


def find_tools(environ: Mapping[str, str] = os.environ) -> Tools:
    directories = package_directories(environ)
    return Tools(
        find_compiler(environ),
        find_ninja(environ),
        find_torch(directories),
        find_nvcc(directories, environ),
        find_pybind(directories),
    )


def build_native(root: Path, build: Path, settings: Settings, tools: Tools) -> dict[str, Any]:
    """Build what can be built into ``build`` and return the build information.

    Raises:
        BuildError: a part that ``settings`` requires cannot be built; the text says why and how to mend it.
    """
    build.mkdir(parents=True, exist_ok=True)
    information = _information(root, settings, tools)
    ninja_file = NinjaFile(build)
    planned: dict[str, Artefact] = {}
    for part in PARTS:
        made = _plan(part, ninja_file, root, build, settings, tools, information)
        if isinstance(made, Artefact):
            planned[part] = made
        else:
            _leave_out(information, settings, part, made)
    ninja_file.write(build / "build.ninja")
    for part, artefact in planned.items():
        if part == "information" and not any(record["built"] for record in information["parts"].values()):
            # Alone it would tie a wheel to one Python, and have nothing to tell.
            _leave_out(information, settings, part, Missing("neither library was built", "see the libraries"))
            continue
        target = "information_module" if part == "information" else part
        failure = _run_ninja(root, build, settings, str(tools.ninja), target)
        if failure is not None:
            _leave_out(information, settings, part, failure)
            continue
        record = dataclasses.asdict(artefact) | {"built": True}
        information["parts"][part] = {k: v for k, v in record.items() if k != "name" and v != ()}
    information["parts"] = {part: information["parts"][part] for part in PARTS}
    return information


def _plan(
    part: str,
    ninja_file: NinjaFile,
    root: Path,
    build: Path,
    settings: Settings,
    tools: Tools,
    information: dict[str, Any],
) -> Artefact | Missing:
    """Write the edges of one part, or say what it lacks."""
    if not settings.wants_native or (part == "cuda" and not settings.wants_cuda):
        return Missing(f"MEDNEXT_OPS_BUILD={settings.mode} asked for a build without it", _MEND_CHOSEN)
    compiler, torch, nvcc, pybind = tools.compiler, tools.torch, tools.nvcc, tools.pybind
    if isinstance(compiler, Missing):
        return compiler
    if isinstance(tools.ninja, Missing):
        return tools.ninja
    if part == "information":
        if isinstance(pybind, Missing):
            return pybind
        facts = {
            "pybind11": pybind.version,
            "torch_headers": information["torch"] or "none",
            "stable_abi_target": information["stable_abi_target"],
            "cuda": nvcc.release if isinstance(nvcc, Nvcc) and settings.wants_cuda else "none",
            "cuda_architectures": ";".join(information.get("cuda_architectures", ())),
            "fingerprint": information["fingerprint"],
        }
        return artefacts.information(ninja_file, root, build, compiler, pybind, facts)
    if isinstance(torch, Missing):
        return torch
    if part == "cpu":
        return artefacts.cpu(ninja_file, root, build, compiler, torch)
    if isinstance(nvcc, Missing):
        return nvcc
    if settings.mode == "auto" and not torch.has_cuda:
        # Seven architectures take many times as long as everything else, and nothing here could load them.
        return Missing(
            "this torch is without CUDA", f"install a torch with CUDA, or set MEDNEXT_OPS_BUILD=cuda, then {REINSTALL}"
        )
    known, unknown = split_known(parse_architectures(settings.architectures), nvcc.architectures)
    if unknown:
        names = ", ".join(map(str, unknown))
        print(f"mednext-ops: CUDA {nvcc.release} does not know the architectures {names}: left out")
    if not known:
        return Missing(
            f"CUDA {nvcc.release} knows none of the architectures {settings.architectures}",
            "set MEDNEXT_OPS_CUDA_ARCHS to some that it knows (nvcc --list-gpu-arch), or install a newer toolkit",
        )
    information["cuda_architectures"] = [str(a) for a in known]
    information["cuda_architectures_left_out"] = [str(a) for a in unknown]
    return artefacts.cuda(ninja_file, root, build, compiler, torch, nvcc, known)


def _leave_out(information: dict[str, Any], settings: Settings, part: str, why: Missing) -> None:
    if settings.requires(part):
        raise BuildError(
            f"MEDNEXT_OPS_BUILD={settings.mode} asks for the {part} library, which cannot be built here: {why}"
        )
    information["parts"][part] = {"built": False, "reason": why.reason, "mend": why.mend}


def _run_ninja(root: Path, build: Path, settings: Settings, ninja: str, target: str) -> Missing | None:
    """Build one target; a failure shows the compiler's whole output and comes back as its first error."""
    command = [ninja, "-f", str(build / "build.ninja"), "-j", str(settings.max_jobs), target]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        return None
    errors = [line.strip() for line in done.stdout.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
    first = errors[0] if errors else f"ninja gave up with status {done.returncode}"
    return Missing(
        f"the compiler failed: {first}",
        f"see its whole output with pip's -v: {REINSTALL} -v",
    )


def _information(root: Path, settings: Settings, tools: Tools) -> dict[str, Any]:
    """The build information before anything is built: without dates and paths, so that builds can be compared."""
    return {
        "mode": settings.mode,
        "git": _git_revision(root),
        "torch": tools.torch.version if isinstance(tools.torch, Torch) else None,
        "stable_abi_target": ".".join(map(str, MINIMUM_TORCH)),
        "cuda": tools.nvcc.release if isinstance(tools.nvcc, Nvcc) and settings.wants_cuda else None,
        "fingerprint": _fingerprint(root),
        "parts": {},
    }


def _git_revision(root: Path) -> str | None:
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    status, revision = run_tool("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    if status != 0:
        return None
    _, changes = run_tool("git", "-C", str(root), "status", "--porcelain", "--", "csrc", "build_tools", "setup.py")
    return revision.strip() + ("+changes" if changes.strip() else "")


def _fingerprint(root: Path) -> str:
    """Tells one state of the native sources from another, also where there is no git."""
    digest = hashlib.sha256()
    for path in sorted((root / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def report(information: Mapping[str, Any]) -> str:
    """What was built, what was left out and why: for a person."""
    lines = ["mednext-ops native build:"]
    for part, record in information["parts"].items():
        if record["built"]:
            detail = f" for {', '.join(record['architectures'])}" if "architectures" in record else ""
            lines.append(f"  {part:12} built by {record['compiler']}{detail}")
        else:
            lines.append(f"  {part:12} left out: {record['reason']}")
            lines.append(f"  {'':12} to mend it: {record['mend']}")
    return "\n".join(lines)


def write_information(information: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(information, indent=2) + "\n")
