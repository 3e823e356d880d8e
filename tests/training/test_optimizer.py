"""Parameter groups, freezing, layer-wise decay, the fp16 loss scale, the moving average."""

import copy

import pytest
import torch
from torch import nn

from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import OptimizerConfig
from excite.training.ema import Ema
from excite.training.optimizer import LossScaler, freeze, layer_depths, make_optimizer, parameter_groups
from tests.training.small import small


def test_norms_and_biases_may_go_undecayed():
    model = create_model("cifar_seresnet20")
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1, decay_norm_and_bias=False))
    found = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, decay in found.items():
        is_matrix = name.endswith("weight") and "bn" not in name
        assert decay == (0.1 if is_matrix else 0.0), name
    assert len(parameter_groups(model, OptimizerConfig(weight_decay=0.1))) == 1


def test_layer_decay_falls_block_by_block_from_the_head():
    model = create_model("cifar_resnet20")
    depths = layer_depths(model)
    assert depths["conv1.weight"] == depths["bn1.bias"] == 0
    assert depths["layer1.0.conv1.weight"] == 1
    assert depths["layer3.2.bn2.weight"] == 9
    assert depths["fc.bias"] == 10
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5))
    assert sorted({g["lr_scale"] for g in groups}) == [0.5**k for k in range(10, -1, -1)]
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert {scales[n] for n in scales if n.startswith("fc.")} == {1.0}  # the head learns as fast as ever
    assert scales["layer3.2.conv2.weight"] == 0.5
    assert scales["layer1.0.conv1.weight"] == 0.5**9
    assert scales["conv1.weight"] == 0.5**10


def test_freeze_takes_patterns_and_keeps_statistics():
    model = create_model("cifar_seresnet20")
    norms = freeze(model, ["conv1", "bn1", "layer1*"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("conv1", "bn1", "layer1"))}
    assert len(norms) == 1 + 6
    with pytest.raises(ExciteError, match="no parameter matches 'layer9'; did you mean 'layer"):
        freeze(model, ["layer9"])
    with pytest.raises(ExciteError, match="nothing is left to train"):
        freeze(model, ["*"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion"])
def test_optimizers_reduce_a_loss(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.05))
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    losses = []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ["sgd", "SGD", "adamw", "AdamW", "lion"])
def test_what_a_recipe_says_reaches_the_optimizer(name):
    config = OptimizerConfig(
        name=name, lr=0.3, weight_decay=0.07, momentum=0.6, betas=[0.5, 0.6], nesterov=True, decay_norm_and_bias=False
    )
    optimizer = make_optimizer(nn.Linear(4, 1), config)
    [matrix, vector] = sorted(optimizer.param_groups, key=lambda group: -group["params"][0].ndim)
    assert type(optimizer).__name__.lower() == name.lower()
    assert (matrix["lr"], matrix["weight_decay"]) == (0.3, 0.07)
    assert vector["weight_decay"] == 0.0
    if name.lower() == "sgd":
        assert (matrix["momentum"], matrix["nesterov"], matrix["fused"]) == (0.6, True, True)
        assert all(not s["momentum_buffer"].any() for s in optimizer.state.values())
        assert len(optimizer.state) == 2
    else:
        assert tuple(matrix["betas"]) == (0.5, 0.6)
        assert matrix.get("fused", True)
    if name == "lion":
        said = OptimizerConfig(name=name, lr=0.3, options={"betas": [0.1, 0.2]})
        assert list(make_optimizer(nn.Linear(4, 1), said).param_groups[0]["betas"]) == [0.1, 0.2]


def test_what_is_at_the_head_has_its_depth():
    model = create_model("cifar_preresnet110")  # a last norm behind the blocks
    depths = layer_depths(model)
    last = max(depths.values())
    assert last == 1 + len({n for n, _ in model.named_modules() if n.startswith("layer") and n.count(".") == 1})
    for name, depth in depths.items():
        assert (depth == 0) == (not name.startswith(("layer", "fc.", "norm"))), name
        assert (depth == last) == (not name.startswith("layer") and depth != 0), name


def test_fused_sgd_is_the_plain_formula_on_channels_last_weights():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 3).double().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    config = OptimizerConfig(lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimizer, buffers = make_optimizer(model, config), [torch.zeros_like(p) for p in plain.parameters()]
    for _ in range(3):
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        for net in (model, plain):
            net.zero_grad()
            net(x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            for p, b in zip(plain.parameters(), buffers, strict=True):
                g = p.grad + 0.01 * p
                b.mul_(0.9).add_(g)
                p.sub_(0.001 * (g + 0.9 * b))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_wrong_optimizers_are_explained():
    model = nn.Linear(2, 2)
    with pytest.raises(ExciteError, match="there is no 'adamww'; did you mean 'adamw'"):
        make_optimizer(model, OptimizerConfig(name="adamww"))
    with pytest.raises(ExciteError, match=r"optimizer sgd: .*unknown_thing"):
        make_optimizer(model, OptimizerConfig(options={"unknown_thing": 1}))
    with pytest.raises(ExciteError, match="optimizer sgd: Nesterov"):
        make_optimizer(model, OptimizerConfig(momentum=0.0, nesterov=True))


@pytest.mark.parametrize(("scale", "after"), [("dynamic", 512.0), (1024.0, 1024.0)])
def test_an_overflow_skips_the_step_and_is_counted(scale, after):
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    config = small(f"loss_scale={scale}", "loss_scale_init=1024.0", "loss_scale_growth_interval=2").train
    optimizer, scaler = make_optimizer(model, OptimizerConfig(lr=1.0)), LossScaler("cpu", config, enabled=True)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1e38)  # times 1024 overflows float32
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert (scaler.skipped.item(), scaler.get_scale()) == (1, after)
    step(1e-3)
    step(1e-3)
    assert not torch.equal(before["weight"], model.weight)
    assert (scaler.skipped.item(), scaler.get_scale()) == (1, 1024.0)  # dynamic: grown back after two good steps
    other = LossScaler("cpu", config, enabled=True)
    other.load_state_dict(scaler.state_dict())
    assert (other.skipped.item(), other.get_scale()) == (1, 1024.0)


def tensorflow_scales(overflows, scale, incr_every, decr_every):
    """ExponentialUpdateLossScaleManager of tf.contrib.mixed_precision, in its own terms: the scale after each step."""
    good = bad = 0
    scales = []
    for overflow in overflows:
        if not overflow:
            good += 1
            if good >= incr_every:
                scale, good, bad = scale * 2, 0, 0
        elif bad + 1 >= decr_every:
            scale, good, bad = max(1.0, scale * 0.5), 0, 0
        else:
            bad, good = bad + 1, 0
        scales.append(scale)
    return scales


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_the_loss_scale_waits_for_as_many_overflows_as_tensorflows(hysteresis):
    """Overflows need not follow each other; a resumed scaler goes on counting."""
    options = ["loss_scale_init=4294967296.0", "loss_scale_growth_interval=4", f"loss_scale_hysteresis={hysteresis}"]
    config = small(*options).train
    model = nn.Linear(2, 2)
    optimizer, scaler = make_optimizer(model, OptimizerConfig(lr=0.1)), LossScaler("cpu", config, enabled=True)
    generator = torch.Generator().manual_seed(0)
    overflows = [*(torch.rand(60, generator=generator) < 0.35).tolist(), *([True] * 6), *([False] * 12)]
    scales = []
    for overflow in overflows:
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum() * (float("inf") if overflow else 1e-3)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before["weight"], model.weight) == overflow
        scales.append(scaler.get_scale())
        state, scaler = scaler.state_dict(), LossScaler("cpu", config, enabled=True)
        scaler.load_state_dict(state)
    assert scales == tensorflow_scales(overflows, 2.0**32, 4, hysteresis)
    assert scaler.skipped.item() == sum(overflows)


def test_a_fixed_scale_knows_no_hysteresis():
    config = small("loss_scale=256.0", "loss_scale_hysteresis=2").train
    model = nn.Linear(2, 2)
    optimizer, scaler = make_optimizer(model, OptimizerConfig()), LossScaler("cpu", config, enabled=True)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 256.0


@pytest.mark.parametrize("fp16", [False, True])  # where a step may be skipped, which only the device knows
def test_ema_follows_weights_and_statistics(fp16):
    model = create_model("cifar_resnet20")
    ema = Ema(model, 0.3)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(6):  # 1/10, 2/11, 3/12, then 0.3
        for tensor in model.state_dict().values():
            tensor.add_(1)
        skipped = fp16 and step in (0, 4)
        decay = 1.0 if skipped else min(0.3, (1 + step) / (10 + step))
        for k, v in model.state_dict().items():
            expected[k] = decay * expected[k] + (1 - decay) * v if v.is_floating_point() else v.clone()
        ema.update(model, step, torch.tensor(float(skipped)) if fp16 else None)
    for k, v in ema.module.state_dict().items():
        torch.testing.assert_close(v, expected[k])
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert model.training
    assert not any(m.training for m in ema.module.modules())
