"""The evaluation form: the same logits without batch norms, for every family, gate, position and type."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import profile

import excite
from excite import create_model, fold
from excite.errors import ExciteError
from excite.gates import Gate, list_gates
from excite.models import VARIANTS, EfficientNetLite, FastNet, ResNet, TFSEResNet, folding
from excite.models.blocks import POSITIONS

CHANNELS_LAST = torch.channels_last
GATES = [
    *({"name": name} for name in list_gates()),
    {"name": "se", "identity": True},
    {"name": "ge", "identity": True},
    *({"name": "ge", "variant": v, "extent": e} for v in ("theta_minus", "theta", "theta_plus") for e in (2, "global")),
]
needs_fused = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")),
    reason="this PyTorch has no fused oneDNN convolutions",
)


def families():
    """One shallow and narrow member of every family in the catalogue: name of its first -> the builder's arguments."""
    found = {}
    for name, variant in VARIANTS.items():
        arch = dict(variant["arch"])
        if variant["family"] == "tf_seresnet":
            arch["depth"] = 11
        elif variant["family"] == "efficientnet_lite":
            arch |= {"layers": (1, 2, 1, 1, 1, 2, 1), "widths": (8, 8, 12, 16, 16, 24, 24), "stem_width": 8}
        elif variant["family"] == "fastnet":
            arch |= {"widths": (16, 24, 32)}
        else:
            stages = len(arch["layers"])
            widths = (64, 64, 64, 64) if arch.get("groups") == 64 else (16, 32, 48, 64)
            arch |= {"layers": (2, 1, 1, 1)[:stages], "widths": widths[:stages]}
        found.setdefault(repr((arch, variant["gate"])), (name, variant["family"], {**arch, "gate": variant["gate"]}))
    return {name: (family, arch) for name, family, arch in found.values()}


FAMILIES = families()


def randomise(model):
    """Batch norms that do something in evaluation, and gates that are not all alike."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, Gate):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0, 0.5)
    return model.eval()


def family(name):
    kind, arch = FAMILIES[name]
    torch.manual_seed(0)
    build = {"tf_seresnet": TFSEResNet, "efficientnet_lite": EfficientNetLite, "fastnet": FastNet}.get(kind, ResNet)
    return randomise(build(**arch, num_classes=7, image_size=(32, 28)))


def net(block="bottleneck", **options):
    torch.manual_seed(0)
    options = {"layers": (2, 2), "widths": (16, 32), "num_classes": 7, "image_size": (32, 28), **options}
    return randomise(ResNet(block=block, **options))


def images(n=3, channels=3, size=(32, 28)):
    torch.manual_seed(2)
    return torch.randn(n, channels, *size)


def reference(model, x):
    """In float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def error(logits, truth):
    return float((logits.detach().double() - truth).norm() / truth.norm())


def autocast_logits(model, x, dtype=torch.bfloat16):
    model = copy.deepcopy(model).to(memory_format=CHANNELS_LAST)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        return model(x.contiguous(memory_format=CHANNELS_LAST)).float()


def test_the_families_are_those_of_the_catalogue():
    assert len(VARIANTS) >= 87
    assert len(FAMILIES) == 48  # 9 bodies with 5 gates each, ResNeXt-101, SENet-154 and the TensorFlow net


@pytest.mark.parametrize("name", list(FAMILIES))
def test_logits_of_every_family(name):
    # Maxima over few positions are of one value each: of 4 images alone, the ratio of the errors is 0.8 to 2.3.
    model, x = family(name), images(64 if "fastnet" in name else 4)
    truth = reference(model, x)
    limit = 2 * error(autocast_logits(model, x), truth)
    for portable in (False, True):
        assert error(fold(model, dtype=torch.float64, portable=portable)(x), truth) < 1e-10
        folded = fold(model, portable=portable)
        logits = folded(x)
        assert error(logits, truth) < 1e-5
        assert logits.dtype is torch.float32
        assert not logits.requires_grad
        assert {p.dtype for p in folded.parameters()} == {torch.float32}
        logits = fold(model, dtype=torch.bfloat16, portable=portable)(x)
        assert 0 < error(logits, truth) <= limit
        assert logits.dtype is torch.float32


@pytest.mark.parametrize("position", ["standard", "post"])
@pytest.mark.parametrize("negative", [False, True])
def test_a_norm_behind_a_maximum_is_folded_only_if_the_maximum_stays_where_it_is(negative, position):
    torch.manual_seed(0)
    gated = FastNet(widths=(16, 24, 32), depth=3, gate={"name": "se"}, gate_position=position, image_size=(32, 28))
    model, x = randomise(gated), images(4)
    if negative:
        with torch.no_grad():
            model.layer2[0].bn1.weight[3] = -0.7
    folded = fold(model, dtype=torch.float64)
    assert [each[0].behind is None for each in folded.net.stages()] == [True, not negative, True]
    assert error(folded(x), reference(model, x)) < 1e-10


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_gate_at_every_position(position, gate):
    model, x = (
        net(gate=gate, gate_position=position, layers=(2,), widths=(16,), image_size=(20, 18)),
        images(4, size=(20, 18)),
    )
    truth = reference(model, x)
    assert error(fold(model, dtype=torch.float64)(x), truth) < 1e-10
    assert error(fold(model, dtype=torch.float64, portable=True)(x), truth) < 1e-10
    assert error(fold(model)(x), truth) < 1e-5
    assert error(fold(model, dtype=torch.bfloat16)(x), truth) <= 2 * error(autocast_logits(model, x), truth)


@pytest.mark.parametrize("gate", [{"name": "se"}, {"name": "ge", "variant": "theta", "extent": 2}], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("block", ["pre_bottleneck", "basic", "pre_basic"])
def test_every_position_in_every_block(block, position, gate):
    model, x = net(block, gate=gate, gate_position=position, layers=(2, 1)), images()
    truth = reference(model, x)
    assert error(fold(model, dtype=torch.float64)(x), truth) < 1e-10
    assert error(fold(model)(x), truth) < 1e-5


@pytest.mark.parametrize("block", ["bottleneck", "pre_bottleneck", "basic", "pre_basic"])
@pytest.mark.parametrize(
    "options",
    [
        {"stem": "conv3x3x3", "max_pool": "ceil", "down_kernel": 3, "stride_on": "conv1"},
        {"stem": "cifar", "stem_width": 16, "shortcut": "pad"},
        {"num_classes": 0, "in_chans": 1, "drop_rate": 0.5, "drop_path_rate": 0.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_options(block, options):
    model, x = net(block, gate="se", **options), images(channels=options.get("in_chans", 3))
    assert error(fold(model, dtype=torch.float64)(x), reference(model, x)) < 1e-10


def test_the_batch_norms_are_gone_but_for_those_in_front():
    count = lambda model: sum(isinstance(m, _BatchNorm) for m in model.modules())  # noqa: E731
    assert count(fold(net())) == 0
    assert count(fold(net(gate="se", stem="conv3x3x3"))) == 0
    assert count(fold(net("pre_bottleneck"))) == 5  # four blocks' first, and the net's last
    model = family("cifar_seresnet110_tf")
    assert count(fold(model)) == count(model)


def test_a_norm_without_fixed_statistics_stays():
    model, x = net(), images()
    block = model.layer2[0]
    block.bn2 = nn.BatchNorm2d(block.bn2.num_features, track_running_stats=False).eval()
    block.downsample[1] = nn.GroupNorm(4, block.downsample[1].num_features).eval()
    block.bn1 = nn.BatchNorm2d(block.bn1.num_features, affine=False).eval()
    folded = fold(model, dtype=torch.float64)
    assert error(folded(x), reference(model, x)) < 1e-10
    assert isinstance(folded.net.layer2[0].conv2.norm, nn.BatchNorm2d)
    assert folded.net.layer2[0].conv1.norm is None


def test_the_original_is_left_as_it_is():
    model, x = net(gate="se"), images()
    before, text = copy.deepcopy(model.state_dict()), str(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    folded = fold(model)
    folded(x)
    assert str(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    own = {t.data_ptr() for t in model.state_dict().values()}
    assert not own & {t.data_ptr() for t in folded.state_dict().values()}
    assert not any(p.requires_grad or p.grad is not None for p in folded.parameters())


def test_mistakes_are_told_in_a_sentence():
    model = net()
    with pytest.raises(ExciteError, match=r"call model\.eval\(\) first"):
        fold(net().train())
    with pytest.raises(ExciteError, match="takes a model from create_model, not a Linear"):
        fold(nn.Linear(2, 2).eval())
    with pytest.raises(ExciteError, match=r"dtype is torch\.int8; choose one of torch\.float64"):
        fold(model, dtype=torch.int8)
    folded = fold(model)
    assert not any(module.training for module in folded.modules())
    with pytest.raises(ExciteError, match="already folded"):
        fold(folded)
    with pytest.raises(ExciteError, match="no batch norms to train"):
        folded.train()
    with pytest.raises(ExciteError, match=r"fold\(model, dtype=\.\.\.\)"):
        folded.half()
    with pytest.raises(ExciteError, match="no gradients"):
        folded(images().requires_grad_())
    assert "FoldedConv(16, 64, kernel_size=(1, 1), stride=(1, 1), relu)" in str(folded.eval())


def test_portable_has_the_gradients_of_the_input():
    model = net(gate="se").double()
    x, y = (images().double().requires_grad_() for _ in range(2))
    model(x).square().sum().backward()
    fold(model, portable=True)(y).square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)


def test_other_sizes_batches_and_layouts_through_one_fold():
    model = net(gate="se")
    folded = fold(model, dtype=torch.float32)
    for n, size in [(1, (32, 28)), (5, (32, 28)), (2, (33, 64)), (1, (32, 28)), (0, (32, 28))]:
        x = images(n, size=size)
        for given in (x, x.contiguous(memory_format=CHANNELS_LAST), x.double()):
            logits = folded(given)
            assert logits.shape == (n, 7)
            if n:
                assert error(logits, reference(model, x)) < 1e-5


@pytest.mark.parametrize("block", ["bottleneck", "basic", "pre_basic"])
@pytest.mark.parametrize("gate", [None, "se"])
def test_features(block, gate):
    """Of the CIFAR stem, too, whose map is the first block's shortcut: nothing may overwrite it."""
    model, x = net(block, gate=gate, stem="cifar", stem_width=16, layers=(2, 2)).double(), images().double()
    folded = fold(model)
    with torch.no_grad():
        pairs = [(folded.forward_features(x), model.forward_features(x))]
        pairs += zip(folded.forward_intermediates(x), model.forward_intermediates(x), strict=True)
        map_ = model.forward_features(x)
        pairs.append((folded.forward_head(map_), model.forward_head(map_)))
        pairs.append((folded.forward_head(map_, pre_logits=True), model.forward_head(map_, pre_logits=True)))
        model.select_features((0, 2))
        features = fold(model)
        pairs += zip(features(x), model(x), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
    assert [f["num_chs"] for f in features.feature_info] == [m.shape[1] for m in model(x)]
    assert all(features.net.get_submodule(f["module"]) is not None for f in features.feature_info)


@needs_fused
@pytest.mark.parametrize("gate", [None, "se"])
def test_hooks_see_maps_that_nothing_overwrites(gate):
    folded, seen = fold(net(gate=gate)), []
    for block in [*folded.net.layer1, *folded.net.layer2]:
        block.register_forward_hook(lambda module, given, out: seen.append((out, out.clone())))
    folded(images())
    assert len(seen) == 4
    assert all(torch.equal(out, copied) for out, copied in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_pickles_and_state_dicts(dtype):
    model, x = net(gate="se"), images()
    folded = fold(model, dtype=dtype)
    logits = folded(x)  # by now weights are packed
    assert torch.equal(copy.deepcopy(folded)(x), logits)
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x), logits)
    other = fold(randomise(net(gate="se", init="he_uniform")), dtype=dtype)
    assert not torch.equal(other(x), logits)
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other(x), logits)
    other.to("cpu").to(memory_format=CHANNELS_LAST)
    assert torch.equal(other(x), logits)
    assert all(value.dtype.is_floating_point for value in folded.state_dict().values())


def test_autocast_and_inference_mode_change_nothing():
    model, x = net(gate={"name": "ge", "variant": "theta_plus"}), images()
    folded = fold(model)
    logits = folded(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(folded(x), logits)
    with torch.inference_mode():
        assert torch.equal(folded(x), logits)
        assert torch.equal(fold(model)(x), logits)


def test_a_model_that_is_half_precision_already():
    model, x = net(gate="se").to(torch.bfloat16), images()
    folded = fold(model)
    assert folded.dtype is torch.bfloat16
    assert error(folded(x), reference(model, x)) <= 2 * error(model(x.bfloat16()), reference(model, x))


def test_float16():
    model, x = net(gate="se"), images()
    for portable in (False, True):
        assert error(fold(model, dtype=torch.float16, portable=portable)(x), reference(model, x)) < 2**-9


@needs_fused
@pytest.mark.parametrize("portable", [False, True])
def test_fused_convolutions_run_where_they_are_wanted(portable):
    folded, x = fold(net(), portable=portable), images()
    folded(x)
    with profile() as profiler:
        folded(x)
    names = {event.key for event in profiler.key_averages()}
    assert ("mkldnn::_convolution_pointwise" in names) is not portable
    assert ("aten::relu" in names) is portable


def test_without_fused_convolutions_and_kernels(monkeypatch):
    model, x = net(gate="se"), images()
    monkeypatch.setattr(folding, "_fused_convolutions", lambda dtype: False)
    monkeypatch.setattr(folding.native, "takes", lambda *maps: False)
    truth = reference(model, x)
    assert error(fold(model)(x), truth) < 1e-5
    assert error(fold(model, dtype=torch.bfloat16)(x), truth) <= 2 * error(autocast_logits(model, x), truth)


def test_weights_that_are_not_finite_are_not_hidden():
    """oneDNN's ReLU makes a zero of a NaN."""
    for gate in (None, "se"):
        model = net(gate=gate)
        with torch.no_grad():
            model.layer1[0].conv2.weight[0, 0, 0, 0] = torch.nan
            model.layer2[1].conv1.weight[0, 0, 0, 0] = torch.nan
        assert torch.equal(fold(model)(images()).isnan(), model(images()).isnan())


@pytest.mark.parametrize("gate", [None, "se", {"name": "ge", "variant": "theta_plus"}], ids=str)
def test_portable_is_made_of_aten_operators_for_export(gate):
    model, x = net(gate=gate, layers=(2,), widths=(16,)), images()
    folded = fold(model, portable=True)
    program = torch.export.export(folded, (x,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in called} == {"aten"}
    assert not any("batch_norm" in str(target) for target in called) or gate not in (None, "se")
    assert error(program.module()(x), reference(model, x)) < 1e-5


def test_compiles_as_one_graph():
    model, x = net(gate="se", layers=(2,), widths=(16,)), images()
    compiled = torch.compile(fold(model), backend="eager", fullgraph=True)
    assert error(compiled(x), reference(model, x)) < 1e-5


@pytest.mark.parametrize("name", ["seresnet50", "cifar_sepreresnet110", "cifar_seresnet110_tf"])
def test_traces(name):
    model, x = family(name), images()
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, torch.jit.TracerWarning):
            warnings.simplefilter("ignore", kind)
        traced = torch.jit.trace(fold(model, portable=True), images(2).contiguous(memory_format=CHANNELS_LAST))
        with pytest.raises(ExciteError, match=r"trace fold\(model, portable=True\)"):
            torch.jit.trace(fold(model), images(2))
    assert error(traced(x), reference(model, x)) < 1e-5


def test_a_whole_model_by_name():
    model = randomise(create_model("cifar_seresnet20", image_size=20))
    x = images(4, size=(20, 20))
    folded = excite.fold(model, dtype=torch.bfloat16)
    assert folded.input_size == (3, 20, 20)
    assert (folded.model_name, folded.num_classes) == ("cifar_seresnet20", 10)
    assert error(folded(x), reference(model, x)) <= 2 * error(autocast_logits(model, x), reference(model, x))


@pytest.mark.parametrize("place", ["layer3.1.bn1", "layer2.0.bn1", "layer1.0.bn2"])
def test_maps_that_overflow_look_no_sounder_folded(place):
    """oneDNN's ReLU makes a zero of a NaN: an ungated network would have an answer where unfolded it has none."""
    net = create_model("cifar_resnet20").eval()
    net.get_submodule(place).weight.data *= 3e37
    assert all(v.isfinite().all() for v in net.state_dict().values())
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert not net(x).isfinite().all(1).any()
        assert not fold(net)(x).isfinite().all(1).any()
        sound = fold(create_model("cifar_resnet20").eval())
    assert not any(
        module.portable for module in sound.modules() if isinstance(module, folding.FoldedConv)
    )  # and as fast
