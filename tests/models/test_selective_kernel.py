"""Selective kernels: the unit against its formula, blocks and nets that have it."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates import Gate
from excite.models import activation, create_model, describe, model_options, selective_kernel
from excite.models.blocks import BasicBlock, BlockOptions, Bottleneck
from excite.models.selective_kernel import SelectiveKernel


def unit(channels=(8, 12), dtype=torch.float64, **options):
    torch.manual_seed(0)
    made = SelectiveKernel(*channels, **options).to(dtype).eval()
    for name, value in made.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bn.bias")) or name.startswith("fc"):
            value.normal_()
    return made


def convolved(x, kernel, dilation, stride, groups):
    """A "same" cross-correlation by loops over the kernel."""
    n, _, height, width = x.shape
    size, reach = kernel.shape[-1], kernel.shape[-1] // 2 * dilation
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    per_in, per_out = x.shape[1] // groups, kernel.shape[0] // groups
    out = np.zeros((n, kernel.shape[0], -(-height // stride), -(-width // stride)))
    for g in range(groups):
        ins, outs = slice(g * per_in, (g + 1) * per_in), slice(g * per_out, (g + 1) * per_out)
        for i in range(size):
            for j in range(size):
                seen = padded[:, ins, i * dilation :, j * dilation :][:, :, :height:stride, :width:stride]
                out[:, outs] += np.einsum("nchw,oc->nohw", seen, kernel[outs, :, i, j])
    return out


def normalised(z, w, name):
    shape = (1, -1, *[1] * (z.ndim - 2))
    mean, variance, weight, bias = (
        w[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (z - mean) / np.sqrt(variance + 1e-5) * weight + bias


def by_formula(w, x, paths, *, stride=1, groups=1, split=False):
    """Equations 1 to 6 of the paper. ``paths``: (kernel, dilation) of each."""
    parts = np.split(x, len(paths), 1) if split else [x] * len(paths)
    maps = []
    for m, (part, (size, dilation)) in enumerate(zip(parts, paths, strict=True)):
        kernel = w[f"paths.{m}.conv.weight"]
        assert kernel.shape[-1] == size
        z = convolved(part, kernel, dilation, stride, groups)
        maps.append(np.maximum(normalised(z, w, f"paths.{m}.bn"), 0))
    squeezed = sum(maps).mean((2, 3))
    hidden = np.maximum(normalised(squeezed @ w["fc1.weight"].T, w, "bn"), 0)
    channels = squeezed.shape[1]
    logits = [hidden @ w["fc2.weight"][m * channels : (m + 1) * channels].T for m in range(len(paths))]
    total = sum(np.exp(z) for z in logits)
    return sum((np.exp(z) / total)[:, :, None, None] * u for z, u in zip(logits, maps, strict=True))


@pytest.mark.parametrize(
    ("options", "paths", "formula"),
    [
        ({}, [(3, 1), (3, 2)], {}),
        ({"stride": 2, "groups": 4}, [(3, 1), (3, 2)], {"stride": 2, "groups": 4}),
        ({"dilated": False}, [(3, 1), (5, 1)], {}),
        ({"kernel_sizes": [1, 3, 7], "min_width": 4, "reduction": 2}, [(1, 1), (3, 1), (3, 3)], {}),
        ({"split_input": True, "stride": 2}, [(3, 1), (3, 2)], {"split": True, "stride": 2}),
    ],
    ids=str,
)
def test_the_unit_is_the_papers(options, paths, formula):
    made = unit(**options)
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    w = {name: value.numpy() for name, value in made.state_dict().items()}
    expected = torch.from_numpy(by_formula(w, x.numpy(), paths, **formula))
    for given in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(made(given).detach(), expected)


def test_gradients():
    made = unit((4, 4), min_width=2).train()

    def run(x, *_):
        return made(x)

    x = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *made.parameters()))


@pytest.mark.parametrize("paths", [2, 3])
def test_parameters_of_the_choice(paths):
    made = SelectiveKernel(64, 256, kernel_sizes=[3, 5, 7][:paths], reduction=4)
    choice = sum(p.numel() for name, p in made.named_parameters() if not name.startswith("paths."))
    assert choice == (paths + 1) * 256 * 64 + 2 * 64
    assert SelectiveKernel(8, 64).fc1.out_features == 32  # 64 / 16 is 4, but L is 32
    assert SelectiveKernel(8, 1024).fc1.out_features == 64


@pytest.mark.parametrize(("name", "params", "gmacs"), [("sknet50", 27.5e6, 4.47), ("sknet101", 48.9e6, 8.46)])
def test_the_nets_have_the_size_that_the_paper_gives(name, params, gmacs):
    """Table 2. SKNet-101 is 0.3 % smaller than printed; SKNet-50 and both GFLOPs agree but for rounding and norms."""
    told = describe(name)
    assert told["params"] == pytest.approx(params, rel=0.004)
    assert told["gmacs"] == pytest.approx(gmacs, rel=0.002)
    assert told["gate"] is None


def test_a_block_is_what_it_was_but_for_its_3x3():
    """1x1, unit, 1x1, addition, ReLU; and in basic blocks the unit comes first."""
    options = BlockOptions(selective_kernel={"min_width": 4}, groups=2)
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    for kind, planes in ((Bottleneck, 8), (BasicBlock, 16)):
        block = kind(16, planes, 2, (6, 5), options).double().eval()
        side = block.downsample(x)
        if kind is Bottleneck:
            assert {path[0].groups for path in block.conv2.paths} == {2}
            y = block.bn3(block.conv3(block.conv2(F.relu(block.bn1(block.conv1(x))))))
        else:
            y = block.bn2(block.conv2(block.conv1(x)))
        torch.testing.assert_close(block(x), F.relu(y + side))


@pytest.mark.parametrize("stride_on", ["conv1", "conv2"])
def test_the_stride_may_be_the_units_or_not(stride_on):
    with torch.device("meta"):
        model = create_model("resnet50", block_conv="sk", stride_on=stride_on)
        out = model.eval()(torch.empty(1, 3, 224, 224))
    assert out.shape == (1, 1000)
    strides = {path[0].stride[0] for path in model.layer2[0].conv2.paths}
    assert strides == {2 if stride_on == "conv2" else 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet20", {"block_conv": "sk", "gate": "eca"}),
        ("cifar_resnet20", {"block_conv": {"name": "sk", "reduction": 8, "min_width": 16, "split_input": True}}),
        ("cifar_seresnet20", {"block_conv": {"name": "sk", "kernel_sizes": [3, 5, 7]}, "zero_init_last_gamma": True}),
    ],
    ids=str,
)
def test_nets_train_copy_and_are_built_again(name, options):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, image_size=16, **options).double()
    x, y = torch.randn(2, 3, 16, 16, dtype=torch.float64).to(memory_format=torch.channels_last), torch.tensor([0, 1])
    forms = [model, copy.deepcopy(model)]
    losses = []
    for net, fused in zip(forms, ("off", "on"), strict=True):
        net.set_fused(fused)
        assert {m.fused for m in net.modules() if isinstance(m, SelectiveKernel)} == {fused}
        losses.append(F.cross_entropy(net(x), y))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    units = [m for m in model.modules() if isinstance(m, SelectiveKernel)]
    assert len(units) == sum(len(stage) for stage in model.stages())
    assert all(p.grad is not None for p in model.parameters())
    assert bool([m for m in model.modules() if isinstance(m, Gate)]) == ("gate" in options or "se" in name)
    again = create_model(model.model_name, **json.loads(json.dumps(model.model_args))).double()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize("fused", ["off", "on"])
def test_norms_and_products_run_in_the_chosen_form(fused, monkeypatch):
    asked = []

    def listening(function):
        def run(*args, fused="auto", **kwargs):
            asked.append(fused)
            return function(*args, fused=fused, **kwargs)

        return run

    for module, name in ((activation, "norm_excite_residual"), (selective_kernel, "excite_residual")):
        monkeypatch.setattr(module, name, listening(getattr(module, name)))
    made = unit()
    made.fused = fused
    made(torch.randn(2, 8, 7, 6, dtype=torch.float64))
    assert asked == [fused] * 4  # two paths, two products


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    made = unit(dtype=torch.float32)
    x = torch.randn(2, 8, 7, 6)
    with torch.autocast("cpu", dtype=dtype):
        out = made(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), made(x), atol=0.2, rtol=0.05)


def test_fp16_autocast_survives_a_squeeze_beyond_float16():
    """Weights of either sign times a large mean: in float16, infinities of both signs, whose sum is no number."""
    made = unit((8, 64), dtype=torch.float32)
    with torch.no_grad():
        for dense in (made.fc1, made.fc2):
            dense.weight.copy_(torch.randn_like(dense.weight).sign() * 3000)
        x = torch.randn(2, 8, 7, 6) * 30
        with torch.autocast("cpu", dtype=torch.float16):
            out = made(x)
    assert out.isfinite().all()


def test_one_graph():
    made = unit(dtype=torch.float32)
    x = torch.randn(2, 8, 7, 6)
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), made(x))


@pytest.mark.parametrize(
    ("name", "block_conv", "message"),
    [
        ("resnet50", "skk", "block_conv must be 'sk' or a table with name: sk"),
        ("resnet50", {"reduction": 8}, "block_conv must be 'sk' or a table with name: sk"),
        ("resnet50", {"name": "sk", "reducton": 8}, "no option 'reducton'; did you mean 'reduction'"),
        ("resnet50", {"name": "sk", "stride": 2}, "no option 'stride'"),
        ("resnet50", {"name": "sk", "kernel_sizes": [3]}, "two or more odd whole numbers"),
        ("resnet50", {"name": "sk", "kernel_sizes": [3, 4]}, "two or more odd whole numbers"),
        ("resnet50", {"name": "sk", "min_width": 0}, "min_width must be"),
        (
            "resnet50",
            {"name": "sk", "kernel_sizes": [3, 5, 7], "split_input": True},
            "64 channels cannot be split into 3",
        ),
        ("cifar_preresnet110", "sk", "no option 'block_conv'"),
        ("cifar_seresnet110_tf", "sk", "no option 'block_conv'"),
    ],
    ids=str,
)
def test_mistakes(name, block_conv, message):
    with pytest.raises(ExciteError, match=message), torch.device("meta"):
        create_model(name, block_conv=block_conv)


def test_the_option_is_listed():
    assert "block_conv" in model_options("resnet50")
    assert "block_conv" in model_options("cifar_seresnet20")
    assert "block_conv" not in model_options("cifar_wrn16_8")
