"""Segments a scan with a trained network: sliding window on the network's grid, classes on the scan's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import nn

from mednext.errors import InputError
from mednext.grid import prepare
from mednext.model_file import STRIDE, ModelCard, load_model
from mednext.scan import Scan, check_output, read_scan, write_scan

WIDEST_WINDOW = 512  # voxels an axis: beyond it a network has no memory on any machine

Advance = Callable[[int, int], None]  # windows done, windows in all


@dataclass(frozen=True)
class Request:
    """What `mednext segment` was asked for."""

    model: Path
    scan: Path
    output: Path
    probabilities: Path | None = None
    device: str = "auto"
    overlap: float = 0.5
    patch: tuple[int, int, int] | None = None  # the size that the model was trained for, if not given
    volume: int | None = None
    nan_to_zero: bool = False
    overwrite: bool = False


def segment(request: Request, advance: Advance | None = None) -> dict[str, int]:
    """Segments `request.scan` into `request.output`; checks everything before it computes or writes anything.

    Returns:
        The number of voxels of each class, by the class's name.

    Raises:
        InputError: an option, the model, the scan or the output cannot be used.
    """
    check_options(request.overlap, request.patch)
    device = choose_device(request.device)
    inputs = (request.model, request.scan)
    check_output(request.output, request.overwrite, inputs)
    if request.probabilities is not None:
        check_output(request.probabilities, request.overwrite, (*inputs, request.output))
    network, card = load_model(request.model)
    scan = read_scan(request.scan, card.network["in_channels"], request.volume, request.nan_to_zero)
    try:
        probabilities = predict(network.to(device), card, scan, request.overlap, request.patch, advance)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise InputError(
            f"the memory of {device} does not suffice for {request.scan}; pass a smaller --patch, another --device, or "
            "a scan that is cut to what is to be segmented."
        ) from error
    classes = probabilities.argmax(0).astype(np.uint8)
    write_scan(request.output, classes, scan.image)
    if request.probabilities is not None:
        write_scan(request.probabilities, np.moveaxis(probabilities, 0, 3), scan.image)
    return {name: int((classes == label).sum()) for label, name in enumerate(card.labels)}


def _is_lack_of_memory(error: BaseException) -> bool:
    """NumPy, CUDA's allocator and the CPU's each have their own way to say it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def check_options(overlap: float, patch: Sequence[int] | None) -> None:
    if not 0 <= overlap < 1:
        raise InputError(f"--overlap is {overlap:g}; a fraction of the window from 0 to below 1 was expected.")
    if patch is not None and any(not STRIDE <= n <= WIDEST_WINDOW or n % STRIDE for n in patch):
        raise InputError(
            f"--patch is {'x'.join(map(str, patch))}; multiples of {STRIDE} voxels up to {WIDEST_WINDOW} were expected."
        )


def choose_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1` as a device that works here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device is {name!r}; auto, cpu or cuda was expected.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device is {name}, but torch {torch.__version__} sees {torch.cuda.device_count()} GPUs.")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}; auto, cpu or cuda was expected.")
    return device


def full_resolution(output: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits at the input's resolution: the first of what a network with deep supervision gives."""
    return output if isinstance(output, torch.Tensor) else output[0]


@torch.inference_mode()
def predict(
    network: nn.Module,
    card: ModelCard,
    scan: Scan,
    overlap: float = 0.5,
    patch: Sequence[int] | None = None,
    advance: Advance | None = None,
) -> np.ndarray:
    """The probability of each class, [classes, X, Y, Z] on the scan's own grid."""
    volume, background, grid = prepare(scan, card.spacing)
    window = tuple(patch or card.patch_size)
    device = next(network.parameters()).device
    extent = [max(n, w) for n, w in zip(volume.shape[1:], window, strict=True)]
    interval = [max(1, int(w * (1 - overlap))) if w < n else w for n, w in zip(extent, window, strict=True)]
    windows = len(dense_patch_slices(extent, window, interval))
    done = itertools.count(1)

    def probabilities(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = full_resolution(network(batch))
        if advance is not None:
            advance(next(done), windows)
        return logits.float().softmax(1)

    # The window's edges see zero padding, and so does a volume smaller than the window: pad with what background is.
    inferer = SlidingWindowInferer(window, sw_batch_size=1, overlap=overlap, mode="gaussian", cval=0.0)
    shifted = volume - background.view(-1, 1, 1, 1)
    offset = background.view(1, -1, 1, 1, 1).to(device)
    result = inferer(shifted[None].to(device), lambda batch: probabilities(batch + offset))
    return grid.restore(result[0].float())
