"""Every primitive of csrc/cuda/common against NumPy, in several orders of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

RANDOM = np.random.default_rng(0)
LANES = np.arange(32)


def test_every_thread_of_every_block_runs_once(in_any_order):
    for grid, block in [((3, 2, 4), (5, 3, 2)), ((1, 1, 1), (1024, 1, 1)), ((7, 1, 1), (33, 1, 1))]:
        blocks, threads = int(np.prod(grid)), int(np.prod(block))
        output = np.full((blocks, threads), -1, np.int32)
        in_any_order("indices", np.array(grid, np.uint32), np.array(block, np.uint32), output)
        assert (output == np.arange(blocks)[:, None] * 1000 + np.arange(threads)).all()


def test_blocks_on_several_workers_give_the_same_result(kernels):
    kernels.order(2, 5, workers=3)
    output = np.zeros((24, 64), np.int32)
    kernels("indices", np.array((24, 1, 1), np.uint32), np.array((64, 1, 1), np.uint32), output)
    assert (output == np.arange(24)[:, None] * 1000 + np.arange(64)).all()


@pytest.mark.parametrize("block", [(1025, 1, 1), (32, 33, 1), (0, 1, 1), (1, 1, 65)])
def test_a_block_that_no_device_takes_is_refused(kernels, block):
    with pytest.raises(RuntimeError, match="not launched: invalid configuration argument"):
        kernels("indices", np.array((1, 1, 1), np.uint32), np.array(block, np.uint32), np.zeros(1, np.int32))


def test_divisions(kernels):
    most = 2**31 - 1
    for divisor in (1, 2, 3, 5, 7, 12, 16, 127, 128, 641, 2**16 - 1, 2**16 + 1, 2**30 - 1, 2**30, 2**30 + 1, most):
        near = [n + d for n in (0, divisor, 2 * divisor, most // divisor * divisor, most) for d in (-1, 0, 1)]
        drawn = [n for n in near if 0 <= n <= most] + list(RANDOM.integers(0, most, 400))
        numbers = np.array(drawn, np.int32)
        output = np.full((2, len(numbers)), -1, np.int32)
        kernels("divisions", divisor, len(numbers), numbers, output)
        assert (output == np.divmod(numbers, divisor)).all()


@pytest.mark.parametrize("width", [32, 16, 8, 4])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_shuffles(in_any_order, dtype, width):
    values = RANDOM.integers(-1000, 1000, 32).astype(dtype)
    segment = LANES // width * width
    for argument in (0, 1, 3, 5, width - 1, 16, 31):
        down, up, xor = LANES + argument, LANES - argument, LANES ^ argument
        sources = [
            segment + argument % width,
            np.where(up >= segment, up, LANES),
            np.where(down < segment + width, down, LANES),
            np.where(xor < segment + width, xor, LANES),
        ]
        for kind, source in enumerate(sources):
            output = np.zeros_like(values)
            in_any_order(
                "shuffles", [np.int32, np.float32, np.float64].index(dtype), kind, argument, width, values, output
            )
            assert (output == values[source]).all()


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0xF0F0F0F0, 0x80000000])
def test_votes_and_reductions(in_any_order, mask):
    values = RANDOM.integers(-5, 5, 32).astype(np.int32)
    output = np.full((8, 32), 77, np.int32)
    in_any_order("votes", np.int64(mask).astype(np.int32), values, output)
    members = (mask >> LANES & 1).astype(bool)
    inside = values[members]
    expected = [
        int(np.bitwise_or.reduce(np.where(members & (values > 0), 1 << LANES, 0))),
        int((inside > 0).any()),
        int((inside > 0).all()),
        int(inside.sum()),
        int(inside.min()),
        int(inside.max()),
        int(np.bitwise_or.reduce(inside)),
        int(np.bitwise_xor.reduce(inside)),
    ]
    assert (output[:, members] == np.array(expected, np.int64).astype(np.int32)[:, None]).all()
    assert (output[:, ~members] == 77).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_gives_each_lane_its_two_elements(in_any_order, count, transposed):
    rows = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8) * 257
    row_of = RANDOM.permutation(32).astype(np.int32)
    output = np.zeros((32, count), np.uint32)
    in_any_order("load_matrices", count, transposed, rows, row_of, output)
    for lane in range(32):
        for matrix in range(count):
            elements = rows[row_of[8 * matrix : 8 * matrix + 8]]
            elements = elements.T if transposed else elements
            low, high = elements[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert output[lane, matrix] == (int(high) << 16 | int(low))


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": element i of a lane's fragment.
def a_place(lane: int, i: int) -> tuple[int, int]:
    row = lane // 4 if i < 2 or 4 <= i < 6 else lane // 4 + 8
    return row, lane % 4 * 2 + (i & 1) + (0 if i < 4 else 8)


def b_place(lane: int, i: int) -> tuple[int, int]:
    return lane % 4 * 2 + (i & 1) + (0 if i < 2 else 8), lane // 4


def d_place(lane: int, i: int) -> tuple[int, int]:
    return lane // 4 + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)


def fragments(matrix: np.ndarray, place, count: int) -> np.ndarray:
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])


def sixteen_bit(values: np.ndarray, bfloat16: bool) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the values in bf16 or fp16, and the values that these bits mean."""
    tensor = torch.from_numpy(values).to(torch.bfloat16 if bfloat16 else torch.float16)
    return tensor.view(torch.int16).numpy().view(np.uint16), tensor.double().numpy()


@pytest.mark.parametrize("depth", [16, 8])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_mma_multiplies_by_the_documented_layout(in_any_order, bfloat16, depth):
    a_bits, a = sixteen_bit(RANDOM.standard_normal((16, 16)), bfloat16)
    b_bits, b = sixteen_bit(RANDOM.standard_normal((16, 8)), bfloat16)
    c = RANDOM.standard_normal((16, 8)).astype(np.float32)
    output = fragments(c, d_place, 4)
    packed_a = np.ascontiguousarray(fragments(a_bits, a_place, 8)).view(np.uint32)
    packed_b = np.ascontiguousarray(fragments(b_bits, b_place, 4)).view(np.uint32)
    in_any_order("multiply", bfloat16, depth, packed_a, packed_b, output)
    assert np.abs(output - fragments(a[:, :depth] @ b[:depth] + c, d_place, 4)).max() <= 2**-23 * 16


def test_mma_reads_every_fp16_value(kernels):
    bits = np.arange(2**16, dtype=np.uint16).reshape(-1, 16, 16)
    b_bits, _ = sixteen_bit(np.eye(16, 8), bfloat16=False)
    packed_b = np.ascontiguousarray(fragments(b_bits, b_place, 4)).view(np.uint32)
    for a_bits in bits:
        finite = np.isfinite(a_bits.view(np.float16))
        if not finite.all():
            continue
        packed_a = np.ascontiguousarray(fragments(a_bits, a_place, 8)).view(np.uint32)
        output = np.zeros((32, 4), np.float32)
        kernels("multiply", 0, 16, packed_a, packed_b, output)
        assert (output == fragments(a_bits.view(np.float16).astype(np.float32), d_place, 4)).all()


def test_movmatrix_transposes(in_any_order):
    matrix = RANDOM.integers(0, 2**16, (8, 8)).astype(np.uint16)
    output = np.zeros((8, 8), np.uint16)
    in_any_order("transpose_matrix", matrix, output)
    assert (output == matrix.T).all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_copies_ldmatrix_and_mma_make_a_matrix_product(in_any_order, bfloat16):
    a_bits, a = sixteen_bit(RANDOM.standard_normal((16, 16)), bfloat16)
    b_bits, b = sixteen_bit(RANDOM.standard_normal((16, 8)), bfloat16)
    output = np.zeros((16, 8), np.float32)
    in_any_order("matrix_product", bfloat16, a_bits, b_bits, output)
    assert np.abs(output - a @ b).max() <= 2**-23 * 16


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_fill_with_zero_what_is_not_valid(in_any_order, size):
    storage = RANDOM.integers(1, 256, 64 * 16 + 16).astype(np.uint8)
    begin = -storage.ctypes.data % 16
    input = storage[begin : begin + 64 * size]
    valid = RANDOM.integers(0, size + 1, 64).astype(np.int32)
    output = np.zeros(64 * size, np.uint8)
    in_any_order("copy", size, input, valid, output)
    expected = np.where(np.arange(size) < valid[:, None], input.reshape(64, size), 0)
    assert (output.reshape(64, size) == expected).all()


def test_copies_refuse_what_the_device_refuses(kernels):
    storage = np.zeros(64 * 16 + 32, np.uint8)
    input = storage[-storage.ctypes.data % 16 + 4 :]
    valid, output = np.full(64, 16, np.int32), np.zeros(64 * 16, np.uint8)
    with pytest.raises(RuntimeError, match=r"copy<16>.*copy_async: an address is not a multiple of 16 bytes"):
        kernels("copy", 16, input, valid, output)
    with pytest.raises(RuntimeError, match="copy_async: 9 of 8 bytes"):
        kernels("copy", 8, storage[-storage.ctypes.data % 16 :], np.full(64, 9, np.int32), output)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_a_ring_of_copies_ahead(in_any_order, steps):
    input = RANDOM.standard_normal((steps, 128)).astype(np.float32)
    output = np.zeros_like(input)
    in_any_order("pipelined_sums", input, steps, output)
    padded = np.pad(input, ((0, 0), (1, 1)))
    assert (output == (padded[:, :-2] + padded[:, 1:-1]) + padded[:, 2:]).all()


@pytest.mark.parametrize(("type", "dtype"), [(0, np.float32), (1, np.float16), (2, np.uint16)])
def test_box_loads_pad_with_zero_on_every_side(in_any_order, type, dtype):
    storage = RANDOM.standard_normal((2, 3, 4, 5, 64)).astype(np.float16).view(np.uint16).astype(dtype)
    begin = -storage.ctypes.data % 16 // storage.itemsize
    tensor = storage[..., begin : begin + 40]
    box = (2, 2, 3, 4, 16)
    at = np.array(
        [
            [0, 0, 0, 0, 0],
            [0, 1, -1, -2, -8],
            [1, 2, 2, 3, 32],
            [-1, -1, 3, 1, 24],
            [0, 0, 0, 0, 96],
            [-5, 0, 0, 0, 0],
        ],
        np.int32,
    )
    output = np.zeros((len(at), *box), dtype)
    extent = np.array(tensor.shape[::-1], np.uint64)
    strides = np.array(tensor.strides[::-1][1:], np.uint64)
    # What follows is the order of the copy engine: the fastest dimension first.
    arguments = extent, strides, np.array(box[::-1], np.uint32), np.ascontiguousarray(at[:, ::-1]), len(at), output
    in_any_order("load_boxes", tensor, type, *arguments)
    margin = 128
    padded = np.pad(tensor, [*[(8, 8)] * 4, (margin, margin)])
    for i, corner in enumerate(at):
        offset = corner + np.array([8, 8, 8, 8, margin])
        expected = padded[tuple(slice(o, o + b) for o, b in zip(offset, box, strict=True))]
        assert (output[i].view(np.uint8) == np.ascontiguousarray(expected).view(np.uint8)).all()


def test_a_box_that_begins_within_sixteen_bytes_is_refused_as_a_gpu_does(kernels):
    tensor = np.zeros(64 + 8, np.uint16)
    begin = -tensor.ctypes.data % 16 // 2
    extent, box = np.array((64, 1, 1, 1, 1), np.uint64), np.array((16, 1, 1, 1, 1), np.uint32)
    strides, at = np.array([128] * 4, np.uint64), np.array([[-4, 0, 0, 0, 0]], np.int32)
    with pytest.raises(RuntimeError, match="begins at no multiple of 16 bytes"):
        kernels("load_boxes", tensor[begin:], 2, extent, strides, box, at, 1, np.zeros(16, np.uint16))


@pytest.mark.parametrize(
    ("box", "strides"),
    [
        ((1, 1, 1, 1, 3), (256, 256, 256, 256)),
        ((1, 1, 1, 1, 512), (256, 256, 256, 256)),
        ((1, 1, 1, 1, 16), (252, 256, 256, 256)),
    ],
)
def test_boxes_that_the_copy_engine_refuses(kernels, box, strides):
    tensor = np.zeros(64 + 4, np.float32)[:64]
    extent = np.array((64, 1, 1, 1, 1), np.uint64)
    arguments = np.array(strides, np.uint64), np.array(box[::-1], np.uint32), np.zeros(5, np.int32), 1, tensor
    with pytest.raises(RuntimeError, match="not launched: invalid argument"):
        kernels("load_boxes", tensor, 0, extent, *arguments)


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_a_producer_and_a_consumer_meet_at_named_barriers(in_any_order, rounds):
    input = RANDOM.integers(-100, 100, (rounds, 32)).astype(np.float32)
    output = np.zeros(32, np.float32)
    in_any_order("producer_and_consumer", input, rounds, output)
    assert (output == input.sum(0)[::-1]).all()
