"""The fused inverted bottleneck on the emulation: against float64, to the bit in every order, on every instance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import Problem

from ..ops.eager import assert_within_twice

DTYPES = [torch.bfloat16, torch.float16]
# Channels, hidden and output channels: the variants' first stages with their ratios, down and up blocks, and shapes
# that are filled up.
SHAPES = [
    (32, 64, 32),
    (32, 96, 32),
    (32, 128, 32),
    (64, 128, 64),
    (64, 192, 64),
    (32, 64, 64),
    (64, 128, 32),
    (64, 64, 128),
    (20, 45, 9),
    (5, 10, 5),
]
LARGE_SHAPES = [(64, 256, 64), (64, 512, 64), (128, 256, 64), (128, 256, 128), (100, 96, 72)]


@dataclass
class Case:
    input: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    expand_weight: torch.Tensor
    expand_bias: torch.Tensor | None
    compress_weight: torch.Tensor
    compress_bias: torch.Tensor | None
    residual: torch.Tensor | None

    @classmethod
    def draw(cls, shape, size, batch, dtype, parameters=None, residual=True) -> Case:
        channels, hidden, outputs = shape
        parameters = parameters or dtype

        def tensor(*sizes, scale=1.0, shift=0.0, dtype=parameters):
            return (torch.randn(*sizes) * scale + shift).to(dtype)

        return cls(
            tensor(batch, channels, *size, dtype=dtype),
            tensor(channels, scale=0.2, shift=1.0),
            tensor(channels, scale=0.2),
            tensor(hidden, channels, scale=channels**-0.5),
            tensor(hidden, scale=0.2),
            tensor(outputs, hidden, scale=hidden**-0.5),
            tensor(outputs, scale=0.2),
            tensor(batch, outputs, *size, dtype=dtype) if residual else None,
        )

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        flat = self.input.double().flatten(2)
        return flat.mean(2).float(), ((flat.var(2, correction=0) + 1e-5) ** -0.5).float()

    def to(self, dtype) -> Case:
        return Case(*(None if v is None else v.to(dtype) for v in vars(self).values()))

    def eager(self) -> torch.Tensor:
        """PyTorch's own layers, in the dtype of the tensors."""
        n = F.group_norm(self.input, self.input.shape[1], self.norm_weight, self.norm_bias, 1e-5)
        hidden = F.gelu(F.conv3d(n, self.expand_weight[..., None, None, None], self.expand_bias))
        output = F.conv3d(hidden, self.compress_weight[..., None, None, None], self.compress_bias)
        return output if self.residual is None else output + self.residual

    def fused(self, backend) -> torch.Tensor:
        return backend.inverted_bottleneck(
            self.input, *self.statistics(), self.norm_weight, self.norm_bias, self.expand_weight, self.expand_bias,
            self.compress_weight, self.compress_bias, None, self.residual,
        )  # fmt: skip


def check_forward(backend, case: Case) -> None:
    exact, theirs = case.to(torch.float64).eager(), case.to(case.input.dtype).eager()
    assert_within_twice(case.fused(backend), theirs, exact, "output")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(emulated, shape, dtype):
    check_forward(emulated, Case.draw(shape, (3, 4, 8), 2, dtype))


@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_large_shapes(emulated, shape):
    check_forward(emulated, Case.draw(shape, (3, 4, 4), 1, torch.bfloat16))


@pytest.mark.parametrize("size", [(1, 1, 2), (3, 5, 7), (1, 1, 31), (2, 3, 12), (1, 4, 8), (7, 7, 7)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_extent_and_batch(emulated, size, batch):
    check_forward(emulated, Case.draw((32, 64, 32), size, batch, torch.bfloat16))


@pytest.mark.parametrize("size", [(4, 8, 16), (3, 3, 61)])
def test_without_residual_and_biases_and_with_float32_parameters(emulated, size):
    case = Case.draw((32, 96, 32), size, 2, torch.float16, torch.float32, residual=False)
    check_forward(emulated, case)
    check_forward(emulated, replace(case, expand_bias=None, compress_bias=None))


def extremes() -> dict[str, Case]:
    """Inputs and norms at which a folded affine map, or a division, would fail."""
    case = Case.draw((32, 64, 32), (4, 5, 8), 2, torch.bfloat16, torch.float32)
    constant = case.input.clone()
    constant[:, 3] = 2.5
    zero_weight = case.norm_weight.clone()
    zero_weight[::3] = 0
    return {
        "the mean is far larger than the deviation": replace(case, input=(case.input.float() + 60).to(torch.bfloat16)),
        "no weight": replace(case, norm_weight=zero_weight),
        "tiny variance": replace(case, input=case.input * 2**-8),
        "a constant channel": replace(case, input=constant),
        "a large bias": replace(case, norm_bias=case.norm_bias + 5),
    }


@pytest.mark.parametrize("extreme", extremes())
def test_extremes_of_the_norm(emulated, extreme):
    check_forward(emulated, extremes()[extreme])


@pytest.mark.parametrize("size", [(3, 9, 8), (2, 3, 31)])
def test_the_forward_has_the_same_bits_in_every_order(emulated, size):
    case = Case.draw((32, 64, 32), size, 2, torch.bfloat16)
    first = case.fused(emulated)
    for order in ("reversed", "shuffled"):
        with emulated.thread_order(order, seed=5):
            assert torch.equal(case.fused(emulated), first)


def test_slices_are_read_as_they_are_and_nothing_beside_them(emulated):
    case = Case.draw((32, 64, 32), (2, 4, 8), 1, torch.bfloat16)
    wide = torch.full((1, 40, 2, 4, 8), float("nan"), dtype=torch.bfloat16)
    wide[:, 4:36] = case.input
    sliced = replace(case, input=wide[:, 4:36])
    assert torch.equal(sliced.fused(emulated), case.fused(emulated))


def problem(shape, dtype=torch.bfloat16, **details) -> Problem:
    channels, hidden, outputs = shape
    return Problem("inverted_bottleneck", "cpu", dtype, (1, channels, 8, 8, 8), hidden_channels=hidden,
                   out_channels=outputs, num_groups=channels, **details)  # fmt: skip


def test_what_no_kernel_takes_is_declined_with_a_reason(emulated):
    assert emulated.supports(problem((64, 256, 64))) is None
    assert "do not fit the shared memory of sm_90" in emulated.supports(problem((256, 512, 256)))
    assert "tensor cores" in emulated.supports(problem((32, 64, 32), torch.float32))
    assert "channels_last_3d" in emulated.supports(problem((32, 64, 32), channels_last=True))
    with emulated.architecture(75):
        assert "sm_80 and newer" in emulated.supports(problem((32, 64, 32)))
    with emulated.architecture(86):
        assert emulated.supports(problem((64, 256, 64))) is None
        assert "do not fit" in emulated.supports(problem((64, 512, 64)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"norm_weight": torch.ones(31)}, r"norm_weight must be \[32\], got \[31\]"),
        ({"expand_weight": torch.ones(64, 33)}, r"expand_weight must be \[64, 32\], got \[64, 33\]"),
        ({"compress_weight": torch.ones(32, 65)}, r"compress_weight must be \[32, 64\], got \[32, 65\]"),
        ({"expand_bias": torch.ones(64).double()}, "expand_bias must be float32 or BFloat16"),
        ({"compress_bias": torch.ones(33)}, r"compress_bias must be \[32\], got \[33\]"),
        ({"residual": torch.ones(1, 32, 2, 2, 9).bfloat16()}, r"residual must be \[1, 32, 2, 2, 8\]"),
        ({"residual": torch.ones(1, 32, 2, 2, 8)}, "residual must be BFloat16 as the input, got Float"),
        ({"input": torch.ones(1, 32, 2, 2, 8)}, "input must be float16 or bfloat16, got Float"),
    ],
)
def test_bad_input_gives_a_sentence(emulated, change, sentence):
    case = Case.draw((32, 64, 32), (2, 2, 8), 1, torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"inverted_bottleneck: {sentence}"):
        replace(case, **change).fused(emulated)
