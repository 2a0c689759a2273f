"""Runs a build.ninja of build_tools/ninja_file.py where ninja is not installed: the part of its language used there.

Takes ninja's options -f, -j and targets. A file is made again if a source, a header that the compiler named, or its
command is newer or other than at the last time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Edge:
    """One output, how it is made and of what."""

    output: str
    rule: str
    inputs: list[str]
    needs: list[str]
    variables: dict[str, str] = field(default_factory=dict)


def unescaped(text: str) -> str:
    return re.sub(r"\$(.)", r"\1", text)


def parse(text: str) -> tuple[dict[str, dict[str, str]], dict[str, Edge]]:
    """The rules, by name, and the edges, by output."""
    rules: dict[str, dict[str, str]] = {}
    edges: dict[str, Edge] = {}
    variables: dict[str, str] = {}  # of the rule or edge that is being read
    for line in text.splitlines():
        if line.startswith("  "):
            name, _, value = line.strip().partition(" = ")
            variables[name] = value
        elif line.startswith("rule "):
            variables = rules.setdefault(line[5:], {})
        elif line.startswith("build "):
            output, rest = re.split(r"(?<!\$): ", line[6:], maxsplit=1)
            sources, _, needs = rest.partition(" | ")
            rule, *inputs = (unescaped(word) for word in re.split(r"(?<!\$) +", sources.strip()))
            needed = [unescaped(word) for word in re.split(r"(?<!\$) +", needs.strip()) if word]
            edge = Edge(unescaped(output), rule, inputs, needed)
            edges[edge.output], variables = edge, edge.variables
    return rules, edges


def command_of(edge: Edge, rules: dict[str, dict[str, str]]) -> str:
    """The rule's command with the edge's names put in."""
    known = {"in": " ".join(edge.inputs), "out": edge.output}
    known |= {name: value.replace("$$", "$") for name, value in edge.variables.items()}
    command = rules[edge.rule]["command"]
    return re.sub(r"\$(\$|\w+)", lambda m: "$" if m[1] == "$" else known.get(m[1], ""), command)


def is_stale(edge: Edge, command: str) -> bool:
    output, record = Path(edge.output), Path(edge.output + ".command")
    if not output.is_file() or not record.is_file() or record.read_text() != command:
        return True
    headers: list[str] = []
    depfile = Path(edge.output + ".d")
    if depfile.is_file():
        headers = depfile.read_text().replace("\\\n", " ").partition(":")[2].split()
    made = output.stat().st_mtime
    return any(not os.path.exists(f) or os.stat(f).st_mtime > made for f in (*edge.inputs, *edge.needs, *headers))


def wanted(targets: list[str], edges: dict[str, Edge]) -> list[list[Edge]]:
    """The edges behind the targets, in waves: all that an edge needs is made in an earlier one."""
    wave_of: dict[str, int] = {}

    def visit(name: str) -> int:
        edge = edges.get(name)
        if edge is None:
            return -1
        if name not in wave_of:
            wave_of[name] = 1 + max((visit(n) for n in (*edge.inputs, *edge.needs)), default=-1)
        return wave_of[name]

    for target in targets:
        if target not in edges:
            raise SystemExit(f"ninja_stand_in: there is no target {target!r}")
        visit(target)
    waves: list[list[Edge]] = [[] for _ in range(1 + max(wave_of.values()))]
    for name, wave in wave_of.items():
        waves[wave].append(edges[name])
    return waves


def make(edge: Edge, command: str) -> bool:
    Path(edge.output).parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"{edge.rule} {edge.output}\n{done.stdout}", end="", flush=True)
    if done.returncode == 0 and Path(edge.output).is_file():
        Path(edge.output + ".command").write_text(command)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-f", type=Path, required=True)
    parser.add_argument("-j", type=int, default=1)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_args()
    rules, edges = parse(options.f.read_text())
    for wave in wanted(options.targets or list(edges), edges):
        with ThreadPoolExecutor(options.j) as pool:
            work = [(edge, command_of(edge, rules)) for edge in wave if edge.rule != "phony"]
            jobs = [pool.submit(make, *item) for item in work if is_stale(*item)]
            if not all(job.result() for job in jobs):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
