"""Which backends run the operators, heard from their debug log."""

from __future__ import annotations

import logging
import re

__all__ = ["BackendsUsed"]

_CHOICE = re.compile(r"^(\w+) on .*: backend (\w+)")


class BackendsUsed(logging.Handler):
    """Hears from mednext_ops' debug log which backends run its operators while the context is open."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._chosen: set[tuple[str, str]] = set()
        self._logger = logging.getLogger("mednext_ops")
        self._level = self._logger.level

    def __enter__(self) -> BackendsUsed:
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        if match := _CHOICE.match(record.getMessage()):
            self._chosen.add((match[1], match[2]))

    def names(self) -> list[str]:
        """Of all backends that ran something."""
        return sorted({backend for _, backend in self._chosen})

    def by_op(self) -> dict[str, list[str]]:
        """For each backend function that was called, the backends that ran it."""
        return {op: sorted(b for o, b in self._chosen if o == op) for op in sorted({op for op, _ in self._chosen})}
