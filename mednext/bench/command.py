"""The command line ``mednext bench``: options in, rows out as they are measured, then files and plots.

Knows neither typer nor rich nor matplotlib by need: without them tables are plain, and plots are left out with a word.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mednext.bench import suites
from mednext.bench.clocks import Timer
from mednext.bench.comparison import compare, describe
from mednext.bench.machine import Ceilings, measure_ceilings, provenance
from mednext.bench.operators import DTYPES
from mednext.bench.rows import JSON_NAME, OK, OUT_OF_MEMORY, TASK_FIELDS, Row, of_task, read, write
from mednext.bench.runner import Runner
from mednext.bench.table import cells, print_table, speed_ups
from mednext.errors import InputError, first_line
from mednext.variants import VARIANTS
from mednext_ops.backends import backend_names, use_backend

__all__ = ["main"]

STOPPED, NO_DEVICE = 130, 3


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0: all well. 1: a result was wrong, an implementation failed, or ``compare`` found a regression. 2: the input cannot
    be used. 3: the device is not here. 130: stopped; the rows measured so far are in the files.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        return _compare(options) if options.suite == "compare" else _measure(options, arguments)
    except InputError as error:
        print(f"mednext bench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mednext bench", description="Speed and memory beside other implementations.")
    commands = parser.add_subparsers(dest="suite", required=True)
    told = {
        "ops": "operators, forward and backward, at the stages of MedNeXt",
        "blocks": "blocks, inference and forward + backward",
        "network": "a network, inference and training step",
        "scaling": "networks at kernel sizes 3, 5 and 7: time and memory",
        "memory": "peak memory of a training step and what is saved for backward, untimed",
    }
    for name, text in told.items():
        _add_options(commands.add_parser(name, help=text, description=text))
    versus = commands.add_parser("compare", help="which rows of two runs moved beyond noise; exit status 1 if worse")
    versus.add_argument("before", type=Path, help="results.json, or the folder that holds it")
    versus.add_argument("after", type=Path)
    versus.add_argument("--threshold", type=float, default=5.0, help="per cent that are noise in any case (default 5)")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--variant", nargs="+", choices=VARIANTS, metavar="V", help=f"of {', '.join(VARIANTS)}")
    add("--kernel-size", nargs="+", type=_odd, metavar="K", help="odd extents")
    add("--patch", type=int, help="edge of the cube, voxels: of a network's input, of the finest level of the others")
    add("--batch", type=int, default=1, help="cubes at a time (default 1)")
    add("--dtype", nargs="+", choices=DTYPES, help="16 bits: autocast in blocks and networks")
    add("--backend", nargs="+", choices=("default", *backend_names()), help="of ours (default: what it chooses)")
    add("--baselines", nargs="*", choices=suites.BASELINES, help="what is measured beside ours")
    add("--baseline", action="append", default=[], metavar="PACKAGE.MODULE:FACTORY", help="a network of yours (docs)")
    add("--channels-last", action=argparse.BooleanOptionalAction, help="measure ours in channels_last_3d as well")
    add("--cuda-graph", action=argparse.BooleanOptionalAction, help="ours as one CUDA graph too, on a GPU")
    add("--graphs", action=argparse.BooleanOptionalAction, help="ours under torch.compile(mode='reduce-overhead') too")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:1")
    add("--quick", action="store_true", help="fewer and smaller problems, fewer samples")
    add("--seconds", type=float, help="how long each implementation of a problem is sampled, at least")
    add("--samples", type=int, help="how many samples each gets, at least")
    add("--output", type=Path, default=Path("bench-output"), help="folder for results and plots (default bench-output)")
    add("--resume", action="store_true", help="go on with the run in --output that was stopped; the same options")


def _odd(text: str) -> int:
    if not text.isdecimal() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"kernel sizes are odd numbers, got {text!r}")
    return int(text)


def _device(name: str) -> torch.device | None:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is none; it can be auto, cpu, cuda or cuda:1.") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r} is not measured; it can be auto, cpu, cuda or cuda:1.")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            return None
        torch.cuda.set_device(device.index or 0)
    return device


def _choice(options: argparse.Namespace, device: torch.device) -> suites.Choice:
    choice = suites.default_choice(options.suite, device.type, options.quick)
    given = {
        "variants": options.variant,
        "kernel_sizes": options.kernel_size,
        "dtypes": options.dtype,
        "backends": options.backend,
        "baselines": options.baselines,
        "factories": options.baseline,
    }
    changes: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value is not None}
    changes |= {"patch": options.patch or choice.patch, "batch": options.batch}
    if options.channels_last is not None:
        changes["channels_last"] = options.channels_last
    for name in ("graphs", "cuda_graph"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    choice = dataclasses.replace(choice, **changes)
    networks = options.suite in ("network", "scaling", "memory")
    if choice.patch < 1 or (networks and choice.patch % 16) or choice.batch < 1:
        raise InputError("--patch must be a positive multiple of 16 for networks, and --batch at least 1.")
    if networks and choice.patch < 32:
        raise InputError("--patch must be at least 32 for networks: the norm at the coarsest level needs voxels.")
    if choice.factories and not networks:
        raise InputError("--baseline names a network: it belongs to network, scaling and memory.")
    if (choice.graphs or choice.cuda_graph) and not networks:
        raise InputError(
            "--graphs and --cuda-graph run whole networks: operators and blocks are CUDA graphs on a GPU in any case."
        )
    for backend in choice.backends:
        try:
            with contextlib.nullcontext() if backend == "default" else use_backend(backend):
                pass
        except RuntimeError as error:
            raise InputError(f"--backend: {first_line(error)}.") from error
    if (options.seconds or 0) < 0 or (options.samples is not None and options.samples < 1):
        raise InputError("--seconds must not be negative, and --samples must be at least 1.")
    if "monai" in choice.baselines and importlib.util.find_spec("monai") is None:
        print("MONAI is not installed: its rows are left out (pip install monai)")
    return choice


def _measure(options: argparse.Namespace, arguments: list[str]) -> int:
    device = _device(options.device)
    if device is None:
        print(f"there is no GPU {options.device!r} here: nothing was measured", file=sys.stderr)
        return NO_DEVICE
    choice = _choice(options, device)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {options.output} cannot be made: {error.strerror}.") from error
    tasks = list(suites.tasks(choice))
    implementations = suites.implementations(choice)
    came_from = provenance(device, [argument for argument in arguments if argument != "--resume"])
    facts: dict[str, Any] = {"suite": options.suite, "finished": False, "choice": dataclasses.asdict(choice)}
    names = {implementation.name for implementation in implementations}
    rows, ceilings = _earlier(options, facts, came_from, names) if options.resume else ([], {})
    tasks = [task for task in tasks if not any(of_task(row, task.fields) for row in rows)]

    def record(row: Row) -> None:
        rows.append(row)
        write(options.output, rows, facts)
        text = cells(row, speed_ups(rows).get(id(row)))
        print(" | ".join(part for part in text if part), flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit is answered as Ctrl-C is
    stopped = False
    try:
        kept = f", {len(rows)} rows kept" if options.resume else ""
        print(f"{came_from['machine']}; {len(tasks)} tasks, {len(implementations)} implementations{kept}", flush=True)
        if tasks:
            ceilings = ceilings or {dtype: measure_ceilings(device, dtype) for dtype in choice.dtypes}
        facts["ceilings"] = {dtype: dataclasses.asdict(ceiling) for dtype, ceiling in ceilings.items()}
        runner = Runner(device, _timer(options, device), ceilings, came_from, record)
        runner.run(tasks, implementations)
        for (name, reason), count in runner.left_out.items():
            print(f"{name}: no row of {count} of {len(tasks)} tasks: {reason}", flush=True)
        facts["finished"] = True
    except KeyboardInterrupt:
        stopped = True
        print("stopped: what was measured so far is kept", file=sys.stderr)
    _finish(options.output, rows, facts)
    if stopped:
        return STOPPED
    return int(any(row.status not in (OK, OUT_OF_MEMORY) for row in rows))


def _earlier(
    options: argparse.Namespace, facts: dict[str, Any], came_from: dict[str, str], names: set[str]
) -> tuple[list[Row], dict[str, Ceilings]]:
    """Rows of the tasks that the run in ``--output`` ended, and its ceilings; nothing where there is no run yet."""
    if not (options.output / JSON_NAME).exists():
        return [], {}
    rows, told = read(options.output)
    now = json.loads(json.dumps(facts))  # as it is read
    if told.get("suite") != now["suite"] or told.get("choice") != now["choice"]:
        differ = "suite" if told.get("suite") != now["suite"] else _first_difference(told.get("choice"), now["choice"])
        raise InputError(
            f"--resume: the run in {options.output} had another {differ}; leave --resume out to replace it."
        )
    for row in rows:
        for fact in ("machine", "versions"):
            if getattr(row, fact) != came_from[fact]:
                raise InputError(f"--resume: the run in {options.output} was made with {getattr(row, fact)}.")
    if rows and not told.get("finished"):
        last = {name: getattr(rows[-1], name) for name in TASK_FIELDS}
        if not names <= {row.implementation for row in rows if of_task(row, last)}:
            rows = [row for row in rows if not of_task(row, last)]
    try:
        return rows, {dtype: Ceilings(**of_dtype) for dtype, of_dtype in told.get("ceilings", {}).items()}
    except (AttributeError, TypeError) as error:
        raise InputError(f"{options.output / JSON_NAME} holds no ceilings: {first_line(error)}.") from error


def _first_difference(before: Any, now: dict[str, Any]) -> str:
    before = before if isinstance(before, dict) else {}
    return next((name for name in now if before.get(name) != now[name]), "choice").replace("_", " ")


def _timer(options: argparse.Namespace, device: torch.device) -> Timer | None:
    if options.suite == "memory":
        return None
    networks = options.suite in ("network", "scaling")
    seconds, samples = (0.2, 5 if not networks else 3) if options.quick else (1.0, 10 if not networks else 5)
    if device.type == "cuda" and not networks:
        seconds /= 20  # a kernel takes microseconds
    seconds = seconds if options.seconds is None else options.seconds
    return Timer(device, seconds, samples if options.samples is None else options.samples)


def _finish(folder: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    if not rows:
        return
    write(folder, rows, facts)
    print_table(rows, f"mednext bench {facts['suite']}: {rows[0].machine}")
    plots: list[Path] = []
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no plots (pip install 'mednext-ops[bench]')")
    else:
        from mednext.bench.plots import draw_all

        plots = draw_all(folder, rows, facts.get("ceilings", {}))
    from mednext.bench.report import write_report

    write_report(folder / "report.html", rows, facts, plots)
    print(f"in {folder}: results.json, results.csv, report.html{''.join(f', {plot.name}' for plot in plots)}")


def _compare(options: argparse.Namespace) -> int:
    before, after = read(options.before)[0], read(options.after)[0]
    changes = compare(before, after, options.threshold / 100)
    print(describe(changes, before, after))
    return int(any(change.is_regression for change in changes))
