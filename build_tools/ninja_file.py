"""Writes ninja files: rules that are commands, edges that are files. Knows nothing of what is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["NinjaFile"]


def _escape(text: str) -> str:
    return text.replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


@dataclass
class NinjaFile:
    """Collects rules and edges; ``write`` leaves an unchanged file untouched.

    ``folder`` takes ninja's own log, so that nothing appears where it runs.
    """

    folder: Path
    lines: list[str] = field(default_factory=list)

    def rule(self, name: str, command: str, *, depfile: bool = False) -> None:
        self.lines += ["", f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def edge(
        self,
        output: Path | str,
        rule: str,
        inputs: Iterable[Path | str],
        *,
        also_needs: Iterable[Path | str] = (),
        **variables: str,
    ) -> None:
        needs = "".join(f" {_escape(str(p))}" for p in also_needs)
        sources = " ".join(_escape(str(p)) for p in inputs)
        self.lines += ["", f"build {_escape(str(output))}: {rule} {sources}{' |' + needs if needs else ''}"]
        self._variables(variables)

    def _variables(self, variables: Mapping[str, str]) -> None:
        self.lines += [f"  {name} = {value.replace('$', '$$')}" for name, value in variables.items()]

    def write(self, path: Path) -> None:
        head = ["ninja_required_version = 1.7", f"builddir = {_escape(str(self.folder))}"]
        text = "\n".join([*head, *self.lines]) + "\n"
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
