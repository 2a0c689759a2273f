"""The registry: which problems each suite measures, in its full and in its quick form, and the implementations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mednext.bench.block_task import PASSES as BLOCK_PASSES
from mednext.bench.block_task import BlockTask
from mednext.bench.blocks import BlockProblem
from mednext.bench.network_task import INFERENCE, TRAINING, NetworkTask
from mednext.bench.networks import NetworkProblem
from mednext.bench.op_task import OpTask
from mednext.bench.operators import OPERATORS, OpProblem
from mednext.bench.task import Implementation, Task
from mednext.variants import VARIANTS

__all__ = ["BASELINES", "SUITES", "Choice", "default_choice", "implementations", "tasks"]

SUITES = ("ops", "blocks", "network", "scaling", "memory")

BASELINES = {
    "eager": Implementation("eager", "eager"),
    "eager-channels-last": Implementation("eager channels_last_3d", "eager", channels_last=True),
    "eager-checkpoint": Implementation("eager checkpointed", "eager", checkpoint=True),
    "compile": Implementation("torch.compile", "eager", compile="default"),
    "compile-max-autotune": Implementation("torch.compile max-autotune", "eager", compile="max-autotune"),
    "monai": Implementation("MONAI", "monai"),
}
LEVELS = 5


@dataclass(frozen=True)
class Choice:
    """What was asked for.

    Attributes:
        suite: one of :data:`SUITES`.
        variants, kernel_sizes: of the networks; kernel sizes of operators and blocks too.
        patch: edge of a network's cube, and of the finest level of operators and blocks, voxels.
        batch: cubes.
        dtypes: of "fp32", "fp16", "bf16".
        backends: of ours: names, or "default" for the default choice.
        baselines: of :data:`BASELINES`.
        factories: the user's, as ``package.module:function``.
        channels_last: measure ours in channels_last_3d too.
        cuda_graph: on a GPU measure ours as one CUDA graph too.
        graphs: measure ours under ``torch.compile(mode="reduce-overhead")`` too, which is CUDA graphs on a GPU.
    """

    suite: str
    variants: tuple[str, ...]
    kernel_sizes: tuple[int, ...]
    patch: int
    batch: int
    dtypes: tuple[str, ...]
    backends: tuple[str, ...]
    baselines: tuple[str, ...]
    factories: tuple[str, ...] = ()
    channels_last: bool = False
    cuda_graph: bool = False
    graphs: bool = False


def default_choice(suite: str, device: str, quick: bool) -> Choice:
    """What a suite measures where nothing is said: what a GPU, or two cores of a CPU, does in minutes."""
    gpu = device == "cuda"
    networks = suite in ("network", "scaling", "memory")
    baselines = ["eager", "eager-channels-last"]
    if suite == "memory":
        baselines.append("eager-checkpoint")
    if not quick and gpu:
        baselines += ["compile"] if suite in ("scaling", "memory") else ["compile", "compile-max-autotune"]
    if networks and not (quick and not gpu):
        baselines.append("monai")
    if suite in ("scaling", "memory"):
        variants = ("S",) if quick else ("S", "B", "M", "L")
    else:
        variants = ("S",) if quick else ("B",)
    full_patch = 128 if gpu else (48 if networks else 64)
    quick_patch = (64 if gpu else 32) if networks else full_patch // 2
    return Choice(
        suite,
        variants,
        (3, 5, 7) if not quick or suite == "scaling" else (3, 5),
        quick_patch if quick else full_patch,
        1,
        ("bf16",) if gpu else ("fp32",),
        ("default",),
        tuple(baselines),
        channels_last=gpu and not quick and not networks,
        cuda_graph=gpu and suite in ("network", "scaling"),
        graphs=gpu and not quick and suite == "network",
    )


def implementations(choice: Choice) -> list[Implementation]:
    """Ours first, then the baselines, then the user's."""
    found = []
    for backend in choice.backends:
        name = "mednext" if backend == "default" else f"mednext {backend}"
        forced = None if backend == "default" else backend
        found.append(Implementation(name, "mednext", forced))
        if choice.channels_last:
            found.append(Implementation(f"{name} channels_last_3d", "mednext", forced, channels_last=True))
        if choice.cuda_graph:
            found.append(Implementation(f"{name} CUDA graph", "mednext", forced, graph=True))
        if choice.graphs:
            found.append(Implementation(f"{name} reduce-overhead", "mednext", forced, compile="reduce-overhead"))
    found += [BASELINES[name] for name in choice.baselines]
    return found + [Implementation(factory, "user", factory=factory) for factory in choice.factories]


def tasks(choice: Choice) -> Iterator[Task]:
    """The suite's tasks, in the order in which they are run."""
    if choice.suite == "ops":
        return op_tasks(choice)
    return block_tasks(choice) if choice.suite == "blocks" else network_tasks(choice)


def stages(choice: Choice) -> list[tuple[int, int]]:
    """Channels and extent of the five levels of a network with 32 channels, as far as there are voxels for a norm."""
    levels = [(32 * 2**level, choice.patch // 2**level) for level in range(LEVELS)]
    return [(channels, extent) for channels, extent in levels if extent >= 2]


def op_tasks(choice: Choice) -> Iterator[OpTask]:
    """The operators at the stages of MedNeXt: regular, on the way down, and on the way up."""
    for dtype in choice.dtypes:
        for channels, extent in stages(choice):
            shape = (choice.batch, channels, extent, extent, extent)
            yield from _passes(OpProblem("group_norm_statistics", shape, dtype=dtype))
            yield from _passes(OpProblem("inverted_bottleneck", shape, ratio=2, dtype=dtype))
            for k in choice.kernel_sizes:
                kernel = (k, k, k)
                yield from _passes(OpProblem("depthwise_conv3d", shape, kernel, dtype=dtype))
                yield from _passes(OpProblem("depthwise_conv3d_group_norm", shape, kernel, dtype=dtype))
        channels, extent = stages(choice)[0]
        for k in choice.kernel_sizes:
            down = (choice.batch, channels, extent, extent, extent)
            up = (choice.batch, 2 * channels, *(extent // 2,) * 3)
            yield from _passes(OpProblem("depthwise_conv3d", down, (k, k, k), (2, 2, 2), dtype=dtype))
            yield from _passes(OpProblem("depthwise_conv_transpose3d", up, (k, k, k), (2, 2, 2), dtype=dtype))


def _passes(problem: OpProblem) -> list[OpTask]:
    return [OpTask(problem, name) for name in OPERATORS[problem.op].passes]


def block_tasks(choice: Choice) -> Iterator[BlockTask]:
    """The blocks of a variant: one of each stage of the encoder, and the resampling ones between the finest levels."""
    for variant in choice.variants:
        ratios = VARIANTS[variant].exp_r
        ratio_of = [ratios] * LEVELS if isinstance(ratios, int) else list(ratios[:LEVELS])
        for dtype in choice.dtypes:
            for k in choice.kernel_sizes:
                problems = [
                    BlockProblem("regular", (choice.batch, channels, *(extent,) * 3), k, ratio_of[level], dtype)
                    for level, (channels, extent) in enumerate(stages(choice))
                ]
                channels, extent = stages(choice)[0]
                fine, coarse = (extent,) * 3, (extent // 2,) * 3
                problems.append(BlockProblem("down", (choice.batch, channels, *fine), k, ratio_of[1], dtype))
                problems.append(BlockProblem("up", (choice.batch, 2 * channels, *coarse), k, ratio_of[0], dtype))
                for problem in problems:
                    yield from (BlockTask(problem, name) for name in BLOCK_PASSES)


def network_tasks(choice: Choice) -> Iterator[NetworkTask]:
    """Whole networks; the memory suite has the training step alone."""
    passes: Sequence[str] = (TRAINING,) if choice.suite == "memory" else (INFERENCE, TRAINING)
    for variant in choice.variants:
        for dtype in choice.dtypes:
            for k in choice.kernel_sizes:
                problem = NetworkProblem(variant, k, choice.patch, choice.batch, dtype)
                yield from (NetworkTask(choice.suite, problem, name) for name in passes)
