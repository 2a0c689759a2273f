"""Kernels with one mistake each: the emulation finds it, and says where."""

from __future__ import annotations

import numpy as np
import pytest

INPUT = np.arange(1, 129, dtype=np.float32)


def shifted(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], values[:-1]]).astype(np.float32)


def test_a_missing_barrier_is_found_by_another_order(kernels):
    results = []
    for order, seed in [(0, 0), (1, 0), (2, 0), (2, 1)]:
        kernels.order(order, seed)
        output = np.zeros_like(INPUT)
        kernels("missing_barrier", 1, INPUT, output)
        assert (output == shifted(INPUT)).all()
        kernels("missing_barrier", 0, INPUT, output)
        results.append(output)
    assert (results[0] == shifted(INPUT)).all(), "in order it is right by luck"
    for other in results[1:]:
        assert np.isnan(other).any()


def test_a_missing_barrier_inside_a_warp_is_found_by_another_order(kernels):
    kernels.order(2, 1)
    output = np.zeros(32, np.float32)
    kernels("missing_warp_barrier", INPUT, output)
    assert np.isnan(output).any()


def test_a_copy_that_nobody_waited_for_reads_as_nan(in_any_order):
    output = np.zeros(32, np.float32)
    in_any_order("missing_wait", 1, INPUT, output)
    assert (output == INPUT[:32]).all()
    in_any_order("missing_wait", 0, INPUT, output)
    assert np.isnan(output).all()


def test_waiting_for_too_few_groups_reads_as_nan(in_any_order):
    output = np.zeros(64, np.float32)
    in_any_order("wait_for_too_little", INPUT, output)
    assert (output[:32] == INPUT[:32]).all()
    assert np.isnan(output[32:]).all()


def test_returning_with_copies_in_flight_is_an_error(kernels):
    with pytest.raises(RuntimeError, match=r"never_waits, block .* returns with 1 asynchronous copies in flight"):
        kernels("never_waits", INPUT)


def test_a_stage_filled_while_others_read_it_is_found_by_another_order(kernels):
    expected = np.concatenate([np.roll(INPUT[:64], 1), np.roll(INPUT[64:], 1)])
    wrong = 0
    for seed in range(4):
        kernels.order(2, seed)
        output = np.zeros(128, np.float32)
        kernels("overwrites_a_stage", INPUT, output)
        wrong += not np.array_equal(output, expected)
    assert wrong == 4


@pytest.mark.parametrize("warps", [2, 4])
def test_a_ring_without_a_block_barrier_is_the_same_in_every_order(in_any_order, warps):
    """Boxes come in order, and each warp reads them at its own pace: more steps than a stage's parity can tell."""
    planes = np.random.default_rng(0).random((40, 32), np.float32)
    output = np.zeros((40, warps, 32), np.float32)
    in_any_order("ring", 0, planes, warps, 40, output)
    assert (output == planes[:, None]).all()


@pytest.mark.parametrize(("mistake", "found_in_step"), [(1, False), (2, True)])
def test_a_stage_asked_for_while_warps_read_it_is_found_by_an_uneven_order(kernels, mistake, found_in_step):
    """That nobody waits for the readers of a step ago shows only where a warp falls two steps behind the one that asks.

    Where that one comes last of all it is right by luck.
    """
    planes = np.random.default_rng(0).random((40, 32), np.float32)
    output = np.zeros((40, 4, 32), np.float32)
    in_step = []
    for order, seed in [(0, 0), (1, 0), *((2, seed) for seed in range(8))]:
        kernels.order(order, seed)
        kernels("ring", mistake, planes, 4, 40, output)
        in_step.append((output == planes[:, None]).all())
    assert all(in_step) != found_in_step
    found = 0
    for seed in range(8):
        kernels.order(3, seed)
        try:
            kernels("ring", mistake, planes, 4, 40, output)
            found += not (output == planes[:, None]).all()
        except RuntimeError:  # two copies to one place at once
            found += 1
    assert found >= 4


def test_a_block_has_the_shared_memory_of_its_architecture(kernels):
    library = kernels._library
    try:
        for architecture, kilobytes in [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)]:
            library.mednext_ops_emulation_set_architecture(architecture)
            kernels("large_block", kilobytes * 1024)
            with pytest.raises(RuntimeError, match="invalid configuration"):
                kernels("large_block", kilobytes * 1024 + 1)
    finally:
        library.mednext_ops_emulation_set_architecture(90)


def test_uninitialised_shared_memory_reads_as_nan(in_any_order):
    output = np.zeros(32, np.float32)
    in_any_order("reads_uninitialised", output)
    assert (output[:16] == 1).all()
    assert np.isnan(output[16:]).all()


def test_a_divergent_barrier_is_an_error_that_names_both_places(in_any_order):
    sentence = (
        r"diverges, block \(0, 0, 0\), thread \(\d+, 0, 0\), planted_bugs.cu:\d+: divergent barrier: this thread comes "
        r"to __syncthreads in planted_bugs.cu:\d+, while thread \(\d+, 0, 0\) waits at __syncthreads in "
        r"planted_bugs.cu:\d+"
    )
    with pytest.raises(RuntimeError, match=sentence):
        in_any_order("diverges", np.zeros(128, np.float32))


def test_a_barrier_that_some_never_reach_is_a_deadlock_that_names_all(in_any_order):
    sentence = (
        r"returns_before_the_barrier, block \(\d, 0, 0\): deadlock, no thread can go on; threads 100..127: returned "
        r"from the kernel; threads 0..99: waits at __syncthreads in planted_bugs.cu:\d+"
    )
    with pytest.raises(RuntimeError, match=sentence):
        in_any_order("returns_before_the_barrier", np.zeros(128, np.float32))


def test_lanes_that_never_come_are_a_deadlock(in_any_order):
    sentence = (
        r"threads 30..31: returned from the kernel; threads 0..29: waits at __shfl_down_sync in planted_bugs.cu:\d+ "
        r"for the lanes 0xffffffff"
    )
    with pytest.raises(RuntimeError, match=sentence):
        in_any_order("lanes_that_never_come", np.zeros(32, np.int32))


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        ("a_caller_outside_of_its_mask", "the mask 0x0000ffff, in which lane 16, the caller, is not"),
        ("reads_a_lane_outside_of_its_mask", "a shuffle reads lane 20, which is not in its mask"),
        ("misaligned_row", "ldmatrix: an address is not a multiple of 16 bytes"),
        ("more_than_asked_for", "an array lies outside of the shared memory that the launch asked for"),
    ],
)
def test_what_a_device_does_not_define_is_an_error(kernels, kernel, sentence):
    with pytest.raises(RuntimeError, match=rf"{kernel}, block \(0, 0, 0\), thread .*planted_bugs.cu:\d+: .*{sentence}"):
        kernels(kernel, np.zeros(32, np.float32))


def test_rows_outside_of_shared_memory_are_an_error(kernels):
    with pytest.raises(RuntimeError, match="ldmatrix: 16 bytes are not all in the block's shared memory"):
        kernels("rows_in_global_memory", np.zeros(64, np.uint16), np.zeros(32, np.uint32))


def test_box_loads_go_wrong_in_five_ways(in_any_order):
    storage = np.zeros(40, np.float32)
    input = storage[-storage.ctypes.data % 16 // 4 :][:32]
    input[:] = INPUT[:32]
    output = np.zeros(32, np.float32)
    in_any_order("box", 0, input, output)
    assert (output == input).all()
    in_any_order("box", 2, input, output)
    assert np.isnan(output).any()
    for mistake, sentence in [
        (1, "mbarrier_(wait|arrive_and_expect) on an mbarrier that nobody initialised"),
        (3, "the block ends with 1 bulk copies in flight that nobody waited for"),
        (4, "more threads arrive in a phase of an mbarrier than it was initialised for"),
        (5, "deadlock, no thread can go on; threads 0..31: waits at mbarrier_wait in planted_bugs.cu"),
    ]:
        with pytest.raises(RuntimeError, match=sentence):
            in_any_order("box", mistake, input, output)


def test_arrivals_of_copies_go_wrong_in_four_ways(in_any_order):
    output = np.zeros(32, np.float32)
    in_any_order("arrival_when_copied", 0, INPUT[:32], output)
    assert (output == INPUT[:32][::-1]).all()
    in_any_order("arrival_when_copied", 1, INPUT[:32], output)
    assert np.isnan(output).any()
    for mistake, sentence in [
        (2, "the block ends with 32 bulk copies in flight that nobody waited for"),
        (3, "deadlock, no thread can go on; threads 0..31: waits at mbarrier_wait in planted_bugs.cu"),
        (4, "the thread returns with 1 asynchronous copies in flight"),
    ]:
        with pytest.raises(RuntimeError, match=sentence):
            in_any_order("arrival_when_copied", mistake, INPUT[:32], output)


def test_the_error_does_not_depend_on_the_number_of_workers(kernels):
    sentences = set()
    for workers in (1, 2, 3):
        kernels.order(2, 7, workers)
        with pytest.raises(RuntimeError) as error:
            kernels("returns_before_the_barrier", np.zeros(128, np.float32))
        sentences.add(str(error.value))
    assert len(sentences) == 1


def test_the_emulation_goes_on_after_an_error(kernels):
    for _ in range(20):
        with pytest.raises(RuntimeError, match="deadlock"):
            kernels("returns_before_the_barrier", np.zeros(128, np.float32))
        output = np.zeros_like(INPUT)
        kernels("missing_barrier", 1, INPUT, output)
        assert (output == shifted(INPUT)).all()
