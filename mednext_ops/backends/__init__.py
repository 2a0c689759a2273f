"""The choice of a backend: which one runs a problem, why, and how to force another.

A backend is a module with ``NAME``, ``unavailable() -> str | None`` (why it cannot run on this machine at all),
``supports(problem) -> str | None`` (why it declines a problem) and one function an op, of the signatures that
:mod:`mednext_ops.backends.reference` shows. No backend imports another.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from mednext_ops.backends.failures import as_torch_raises
from mednext_ops.backends.problem import (
    ConvGeometry,
    GroupNormGradient,
    InvertedBottleneckGradients,
    InvertedBottleneckNeeds,
    Problem,
    memory_format_of,
)

__all__ = [
    "ConvGeometry",
    "GroupNormGradient",
    "InvertedBottleneckGradients",
    "InvertedBottleneckNeeds",
    "Problem",
    "available_backends",
    "backend_names",
    "choose",
    "choose_fused",
    "memory_format_of",
    "run",
    "run_fused",
    "use_backend",
]

logger = logging.getLogger("mednext_ops")

ENVIRONMENT_VARIABLE = "MEDNEXT_OPS_BACKEND"

#: Tried in this order for a tensor on that type of device; any other device goes to the reference. Triton stands in for
#: the CUDA library where that is missing: what the library declines it leaves to PyTorch's products.
DEFAULT_ORDER: dict[str, tuple[str, ...]] = {
    "cuda": ("cuda", "triton", "reference"),
    "cpu": ("cpu", "reference"),
}
#: The last one runs only where it is asked for by name; so does triton on the CPU, in its interpreter.
_ALL = ("cuda", "triton", "cpu", "reference", "emulated")

#: The choices that are open, oldest first; the last one rules. Each is an entry of its own, so that contexts may close
#: in another order than they opened, as they do in two threads.
_open_choices: list[list[str]] = []


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"mednext_ops.backends.{name}")


def backend_names() -> tuple[str, ...]:
    """Names of all backends that this version has, whether or not they run here."""
    return _ALL


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run on this machine; ``python -m mednext_ops.info`` says what the others lack."""
    return tuple(name for name in _ALL if _module(name).unavailable() is None)


def _checked(names: tuple[str, ...], source: str) -> tuple[str, ...]:
    unknown = [name for name in names if name not in _ALL]
    if unknown or not names:
        shown = ", ".join(map(repr, unknown)) or "no name"
        raise ValueError(f"{source} got {shown}; the backends are {', '.join(map(repr, _ALL))}")
    return names


@functools.lru_cache(maxsize=8)
def _from_environment(value: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    return _checked(names, f"the environment variable {ENVIRONMENT_VARIABLE}={value!r}")


def _preference() -> tuple[str, ...] | None:
    if _open_choices:
        return tuple(_open_choices[-1])
    value = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    return _from_environment(value) if value and value != "auto" else None


@contextlib.contextmanager
def use_backend(*names: str) -> Iterator[None]:
    """Force the backends of every op inside, tried in the order given.

    An op that none of them takes raises, with the reason of each: nothing falls through silently. The choice holds
    for the whole process while the context is open, since autograd runs backward passes in threads of its own. The
    environment variable ``MEDNEXT_OPS_BACKEND`` (names separated by commas) does the same for a whole program.

    Args:
        names: of ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``, ``"emulated"``.

    Raises:
        ValueError: a name is unknown.
        RuntimeError: a backend cannot run on this machine; the message says why and how to mend it.

    Example:
        >>> with mednext_ops.use_backend("reference"):
        ...     y = mednext_ops.depthwise_conv3d(x, w, padding=1)
    """
    for name in _checked(names, "use_backend()"):
        reason = _module(name).unavailable()
        if reason is not None:
            raise RuntimeError(f"use_backend({name!r}): this backend does not run here: {reason}")
    choice = list(names)
    _open_choices.append(choice)
    try:
        yield
    finally:
        del _open_choices[next(i for i, open_choice in enumerate(_open_choices) if open_choice is choice)]


def choose(problem: Problem) -> Any:
    """The backend module that runs ``problem``: the first in order that takes it.

    Raises:
        RuntimeError: the backends were forced, and none of them takes it.
    """
    module, declined = _choice(problem)
    if module is None:
        raise RuntimeError(f"no backend takes {problem}; tried {declined}")
    return module


def choose_fused(problem: Problem) -> Any | None:
    """The backend module that runs a fused form, or None where its parts must be run one by one."""
    return _choice(problem)[0]


def _choice(problem: Problem) -> tuple[Any | None, str]:
    forced = _preference()
    module, declined = _first_taker(problem, forced)
    if not logger.isEnabledFor(logging.DEBUG):
        _logged.clear()
    elif (event := (problem, forced, *logger.handlers)) not in _logged:
        _logged.add(event)
        choice = "no backend" if module is None else f"backend {module.NAME}"
        logger.debug("%s: %s%s", problem, choice, f" ({declined})" if declined else "")
    return module, declined


#: What the debug log has told since it was switched on, to these handlers: each problem once, and anew to who comes
#: later. Not in the cached function, which would tell it to nobody if the log was off at the first call.
_logged: set[tuple[Any, ...]] = set()


@functools.lru_cache(maxsize=4096)
def _first_taker(problem: Problem, forced: tuple[str, ...] | None) -> tuple[Any | None, str]:
    order = forced if forced is not None else DEFAULT_ORDER.get(problem.device_type, ("reference",))
    declined = ""
    for name in order:
        module = _module(name)
        if forced is None and name == "triton" and _module("cuda").unavailable() is None:
            reason: str | None = "it stands in for the CUDA library, which is here"
        else:
            reason = module.unavailable() or module.supports(problem)
        if reason is None:
            return module, declined
        declined += f"{'; ' if declined else ''}{name}: {reason}"
    return None, declined


def run(problem: Problem, *args: Any) -> Any:
    """Call the op named by ``problem`` on the backend chosen for it."""
    return _call(choose(problem), problem, args)


def run_fused(problem: Problem, *args: Any) -> Any | None:
    """What :func:`run` returns, or None where no backend has this fused form: its parts must be run one by one."""
    module = choose_fused(problem)
    return None if module is None else _call(module, problem, args)


def _call(module: Any, problem: Problem, args: tuple[Any, ...]) -> Any:
    try:
        return getattr(module, problem.op)(*args)
    except RuntimeError as error:
        told = as_torch_raises(error, problem.device_type)
        if told is error:
            raise
        raise told from error
