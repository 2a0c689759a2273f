"""UpKern: start a large-kernel network from the weights of a trained small-kernel one (Roy et al., MICCAI 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mednext.arguments import must_be_module
from mednext.meta import must_hold_values

__all__ = ["grows", "resampled", "upkern"]

_COPIED = ("bias", "norm", "dummy")  # the official run/load_weights.py copies any key with one of these in it
_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}


@torch.no_grad()
def upkern(small: nn.Module, large: nn.Module) -> nn.Module:
    """Give ``large`` the weights of ``small``, each kernel interpolated to its new extent.

    Kernels are resampled linearly along each axis (``F.interpolate``, corners not aligned, values not rescaled), as in
    the official ``run/load_weights.py``; everything else is copied. Repeat it for several steps, 3 -> 5 -> 7.

    Args:
        small: the trained network; it is not changed.
        large: the same network with larger kernels on some axes, in 2D or 3D; its weights are replaced in place.

    Returns:
        ``large``.

    Raises:
        ValueError: the networks differ in more than their kernels, a kernel would shrink, or one of the networks is on
            the meta device; nothing is changed then.
        TypeError: one of them is no network.

    Example:
        >>> k5 = upkern(k3, create_mednext("S", 1, 3, kernel_size=5))
        >>> k7 = upkern(k5, create_mednext("S", 1, 3, kernel_size=7))
    """
    must_be_module("small", small)
    must_be_module("large", large)
    source, target = small.state_dict(), large.state_dict()
    faults = [
        f"{key}: only in {'small' if key in source else 'large'}" for key in sorted(source.keys() ^ target.keys())
    ]
    faults += [
        f"{key}: {list(source[key].shape)} in small, {list(weight.shape)} in large"
        for key, weight in target.items()
        if key in source and not grows(key, source[key], weight)
    ]
    if faults:
        listed = "\n  ".join(faults[:10] + [f"... and {len(faults) - 10} more"] * (len(faults) > 10))
        raise ValueError(
            "small and large must be the same network but for kernels that are equal or larger in large:\n  " + listed
        )
    must_hold_values("small", source)
    must_hold_values("large", target)
    large.load_state_dict({key: resampled(source[key], weight.shape) for key, weight in target.items()})
    return large


def grows(key: str, old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether tensor ``key`` can be brought from the shape of ``old`` to that of ``new``: alike, or a kernel grows."""
    if old.shape == new.shape:
        return True
    return (
        not any(part in key for part in _COPIED)
        and old.dim() == new.dim()
        and old.dim() in _INTERPOLATION
        and old.shape[:2] == new.shape[:2]
        and all(before <= after for before, after in zip(old.shape[2:], new.shape[2:], strict=True))
    )


def resampled(old: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """``old`` itself where it has that shape, or its kernel interpolated to it."""
    if old.shape == shape:
        return old
    return F.interpolate(old, size=shape[2:], mode=_INTERPOLATION[old.dim()])
