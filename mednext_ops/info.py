"""What of mednext_ops runs on this machine and, for what does not, why and how to mend it.

``python -m mednext_ops.info`` prints it for a person, ``--json`` for a program. Asks CUDA for its devices. With
``--plan`` it says how a convolution would be launched on a GPU, which need not be there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import torch

from mednext_ops import backends, native, plans

__all__ = ["collect", "describe", "main"]

_VARIABLES = (
    "MEDNEXT_OPS_BACKEND",
    "MEDNEXT_OPS_BUILD",
    "MEDNEXT_OPS_CPU_CAPABILITY",
    "MEDNEXT_OPS_CPU_POOL",
    "MEDNEXT_OPS_CUDA_ARCHS",
    "MEDNEXT_OPS_EMULATED_LIBRARY",
    "MEDNEXT_OPS_TRITON_CACHE",
    "MEDNEXT_OPS_TRITON_TUNE",
    "MAX_JOBS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
)


def collect() -> dict[str, Any]:
    """Versions, devices, the native build and every backend, as plain data."""
    information = native.build_information()
    compiled = native.compiled_facts()
    return {
        "versions": {
            "mednext-ops": _version("mednext-ops"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "monai": _version("monai"),
            "numpy": _version("numpy"),
            "platform": platform.platform(),
        },
        "torch": {
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cpu_kernels": list(native.cpu_capabilities()) if native.libraries()["cpu"].loaded else [],
        },
        "devices": _devices(),
        "build": {
            **information,
            "compiled": compiled,
            "consistent": not compiled or compiled.get("fingerprint") == information.get("fingerprint"),
        },
        "libraries": {
            name: {"file": state.file, "loaded": state.loaded, "reason": state.reason, "mend": state.mend}
            for name, state in native.libraries().items()
        },
        "backends": {name: _backend_problem(name) for name in backends.backend_names()},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "forced": _forced(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "index": index,
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def _backend_problem(name: str) -> str | None:
    try:
        return importlib.import_module(f"mednext_ops.backends.{name}").unavailable()
    except Exception as error:  # a broken backend is what this command is there to show
        return f"it fails to start: {type(error).__name__}: {error}"


def _forced() -> dict[str, str | None] | None:
    """The backends that the environment forces and what is wrong with them; None where it leaves the choice open."""
    value = os.environ.get(backends.ENVIRONMENT_VARIABLE, "").strip()
    if value in ("", "auto"):
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in backends.backend_names()]
    if unknown or not names:
        known = ", ".join(backends.backend_names())
        return {"value": value, "problem": f"{unknown[0] if names else value!r} is no backend; there are {known}"}
    missing = [name for name in names if _backend_problem(name) is not None]
    if len(missing) == len(names):
        return {"value": value, "problem": f"{', '.join(missing)} does not run here (see backends)"}
    return {"value": value, "problem": None}


def describe(facts: dict[str, Any]) -> str:
    """The facts of :func:`collect` as text."""
    lines = [f"mednext-ops {facts['versions']['mednext-ops'] or '(not installed)'}"]
    lines += _section("versions", {k: v or "not installed" for k, v in facts["versions"].items() if k != "mednext-ops"})
    torch_facts = facts["torch"]
    lines += _section(
        "torch",
        {
            "CUDA": torch_facts["cuda"] or "none: a CPU-only build" if not torch_facts["hip"] else "none: a ROCm build",
            "cuDNN": torch_facts["cudnn"] or "none",
            "CPU": f"{torch_facts['threads']} threads, {torch_facts['cpu_capability']}",
            "our CPU kernels": f"best of {', '.join(torch_facts['cpu_kernels'])}"
            if torch_facts["cpu_kernels"]
            else "none",
        },
    )
    devices = {
        f"cuda:{d['index']}": f"{d['name']}, compute capability {d['capability']}, {d['memory_gib']} GiB"
        for d in facts["devices"]
    }
    lines += _section("devices", devices or {"cuda": "none that torch sees"})
    lines += _section("native build", _build_lines(facts["build"]))
    lines += _section(
        "libraries",
        {
            state["file"]: "loaded" if state["loaded"] else _with_mend(state["reason"], state["mend"])
            for state in facts["libraries"].values()
        },
    )
    lines += _section(
        "backends",
        {name: "available" if why is None else f"not available: {why}" for name, why in facts["backends"].items()},
    )
    environment = dict(facts["environment"])
    if facts["forced"] and facts["forced"]["problem"]:
        environment[backends.ENVIRONMENT_VARIABLE] = _with_mend(
            f"{facts['forced']['value']}: every op will fail, since {facts['forced']['problem']}",
            "unset it, or set it to a backend that is available",
        )
    if environment:
        lines += _section("environment", environment)
    return "\n".join(lines)


def _build_lines(build: dict[str, Any]) -> dict[str, str]:
    shown = {
        key: str(build[field])
        for key, field in (("sources", "git"), ("torch headers", "torch"), ("CUDA", "cuda"), ("asked for", "mode"))
        if build.get(field)
    }
    if "stable_abi_target" in build:
        shown["runs with"] = f"torch {build['stable_abi_target']} and newer (stable ABI)"
    for part, record in build["parts"].items():
        if record.get("built"):
            archs = f" for {', '.join(record['architectures'])}" if "architectures" in record else ""
            shown[part] = f"{record['compiler']}{archs}; {' '.join(record['flags'])}"
        else:
            shown[part] = _with_mend(f"left out: {record.get('reason')}", record.get("mend"))
    if build["compiled"]:
        shown["compiled by"] = f"{build['compiled']['compiler']} ({build['compiled']['language']})"
    if not build["consistent"]:
        shown["beware"] = f"the module and the record are of different builds; {native.REINSTALL}"
    return shown


def _with_mend(reason: str | None, mend: str | None) -> str:
    return f"{reason}\nto mend it: {mend}" if mend else str(reason)


def _section(title: str, rows: dict[str, Any]) -> list[str]:
    width = max(map(len, rows))
    lines = ["", title]
    for name, value in rows.items():
        first, *rest = str(value).splitlines() or [""]
        lines.append(f"  {name:{width}}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in rest]
    return lines


def main(arguments: list[str] | None = None) -> None:
    """The command line of ``python -m mednext_ops.info``."""
    parser = argparse.ArgumentParser(prog="python -m mednext_ops.info", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    plans.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.plan is not None:
        try:
            found = plans.plans_asked_for(options)
        except (RuntimeError, ValueError) as error:
            parser.error(str(error))
        _print(json.dumps(found, indent=2) if options.json else plans.describe(found))
        return
    for name in options.of_plans:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} belongs to --plan")
    facts = collect()
    _print(json.dumps(facts, indent=2) if options.json else describe(facts))


def _print(text: str) -> None:
    """Also to a reader who has seen enough, as ``head`` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
