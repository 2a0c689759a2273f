"""The trainers are what was published, in the form in which nnU-Net finds, builds, saves and loads them."""

from __future__ import annotations

import itertools

import pytest
import torch

import mednext

NAMES = [f"nnUNetTrainer_MedNeXt_{variant}_kernel{kernel}" for variant in "SBML" for kernel in (3, 5, 7)]


@pytest.mark.parametrize("name", NAMES)
def test_nnunet_finds_the_trainer(name, extension, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", extension)
    found = recursive_find_trainer_class_by_name(name)
    assert issubclass(found, nnUNetTrainer)
    assert found.__name__ == name
    assert found is recursive_find_trainer_class_by_name(name)


def test_training_is_as_published(trainer):
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel3")
    it.initialize()
    (group,) = it.optimizer.param_groups
    assert isinstance(it.optimizer, torch.optim.AdamW)
    assert (group["lr"], group["eps"], group["weight_decay"]) == (1e-3, 1e-4, 3e-5)
    assert (it.num_epochs, it.num_iterations_per_epoch, it.num_val_iterations_per_epoch) == (1000, 250, 50)
    it.lr_scheduler.step(250)
    assert group["lr"] == pytest.approx(1e-3 * 0.75**0.9)
    expected = mednext.create_mednext("S", 1, 2, 3).state_dict()
    it._no_more_pretrained_weights()
    assert {key: v.shape for key, v in it.network.state_dict().items()} == {k: v.shape for k, v in expected.items()}


def test_deep_supervision_matches_the_outputs(trainer):
    plan = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]], "kernel_sizes": [[1, 3, 3]] * 5}
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel3", plan)
    it.initialize()
    it.set_deep_supervision_enabled(True)
    x = torch.randn(1, 1, 16, 32, 32)
    outputs = it.network(x)
    scales = it._get_deep_supervision_scales()
    assert len(outputs) == len(scales) == 5
    for output, scale in zip(outputs, scales, strict=True):
        assert list(output.shape[2:]) == [round(extent * s) for extent, s in zip(x.shape[2:], scale, strict=True)]
    weights = it.loss.weight_factors  # nnU-Net's: halved a level, none for the last, one together
    assert list(weights) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    targets = [torch.zeros(1, 1, *output.shape[2:]) for output in outputs]
    assert it.loss(outputs, targets).isfinite()
    it.set_deep_supervision_enabled(False)
    assert isinstance(it.network(x), torch.Tensor)


def test_a_step_moves_the_network_and_a_saved_state_continues(trainer, tmp_path):
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel3", patch=16)
    it.initialize()
    it._no_more_pretrained_weights()
    it.set_deep_supervision_enabled(True)
    batch = {"data": torch.randn(1, 1, 16, 16, 16)}
    batch["target"] = [torch.ones(1, 1, *[round(16 * scale[0])] * 3) for scale in it._get_deep_supervision_scales()]
    before = {key: value.clone() for key, value in it.network.state_dict().items()}
    losses = [float(it.train_step(batch)["loss"]) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert not torch.equal(before["bottleneck.0.conv1.weight"], it.network.state_dict()["bottleneck.0.conv1.weight"])
    it.current_epoch = 6
    it.save_checkpoint(str(tmp_path / "state.pth"))

    other = trainer("nnUNetTrainer_MedNeXt_S_kernel3", patch=16)
    other.load_checkpoint(str(tmp_path / "state.pth"))
    assert other.current_epoch == 7
    for key, value in it.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[key], value)
    step = float(it.train_step(batch)["loss"])
    other.set_deep_supervision_enabled(True)
    assert float(other.train_step(batch)["loss"]) == pytest.approx(step, rel=1e-5)


def test_inference_loads_strictly(trainer):
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel5")
    arguments = (it.plans_manager, it.configuration_manager, 1, 2)
    trained = type(it).build_network_architecture(*arguments, enable_deep_supervision=True)
    deployed = type(it).build_network_architecture(*arguments, enable_deep_supervision=False)
    deployed.load_state_dict(trained.state_dict())
    with pytest.raises(RuntimeError, match=r"stem\.weight"):
        deployed.load_state_dict({key: v for key, v in trained.state_dict().items() if key != "stem.weight"})


def pretrained(path, network):
    """A checkpoint as nnU-Net writes it."""
    torch.save({"network_weights": network.state_dict()}, path)
    return str(path)


def test_pretrained_weights_of_a_smaller_kernel_are_widened(trainer, tmp_path, capsys):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    small = mednext.create_mednext("S", 1, 2, 3, deep_supervision=True)
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel5")
    maybe_load_checkpoint(it, False, False, pretrained(tmp_path / "small.pth", small))
    expected = mednext.upkern(small, mednext.create_mednext("S", 1, 2, 5))
    assert it.network.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(it.network.state_dict()[key], value), key
    assert "took 237 pretrained tensors; UpKern widened 26 kernels from 3x3x3 to 5x5x5" in capsys.readouterr().out
    held = {id(parameter) for group in it.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in it.network.parameters()}


def test_pretrained_heads_for_other_classes_stay_out(trainer, tmp_path, capsys):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    small = mednext.create_mednext("S", 1, 4, 3)
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel3")
    maybe_load_checkpoint(it, False, False, pretrained(tmp_path / "small.pth", small))
    assert torch.equal(it.network.stem.weight, small.stem.weight)
    assert it.network.out_0.conv_out.bias.shape == (2,)
    assert "10 tensors of heads with other classes stay as initialised" in capsys.readouterr().out


@pytest.mark.parametrize(("variant", "kernel"), [("B", 3), ("S", 7)])
def test_pretrained_weights_that_do_not_fit_change_nothing(trainer, tmp_path, variant, kernel):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    file = pretrained(tmp_path / "other.pth", mednext.create_mednext(variant, 1, 2, kernel))
    it = trainer("nnUNetTrainer_MedNeXt_S_kernel5")
    it.initialize()
    before = [parameter.clone() for parameter in it.network.parameters()]
    with pytest.raises(ValueError, match=r"same MedNeXt with kernels that are equal or smaller; nothing was loaded"):
        load_pretrained_weights(it.network, file)
    assert all(map(torch.equal, before, it.network.parameters()))


def test_options_come_from_the_environment(trainer, monkeypatch):
    values = {"LEARNING_RATE": "2.5e-4", "EPOCHS": "7", "ITERATIONS": "3", "VALIDATION_ITERATIONS": "2"}
    for name, value in (values | {"SAVE_EVERY": "1", "RECOMPUTE": "conv", "DTYPE": "bfloat16"}).items():
        monkeypatch.setenv(f"MEDNEXT_NNUNET_{name}", value)
    before = torch.get_autocast_dtype("cuda")
    try:
        it = trainer("nnUNetTrainer_MedNeXt_S_kernel5")
        it.initialize()
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
    finally:
        torch.set_autocast_dtype("cuda", before)
    assert it.optimizer.param_groups[0]["lr"] == 2.5e-4
    assert (it.num_epochs, it.num_iterations_per_epoch, it.num_val_iterations_per_epoch, it.save_every) == (7, 3, 2, 1)
    assert it.grad_scaler is None
    assert all(block.recompute == "conv" for block in it.network.modules() if isinstance(block, mednext.MedNeXtBlock))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EPOCHS", "0", "EPOCHS is '0'; a whole number above 0"),
        ("ITERATIONS", "2.5", "ITERATIONS is '2.5'; a whole number"),
        ("LEARNING_RATE", "nan", "LEARNING_RATE is 'nan'; a number above 0"),
        ("DTYPE", "int8", "DTYPE is 'int8'; float16 or bfloat16"),
        ("EPOCH", "5", "MEDNEXT_NNUNET_EPOCH is no option; there are MEDNEXT_NNUNET_LEARNING_RATE"),
    ],
)
def test_a_bad_option_is_named_before_anything_is_written(trainer, monkeypatch, tmp_path, name, value, said):
    monkeypatch.setenv(f"MEDNEXT_NNUNET_{name}", value)
    with pytest.raises(ValueError, match=said):
        trainer("nnUNetTrainer_MedNeXt_S_kernel3")
    assert not (tmp_path / "results").exists()


def plans():
    """Plans as nnU-Net makes them: anisotropic, small with few stages, large with many, in 2D."""
    yield [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], [[1, 3, 3]] * 2 + [[3, 3, 3]] * 4
    yield [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3
    yield [[1, 1]] + [[2, 2]] * 6, [[3, 3]] * 7


@pytest.mark.parametrize(("plan", "kernel"), list(itertools.product(range(3), (3, 5))))
def test_the_network_adapts_to_the_plan(plan, kernel):
    from mednext.nnunet.network import network_of_plan, scales_of, strides_of

    strides, kernels = list(plans())[plan]
    architecture = {"strides": strides, "kernel_sizes": kernels}
    network = network_of_plan("S", kernel, architecture, 1, 2, deep_supervision=True)
    patch = [16] * len(strides[0])
    outputs = network(torch.randn(1, 1, *patch))
    for output, scale in zip(outputs, scales_of(strides_of(architecture)), strict=True):
        assert list(output.shape[2:]) == [round(16 * factor) for factor in scale]
    for level in range(min(len(kernels), 4)):
        expected = tuple(kernel if extent > 1 else 1 for extent in kernels[level])
        assert network.get_submodule(f"enc_block_{level}.0.conv1").kernel_size == expected


def test_a_plan_that_mednext_cannot_follow_is_named():
    from mednext.nnunet.network import strides_of

    with pytest.raises(ValueError, match="1 in the first stage and 1 or 2 in the others"):
        strides_of({"strides": [[1, 1, 1], [4, 4, 4]]})
    with pytest.raises(ValueError, match="strides of the plan must be 2 or 3 ints for each stage"):
        strides_of({"strides": None})
