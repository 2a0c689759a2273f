"""Checkpoints of every origin load, are reported, and are refused by name before anything is written."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mednext
from mednext import MedNeXt, load_checkpoint
from mednext.eager import EagerMedNeXt

monai_nets = pytest.importorskip("monai.networks.nets.mednext")


@pytest.fixture
def official(tiny, filled):
    return filled(EagerMedNeXt(**tiny, deep_supervision=True), 11).state_dict()


@pytest.fixture
def network(tiny):
    return MedNeXt(**tiny).double()


def small_monai(**options):
    """MONAI's network of S's proportions: the same ratio everywhere, so that it converts."""
    arguments = {"init_filters": 2, "out_channels": 3, "kernel_size": 3, "use_residual_connection": True}
    return monai_nets.MedNeXt(**arguments | options).double()


def small_ours(**options):
    arguments = {"in_channels": 1, "n_channels": 2, "n_classes": 3, "exp_r": 2, "kernel_size": 3}
    return MedNeXt(**arguments | {"do_res": True, "do_res_up_down": True} | options).double()


def assert_loaded(network, state):
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_an_official_nnunet_v1_file(tmp_path, official, network):
    scores = ([np.float64(0.5), np.float32(0.25)], np.zeros(3), [np.int64(3), np.bool_(True)])
    content = {"epoch": 5, "state_dict": official, "optimizer_state_dict": {}, "plot_stuff": scores}
    torch.save(content, tmp_path / "model_final_checkpoint.model")
    report = load_checkpoint(network, tmp_path / "model_final_checkpoint.model")
    assert_loaded(network, official)
    assert (report.container, report.naming, report.missing) == ("nnU-Net v1 checkpoint", "official", ())
    assert "nnU-Net v1 checkpoint, official names; loaded" in str(report)


def test_an_nnunet_v2_file_of_a_compiled_network(tmp_path, official, network):
    weights = {f"_orig_mod.{key}": value for key, value in official.items()}
    torch.save({"network_weights": weights, "logging": {"dice": [np.float32(0.9)]}}, tmp_path / "checkpoint.pth")
    report = load_checkpoint(network, str(tmp_path / "checkpoint.pth"))
    assert_loaded(network, official)
    assert (report.container, report.prefix) == ("nnU-Net v2 checkpoint", "_orig_mod.")


def test_a_lightning_file(tmp_path, official, network):
    weights = {f"model.module.{key}": value for key, value in official.items()} | {"loss.weight": torch.ones(3)}
    torch.save({"pytorch-lightning_version": "2.5", "state_dict": weights}, tmp_path / "last.ckpt")
    report = load_checkpoint(network, tmp_path / "last.ckpt")
    assert_loaded(network, official)
    assert (report.container, report.prefix) == ("Lightning checkpoint", "model.module.")
    assert report.unexpected == ("loss.weight",) and "loss.weight" in str(report)


def test_a_safetensors_file_and_a_bare_dict(tmp_path, official, tiny):
    save_file(official, tmp_path / "model.safetensors")
    for checkpoint in (tmp_path / "model.safetensors", official):
        network = MedNeXt(**tiny).double()
        assert load_checkpoint(network, checkpoint).container == "bare state dict"
        assert_loaded(network, official)


def test_a_model_file_of_ours(tmp_path, official, network):
    torch.save(
        {"format": "mednext model", "network": {"in_channels": 1}, "state_dict": official}, tmp_path / "model.pt"
    )
    assert load_checkpoint(network, tmp_path / "model.pt").container == "mednext model"
    assert_loaded(network, official)


def test_a_wrapped_model(official, network):
    report = load_checkpoint(torch.nn.DataParallel(network), official)
    assert_loaded(network, official)
    assert report.loaded["stem.weight"] == "module.stem.weight"


def test_float16_weights_load_into_a_float64_network(official, network):
    load_checkpoint(network, {key: value.half() for key, value in official.items()})
    assert torch.equal(network.stem.weight, official["stem.weight"].half().double())


@pytest.mark.parametrize("options", [{}, {"spatial_dims": 2}], ids=str)
def test_a_monai_network_gives_the_same_outputs(filled, options):
    theirs = filled(small_monai(deep_supervision=True, **options), 12)
    ours = small_ours(deep_supervision=True, dim=f"{options.get('spatial_dims', 3)}d")
    report = load_checkpoint(ours, theirs.state_dict())
    assert report.naming == "MONAI" and report.loaded["up_blocks.0.conv1.weight"] == "up_3.conv1.weight"
    x = torch.randn(1, 1, *[16, 16, 32][-options.get("spatial_dims", 3) :], dtype=torch.float64)
    for our_y, their_y in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(our_y, their_y, rtol=1e-10, atol=1e-10)


def test_monai_with_grn_lacks_the_official_down_blocks_grn():
    message = r"down_1\.grn_beta: only in the model"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(small_ours(grn=True), small_monai(global_resp_norm=True).state_dict())


def test_monai_small_itself_gives_the_same_output():
    theirs = monai_nets.MedNeXtSmall(in_channels=1, out_channels=3).double().eval()
    ours = mednext.create_mednext("S", 1, 3).double()
    load_checkpoint(ours, theirs.state_dict())
    x = torch.randn(1, 1, 16, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_ours_load_into_monai(filled):
    ours, theirs = filled(small_ours(), 13), small_monai()
    report = load_checkpoint(theirs, ours.state_dict())
    assert set(report.unexpected) == {"dummy_tensor"} | {
        f"out_{i}.conv_out.{p}" for i in range(1, 5) for p in ("weight", "bias")
    }
    x = torch.randn(1, 1, 16, 16, 32, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-10, atol=1e-10)


def test_heads_may_be_missing_only_while_they_are_off(tiny, filled, network):
    without = filled(EagerMedNeXt(**tiny), 14).state_dict()
    report = load_checkpoint(network, without)
    assert len(report.missing) == 8 and "kept in the model: out_1" in str(report)
    network.deep_supervision = True
    with pytest.raises(ValueError, match=r"(?s)out_1\.conv_out\.weight: only in the model.*pass heads=False"):
        load_checkpoint(network, without)
    load_checkpoint(network, without, heads=False)


def test_other_classes_keep_the_models_heads(tiny, official):
    network = MedNeXt(**tiny | {"n_classes": 7}, deep_supervision=True).double()
    head = network.out_0.conv_out.weight.clone()
    with pytest.raises(
        ValueError, match=r"(?s)out_0\.conv_out\.weight: \[2, 3, 1, 1, 1\], the model has \[2, 7,.*heads=False"
    ):
        load_checkpoint(network, official)
    report = load_checkpoint(network, official, heads=False)
    assert torch.equal(network.out_0.conv_out.weight, head) and len(report.missing) == 10 == len(report.unexpected)
    assert torch.equal(network.stem.weight, official["stem.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("down_2.conv3.bias"), r"down_2\.conv3\.bias: only in the model"),
        (
            lambda s: s.update({"enc_block_0.9.conv1.weight": torch.ones(1)}),
            r"0\.9\.conv1\.weight: only in the checkpoint",
        ),
        (lambda s: s.update({"up_1.norm.bias": torch.ones(3)}), r"up_1\.norm\.bias: \[3\], the model has \[8\]"),
        (lambda s: s.update({"up_1.norm.bias": torch.ones(8, dtype=torch.int8)}), r"\[8\] of torch\.int8"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(official, network, change, message):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    change(official)
    with pytest.raises(ValueError, match=rf"(?s)does not fit the model; nothing was loaded:.*{message}"):
        load_checkpoint(network, official)
    assert_loaded(network, before)


def test_monai_base_is_refused_with_the_way_out():
    with torch.device("meta"):
        theirs, ours = monai_nets.MedNeXtBase(), mednext.create_mednext("B", 1, 2)
    with pytest.raises(ValueError, match=r"(?s)expansion ratio of level i.*mednext\.accelerate"):
        load_checkpoint(ours, theirs.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must hold one state dict of a MedNeXt"),
        ({"epoch": 3, "weights": {"conv.weight": torch.ones(1)}}, "it holds only 'epoch', 'weights'"),
        (
            {"a": {"stem.weight": torch.ones(1)}, "b": {"stem.weight": torch.ones(1)}},
            "it holds several: 'a', 'b'; pass one",
        ),
        ({"stem.weight": torch.ones(1), "layers.0": torch.ones(1)}, r"is not the state dict of a MedNeXt: expected"),
        ({"a.stem.weight": torch.ones(1), "b.stem.weight": torch.ones(1)}, "holds 2 networks, under 'a.', 'b.'"),
    ],
)
def test_other_dicts_are_refused(network, content, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(network, content)


def test_a_model_that_is_no_mednext_is_named(official):
    with pytest.raises(ValueError, match=r"model \(Conv3d\) is not the state dict of a MedNeXt"):
        load_checkpoint(torch.nn.Conv3d(1, 1, 1), official)
    with pytest.raises(TypeError, match="checkpoint must be a path or a dict, got int"):
        load_checkpoint(torch.nn.Conv3d(1, 1, 1), 3)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got OrderedDict"):
        load_checkpoint(official, "model.pth")


def test_files_that_cannot_be_read_are_named(tmp_path, network):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint file .*nowhere"):
        load_checkpoint(network, tmp_path / "nowhere.pth")
    for name in ("damaged.pth", "damaged.safetensors", "empty.pth"):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"not a checkpoint at all")
        with pytest.raises(ValueError, match=f"{name} is damaged or not a") as error:
            load_checkpoint(network, tmp_path / name)
        assert "weights_only" not in str(error.value)  # torch advises to load it without
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor; expected a dict"):
        load_checkpoint(network, tmp_path / "tensor.pth")


def test_a_file_that_would_run_code_is_refused_with_the_way_out(tmp_path, official, network):
    torch.save({"state_dict": official, "arguments": argparse.Namespace(lr=1)}, tmp_path / "trusted.pth")
    with pytest.raises(ValueError, match=r"holds a argparse\.Namespace.*weights_only=False\) and pass the result"):
        load_checkpoint(network, tmp_path / "trusted.pth")
    load_checkpoint(network, torch.load(tmp_path / "trusted.pth", weights_only=False))
    assert_loaded(network, official)


def test_a_model_without_values_is_refused(official, network, tiny):
    """Loading into the meta device would report success and load nothing."""
    with torch.device("meta"):
        empty = MedNeXt(**tiny)
    with pytest.raises(ValueError, match=r"model \(MedNeXt\) has \d+ of \d+ tensors on the meta device.*real device"):
        load_checkpoint(empty, official)
    with pytest.raises(ValueError, match=r"state dict has .* on the meta device"):
        load_checkpoint(network, empty.state_dict())
    load_checkpoint(empty.to_empty(device="cpu"), official)
    assert_loaded(empty, {key: value.float() for key, value in official.items()})
