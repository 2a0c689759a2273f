"""The MedNeXt network: a stem, four encoder levels, a bottleneck, four decoder levels, five segmentation heads.

Arguments, module names, state dict and results are those of the official ``MedNextV1.py`` (Roy et al., MICCAI 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mednext.arguments import RECOMPUTE, PerAxis, kernel_per_axis, one_of, positive_int, spatial_axes, stride_per_axis
from mednext.blocks import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock, OutBlock
from mednext.pointwise import STEM

__all__ = ["MedNeXt"]

LEVELS = 4  # times that the network halves its grid
STAGES = 2 * LEVELS + 1  # encoder levels 0..3, bottleneck, decoder levels 3..0

KernelSize = PerAxis | Sequence[PerAxis]


class MedNeXt(nn.Module):
    """MedNeXt for [N, in_channels, D, H, W] (or [N, in_channels, H, W]) input.

    Args:
        in_channels: channels of the input.
        n_channels: channels of the finest level; each level down has twice as many.
        n_classes: channels of the output.
        exp_r: expansion ratio, one for all stages or a list of nine: encoder levels 0 to 3, bottleneck, decoder levels
            3 to 0. ``down_i`` takes the ratio of the stage that it leads to, ``up_i`` that of the decoder level i.
        kernel_size: odd kernel extent of the depthwise convolutions: an int, one an axis, or a list of five of those,
            one a level from the finest down. A resampling block takes the kernel of its coarser level.
        enc_kernel_size: kernel of the encoder, where ``kernel_size`` is None.
        dec_kernel_size: kernel of the bottleneck and the decoder, where ``kernel_size`` is None.
        deep_supervision: return the outputs of all five levels.
        do_res: residual connections in the blocks.
        do_res_up_down: residual 1x1 convolutions in the resampling blocks.
        checkpoint_style: "outside_block" keeps only each block's input for backward and runs the block again.
        block_counts: blocks in each of the nine stages.
        norm_type: "group" (one group a channel) or "layer".
        dim: "3d" or "2d".
        grn: global response normalisation: False, True (every block but ``down_0``, which the official file leaves out)
            or "all" (every block, as in MedNeXt-v2).
        strides: stride of each of the four resampling steps, each 1 or 2 or one of those an axis; 2 by default.
        recompute: "conv" keeps less of each block for backward, see :class:`~mednext.MedNeXtBlock`.

    Raises:
        ValueError: an argument out of its range, named in the message.

    Example:
        >>> net = MedNeXt(1, 32, 3, exp_r=2, kernel_size=3, do_res=True, do_res_up_down=True)
        >>> net(torch.zeros(1, 1, 32, 32, 32)).shape
        torch.Size([1, 3, 32, 32, 32])

    It computes in the memory format of its input, and in channels_last_3d where ``.to(memory_format=...)`` has moved it
    there: an input of one channel is in both formats.

    The heads ``out_1`` to ``out_4`` exist always, and :attr:`deep_supervision` switches them at any time. Until it is
    first switched on their parameters are frozen, so that distributed training finds no parameter without a gradient,
    and a state dict without them loads strictly.
    """

    def __init__(
        self,
        in_channels: int,
        n_channels: int,
        n_classes: int,
        exp_r: int | Sequence[int] = 4,
        kernel_size: KernelSize | None = 7,
        enc_kernel_size: KernelSize | None = None,
        dec_kernel_size: KernelSize | None = None,
        deep_supervision: bool = False,
        do_res: bool = False,
        do_res_up_down: bool = False,
        checkpoint_style: str | None = None,
        block_counts: Sequence[int] = (2,) * STAGES,
        norm_type: str = "group",
        dim: str = "3d",
        grn: bool | str = False,
        *,
        strides: Sequence[PerAxis] = (2,) * LEVELS,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        axes = spatial_axes(dim)
        ratios = _per_stage("exp_r", (exp_r,) * STAGES if isinstance(exp_r, int) else exp_r)
        counts = _per_stage("block_counts", block_counts)
        steps = [stride_per_axis("strides", stride, axes) for stride in _sequence("strides", strides, LEVELS)]
        if kernel_size is not None:
            enc_kernel_size = dec_kernel_size = kernel_size
        enc_kernels = _per_level("kernel_size" if kernel_size is not None else "enc_kernel_size", enc_kernel_size, axes)
        dec_kernels = _per_level("kernel_size" if kernel_size is not None else "dec_kernel_size", dec_kernel_size, axes)
        one_of("grn", grn, (False, True, "all"))
        widths = [positive_int("n_channels", n_channels) * 2**level for level in range(LEVELS + 1)]
        shared: dict[str, Any] = {
            "norm_type": norm_type,
            "dim": dim,
            "recompute": one_of("recompute", recompute, RECOMPUTE),
        }

        def stage(index: int, level: int, kernel: tuple[int, ...]) -> nn.Sequential:
            return nn.Sequential(
                *(
                    MedNeXtBlock(widths[level], widths[level], ratios[index], kernel, do_res, grn=bool(grn), **shared)
                    for _ in range(counts[index])
                )
            )

        self.stem = STEM[axes](positive_int("in_channels", in_channels), n_channels)
        for i in range(LEVELS):
            self.add_module(f"enc_block_{i}", stage(i, i, enc_kernels[i]))
            down_grn = grn == "all" if i == 0 else bool(grn)
            shape = (widths[i], widths[i + 1], ratios[i + 1], enc_kernels[i + 1], do_res_up_down)
            self.add_module(f"down_{i}", MedNeXtDownBlock(*shape, grn=down_grn, stride=steps[i], **shared))
        self.bottleneck = stage(LEVELS, LEVELS, dec_kernels[LEVELS])
        for i in reversed(range(LEVELS)):
            index = STAGES - 1 - i
            shape = (widths[i + 1], widths[i], ratios[index], dec_kernels[i + 1], do_res_up_down)
            self.add_module(f"up_{i}", MedNeXtUpBlock(*shape, grn=bool(grn), stride=steps[i], **shared))
            self.add_module(f"dec_block_{i}", stage(index, i, dec_kernels[i]))
        for level, width in enumerate(widths):
            self.add_module(f"out_{level}", OutBlock(width, n_classes, dim))
        self.register_buffer("dummy_tensor", torch.ones(1))  # a parameter without use in the official network

        self.block_counts = counts
        self.checkpoint_style = one_of("checkpoint_style", checkpoint_style, (None, "outside_block"))
        self.total_stride = tuple(2 ** sum(step[axis] == 2 for step in steps) for axis in range(axes))
        self._deep_supervision = False
        self._heads_are_frozen = True
        for parameter in self._deep_heads_parameters():
            parameter.requires_grad_(False)
        self.deep_supervision = deep_supervision
        self.register_load_state_dict_pre_hook(_keep_frozen_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits [N, n_classes, ...] on the input's grid; with deep supervision those of all levels, finest first.

        Raises:
            ValueError: an input of another rank or channel count, or of an extent that the strides do not divide.
            TypeError: an input that is no tensor of floating-point numbers.
        """
        self._check(x)
        x = self._in_weights_format(self.stem(x))
        skips = []
        for i in range(LEVELS):
            x = self._stage(f"enc_block_{i}", x)
            x, skip = self._forked(getattr(self, f"down_{i}"), x)
            skips.append(skip)
        x = self._stage("bottleneck", x)
        deep = [getattr(self, f"out_{LEVELS}")(x)] if self._deep_supervision else []
        for i in reversed(range(LEVELS)):
            x = self._joined(getattr(self, f"up_{i}"), x, skips.pop())
            x = self._stage(f"dec_block_{i}", x)
            if self._deep_supervision or i == 0:
                deep.append(getattr(self, f"out_{i}")(x))
        return deep[::-1] if self._deep_supervision else deep[0]

    def _in_weights_format(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` in channels_last where the network was moved to it: an input of one channel does not tell."""
        # Of a depthwise weight the strides tell it, even of one channel a group; of a 1x1x1 weight they do not.
        block = cast(nn.Sequential, self.enc_block_0)[0]
        weight = getattr(getattr(block, "conv1", None), "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.stride(1) != 1 or weight[0].numel() == 1:
            return x
        return x.contiguous(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)

    def _stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for block in getattr(self, name):
            x = self._block(block, x)
        return x

    def _forked(self, block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A down block's output and its input, for the skip connection whose gradient the block adds to its own."""
        if _runs_alone(block, MedNeXtDownBlock):
            return self._block(block, x, keep_input=True)
        return self._block(block, x), x

    def _joined(self, block: nn.Module, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """A skip connection plus an up block's output, by the block itself unless others look at its output."""
        if _runs_alone(block, MedNeXtUpBlock):
            return self._block(block, x, skip=skip)
        return skip + self._block(block, x)

    def _block(self, block: nn.Module, x: torch.Tensor, **others: Any) -> Any:
        if self.checkpoint_style == "outside_block" and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False, **others)
        return block(x, **others)

    def _check(self, x: torch.Tensor) -> None:
        channels, axes = self.stem.in_channels, len(self.total_stride)
        layout = f"[N, {channels}, {'D, H, W' if axes == 3 else 'H, W'}]"
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise TypeError(f"input must be a floating-point tensor {layout}, got {got}")
        if x.dim() != axes + 2 or x.shape[1] != channels:
            raise ValueError(f"input must be {layout}, got shape {list(x.shape)}")
        for extent, divisor in zip(x.shape[2:], self.total_stride, strict=True):
            if extent % divisor or extent == 0:
                raise ValueError(
                    f"input {layout} must have extents divisible by {list(self.total_stride)}, got "
                    f"{list(x.shape[2:])}; pad {extent} to {-(-extent // divisor) * divisor or divisor}"
                )

    @property
    def deep_supervision(self) -> bool:
        """Whether ``forward`` returns the outputs of all levels; may be set at any time."""
        return self._deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"deep_supervision must be True or False, got {enabled!r}")
        if enabled and self._heads_are_frozen:
            self._heads_are_frozen = False
            for parameter in self._deep_heads_parameters():
                parameter.requires_grad_(True)
        self._deep_supervision = enabled

    do_ds = deep_supervision  # the official name

    @property
    def decoder(self) -> DeepSupervisionSwitch:
        """Where nnU-Net v2 sets ``deep_supervision``."""
        return DeepSupervisionSwitch(self)

    def _deep_heads_parameters(self) -> list[nn.Parameter]:
        return [p for level in range(1, LEVELS + 1) for p in self.get_submodule(f"out_{level}").parameters()]


def _runs_alone(block: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a block's forward is that of its kind, not another's, and no hook waits for what it returns."""
    own_forward = "forward" not in vars(block) and type(block).forward is kind.forward
    hooks = block._forward_hooks or block._backward_hooks or block._backward_pre_hooks
    return own_forward and not hooks


class DeepSupervisionSwitch:
    """Stands where other networks have their decoder module: its ``deep_supervision`` is the network's."""

    def __init__(self, network: MedNeXt) -> None:
        self._network = network

    @property
    def deep_supervision(self) -> bool:
        return self._network.deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        self._network.deep_supervision = enabled


def _keep_frozen_heads(network: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state dict without deep-supervision heads load strictly while nothing uses them: they keep their values.

    Heads on the meta device have none to keep. With ``assign=True``, which puts the state dict's tensors in the place
    of the parameters, they get random ones, on the stem's device, as a new network's.
    """
    assert isinstance(network, MedNeXt)
    if not network._heads_are_frozen:
        return
    stem = state_dict.get(f"{prefix}stem.weight")
    for level in range(1, LEVELS + 1):
        head: Any = network.get_submodule(f"out_{level}")
        if head.conv_out.weight.is_meta and stem is not None:
            conv, dim = head.conv_out, f"{len(network.total_stride)}d"
            with stem.device:
                head = OutBlock(conv.in_channels, conv.out_channels, dim).to(stem.dtype)
        for name, parameter in head.named_parameters(f"{prefix}out_{level}"):
            state_dict.setdefault(name, parameter.detach())


def _per_stage(name: str, values: Sequence[int]) -> list[int]:
    return [positive_int(f"{name}[{i}]", value) for i, value in enumerate(_sequence(name, values, STAGES))]


def _sequence(name: str, values: Sequence[Any], length: int) -> Sequence[Any]:
    if not isinstance(values, Sequence) or len(values) != length:
        raise ValueError(f"{name} must have {length} entries, got {values!r}")
    return values


def _per_level(name: str, value: KernelSize | None, axes: int) -> list[tuple[int, ...]]:
    if value is None:
        raise ValueError(f"{name} must be given where kernel_size is None")
    each = value if isinstance(value, Sequence) and len(value) == LEVELS + 1 else (value,) * (LEVELS + 1)
    return [kernel_per_axis(name, cast(PerAxis, kernel), axes) for kernel in each]
