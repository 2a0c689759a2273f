"""The network: switches, 2D, anisotropic scans, checkpointing, frozen parameters and bad input."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mednext import MedNeXt, MedNeXtUpBlock
from mednext.eager import EagerMedNeXt


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(network, x):
    x = x.clone().requires_grad_()
    outputs = network(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in outputs).backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return outputs, grads | {"input": x.grad}


def assert_same(ours, other):
    assert ours.keys() == other.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], other[name], rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_deep_supervision_switches_at_any_time(tiny, filled):
    network = filled(MedNeXt(**tiny, deep_supervision=True), 0)
    x = image(1, 1, 16, 16, 32)
    everything = network(x)
    assert [tuple(y.shape[2:]) for y in everything] == [(16 >> i, 16 >> i, 32 >> i) for i in range(5)]
    network.deep_supervision = False
    assert torch.equal(network(x), everything[0])
    network.decoder.deep_supervision = True
    assert network.deep_supervision and network.do_ds and len(network(x)) == 5
    network.do_ds = False
    assert not network.decoder.deep_supervision
    assert "decoder" not in dict(network.named_modules())


def test_heads_are_frozen_until_deep_supervision_is_first_on(tiny):
    network = MedNeXt(**tiny)
    heads = [p for name, p in network.named_parameters() if name.startswith(("out_1", "out_2", "out_3", "out_4"))]
    assert len(heads) == 8 and not any(p.requires_grad for p in heads)
    network(torch.randn(1, 1, 16, 16, 16)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    network.deep_supervision = True
    assert all(p.requires_grad for p in heads)
    sum(y.sum() for y in network(torch.randn(1, 1, 16, 16, 16))).backward()
    assert all(p.grad is not None for p in network.parameters())
    network.out_2.requires_grad_(False)
    network.deep_supervision = False
    network.deep_supervision = True
    assert not network.out_2.conv_out.weight.requires_grad  # what the user froze stays frozen


def test_an_official_state_dict_without_heads_loads_strictly(tiny):
    official = EagerMedNeXt(**tiny).state_dict()
    network = MedNeXt(**tiny)
    head = network.out_3.conv_out.weight.clone()
    network.load_state_dict(official, strict=True)
    assert torch.equal(network.stem.weight, official["stem.weight"]) and torch.equal(
        network.out_3.conv_out.weight, head
    )
    wrapped = torch.nn.ModuleDict({"net": network})
    wrapped.load_state_dict({f"net.{key}": value for key, value in official.items()}, strict=True)
    network.deep_supervision = True
    with pytest.raises(RuntimeError, match=r"out_1\.conv_out\.weight"):
        network.load_state_dict(official, strict=True)


def test_assigning_a_state_dict_without_heads_leaves_nothing_on_the_meta_device(tiny):
    official = EagerMedNeXt(**tiny).double().state_dict()
    with torch.device("meta"):
        network = MedNeXt(**tiny)
        network.load_state_dict(official, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    assert network.stem.weight is not official["stem.weight"] and torch.equal(
        network.stem.weight, official["stem.weight"]
    )
    assert not network.out_1.conv_out.weight.requires_grad  # frozen until they are used
    network.deep_supervision = True
    assert all(y.isfinite().all() and y.std() > 0 for y in network(torch.randn(1, 1, 16, 16, 16, dtype=torch.float64)))


def test_an_official_state_dict_with_heads_loads_strictly_either_way(tiny):
    official = EagerMedNeXt(**tiny, deep_supervision=True).state_dict()
    for deep_supervision in (False, True):
        network = MedNeXt(**tiny, deep_supervision=deep_supervision)
        network.load_state_dict(official, strict=True)
        assert torch.equal(network.out_4.conv_out.weight, official["out_4.conv_out.weight"])


@pytest.mark.parametrize("grn", [False, True])
def test_2d_is_the_eager_network_in_2d(tiny, filled, grn):
    arguments = tiny | {"dim": "2d", "deep_supervision": True, "grn": grn}
    ours, eager = filled(MedNeXt(**arguments), 3), filled(EagerMedNeXt(**arguments), 3)
    x = image(2, 1, 32, 48)
    (our_outputs, our_grads), (outputs, grads) = step(ours, x), step(eager, x)
    for ours_y, y in zip(our_outputs, outputs, strict=True):
        torch.testing.assert_close(ours_y, y, rtol=1e-9, atol=1e-9)
    assert_same(our_grads, grads)


def test_anisotropic_kernels_and_strides(tiny):
    strides = [(1, 2, 2), (1, 2, 2), (2, 2, 2), 2]
    kernels = [(1, 3, 3), (1, 3, 3), (3, 3, 3), 3, 3]
    network = MedNeXt(**tiny | {"kernel_size": kernels}, strides=strides, deep_supervision=True)
    assert network.total_stride == (4, 16, 16)
    assert network.enc_block_0[0].conv1.weight.shape[2:] == (1, 3, 3)
    assert network.down_1.conv1.weight.shape[2:] == (3, 3, 3) == network.up_1.conv1.weight.shape[2:]
    shapes = [tuple(y.shape[2:]) for y in network(torch.randn(1, 1, 4, 32, 16))]
    assert shapes == [(4, 32, 16), (4, 16, 8), (4, 8, 4), (2, 4, 2), (1, 2, 1)]


def test_planar_kernels_and_strides_treat_each_slice_alone(tiny, filled):
    """With (1, 3, 3) kernels and (1, 2, 2) strides nothing but the norm joins slices: one slice is the 2D network."""
    volume = filled(MedNeXt(**tiny | {"kernel_size": (1, 3, 3)}, strides=[(1, 2, 2)] * 4), 5)
    planar = filled(MedNeXt(**tiny | {"dim": "2d"}), 5)
    x = image(1, 1, 1, 32, 32)
    torch.testing.assert_close(volume(x)[:, :, 0], planar(x[:, :, 0]), rtol=1e-9, atol=1e-9)


def test_encoder_and_decoder_kernels_differ_where_asked(tiny):
    network = MedNeXt(**tiny | {"kernel_size": None, "enc_kernel_size": 5, "dec_kernel_size": 3})
    extents = {
        name: module.conv1.kernel_size[0] for name, module in network.named_modules() if hasattr(module, "conv1")
    }
    large = {name for name, extent in extents.items() if extent == 5}
    assert large == {name for name in extents if name.startswith(("enc_", "down_"))}


@pytest.mark.parametrize("options", [{}, {"norm_type": "layer"}, {"grn": "all"}], ids=str)
def test_checkpointing_changes_memory_and_no_gradient(tiny, filled, options):
    arguments = tiny | {"deep_supervision": True} | options
    plain = filled(MedNeXt(**arguments), 7)
    checkpointed = filled(MedNeXt(**arguments, checkpoint_style="outside_block"), 7)
    x = image(1, 1, 16, 16, 32)
    assert_same(step(checkpointed, x)[1], step(plain, x)[1])


def test_an_up_block_keeps_its_own_output_where_others_look_at_it_or_make_it(tiny, filled):
    class Doubled(MedNeXtUpBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    net, x = filled(MedNeXt(**tiny), 5), image(1, 1, 16, 16, 16)
    seen, joined = [], []
    net.dec_block_0[0].register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    net(x)
    net.up_0.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    net(x)
    deep, output = seen[0]
    skip = net.enc_block_0(net.stem(x))
    torch.testing.assert_close(output, net.up_0(deep))
    net.up_0.__class__ = Doubled
    net.up_0._forward_hooks.clear()
    net(x)
    net.up_0.__class__ = MedNeXtUpBlock
    net.up_0.forward = lambda x: 3 * net.up_0._composed(x)
    net(x)
    for found, factor in zip(joined, (1, 1, 2, 3), strict=True):
        torch.testing.assert_close(found, skip + factor * output)


@pytest.mark.parametrize("name", ["down_0", "up_0"])
def test_a_backward_hook_sees_the_gradient_of_the_blocks_output_alone(tiny, filled, name):
    net, x = filled(MedNeXt(**tiny), 5), image(1, 1, 16, 16, 16)
    seen = []
    getattr(net, name).register_full_backward_hook(lambda module, inputs, outputs: seen.append((inputs, outputs)))
    net(x).sum().backward()
    ((inputs, outputs),) = seen
    assert len(outputs) == 1 and len(inputs) == 1 and all(t is not None for t in (*inputs, *outputs))


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_the_same(tiny, filled):
    network = filled(MedNeXt(**tiny), 8)
    partly = copy.deepcopy(network)
    for name, parameter in partly.named_parameters():
        parameter.requires_grad_(not name.startswith(("stem", "enc_", "down_", "out_1", "out_2", "out_3", "out_4")))
    x = image(1, 1, 16, 16, 32)
    _, everything = step(network, x)
    _, some = step(partly, x)
    assert not any(name.startswith(("stem", "enc_", "down_")) for name in some)
    assert_same(some, {name: everything[name] for name in some})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_parameters_and_their_gradients_in_float32(tiny, dtype):
    network = MedNeXt(**tiny, deep_supervision=True)
    x = torch.randn(1, 1, 16, 16, 32)
    with torch.autocast("cpu", dtype):
        outputs = network(x)
    assert all(y.dtype == dtype for y in outputs)
    expected = network(x)
    for y, reference in zip(outputs, expected, strict=True):
        assert (y - reference).abs().max() < 0.1 * reference.abs().max()
    sum(y.float().square().mean() for y in outputs).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("dim", "memory_format"), [("3d", torch.channels_last_3d), ("2d", torch.channels_last)])
def test_a_network_moved_to_channels_last_computes_in_it(tiny, filled, dim, memory_format):
    network = filled(MedNeXt(**tiny, dim=dim), 0)
    x = image(1, 1, *(16, 16, 32)[: len(network.total_stride)])
    expected = network(x)
    seen = []
    network.to(memory_format=memory_format)
    network.enc_block_1[0].register_forward_hook(lambda _module, _input, output: seen.append(output))
    torch.testing.assert_close(network(x), expected)
    assert seen and all(y.is_contiguous(memory_format=memory_format) and not y.is_contiguous() for y in seen)


@pytest.mark.gpu
def test_a_float16_training_step_with_a_gradient_scaler(tiny):
    network = MedNeXt(**tiny, deep_supervision=True).cuda().to(memory_format=torch.channels_last_3d)
    scaler, optimizer = torch.amp.GradScaler(), torch.optim.AdamW(network.parameters(), eps=1e-4)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    x = torch.randn(2, 1, 32, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last_3d)
    for _ in range(8):  # the first scale is a guess: steps whose gradients overflow are skipped, at half of it then
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = sum(y.float().square().mean() for y in network(x))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() > 2**8
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_an_empty_batch_gives_an_empty_output(tiny):
    assert MedNeXt(**tiny)(torch.zeros(0, 1, 16, 16, 16)).shape == (0, 3, 16, 16, 16)


def test_copies_and_pickles_keep_the_switch(tiny, filled):
    network = filled(MedNeXt(**tiny, deep_supervision=True), 0)
    x = image(1, 1, 16, 16, 16)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        twin.deep_supervision = False
        assert torch.equal(twin(x), network(x)[0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 20, 16), r"divisible by \[16, 16, 16\], got \[16, 20, 16\]; pad 20 to 32"),
        ((1, 1, 16, 16, 0), r"divisible by \[16, 16, 16\], got \[16, 16, 0\]; pad 0 to 16"),
        ((1, 2, 16, 16, 16), r"input must be \[N, 1, D, H, W\], got shape \[1, 2, 16, 16, 16\]"),
        ((1, 16, 16, 16), r"input must be \[N, 1, D, H, W\], got shape \[1, 16, 16, 16\]"),
    ],
)
def test_an_input_that_does_not_fit_is_named_before_any_work(tiny, shape, message):
    with pytest.raises(ValueError, match=message):
        MedNeXt(**tiny)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("x", "got"), [(torch.zeros(1, 1, 16, 16, 16, dtype=torch.int16), r"torch\.int16"), ([1.0], "list"), (None, "None")]
)
def test_an_input_that_holds_no_floating_point_numbers_is_named(tiny, x, got):
    with pytest.raises(TypeError, match=rf"input must be a floating-point tensor \[N, 1, D, H, W\], got {got}"):
        MedNeXt(**tiny)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exp_r": [2] * 8}, "exp_r must have 9 entries"),
        ({"exp_r": [2] * 8 + [0]}, r"exp_r\[8\] must be a positive int, got 0"),
        ({"block_counts": [1] * 10}, "block_counts must have 9 entries"),
        ({"kernel_size": 2}, "kernel_size must be odd"),
        ({"kernel_size": None}, "enc_kernel_size must be given where kernel_size is None"),
        ({"n_channels": -1}, "n_channels must be a positive int, got -1"),
        ({"n_classes": 0}, "n_classes must be a positive int, got 0"),
        ({"in_channels": "1"}, "in_channels must be a positive int, got '1'"),
        ({"checkpoint_style": "inside_block"}, "checkpoint_style must be one of None, 'outside_block'"),
        ({"strides": [2, 2, 2]}, "strides must have 4 entries"),
        ({"strides": [2, 2, 2, 4]}, "strides must be 1 or 2 on every axis, got 4"),
        ({"grn": "some"}, "grn must be one of False, True, 'all', got 'some'"),
        ({"recompute": True}, "recompute must be one of None, 'conv', got True"),
    ],
)
def test_bad_arguments_are_named(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        MedNeXt(**tiny | arguments)


def test_deep_supervision_takes_a_bool(tiny):
    with pytest.raises(TypeError, match="deep_supervision must be True or False, got 'yes'"):
        MedNeXt(**tiny).deep_supervision = "yes"
