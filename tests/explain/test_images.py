"""What is said about one image."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.explain import collect_scales, explain_image, listening
from excite.explain.image_figure import draw_image
from excite.explain.images import GateAnswer, grad_cam, last_map


def test_an_image_against_the_data(predictor, batches, photo):
    statistics = collect_scales(predictor, batches)
    found = explain_image(predictor, photo, statistics, top_k=3)
    expected = next(predictor.predict([photo], top_k=3)).top
    assert [name for name, _ in found.top] == [name for name, _ in expected]
    assert [value for _, value in found.top] == pytest.approx([value for _, value in expected])
    assert found.target == found.top[0][0]
    assert found.cam.shape == (8, 8)
    scales = {}
    with listening(predictor.model, scales.__setitem__):
        predictor.logits(predictor.preprocessing.load(photo)[None])
    told = False
    for name, answer in found.gates.items():
        assert torch.equal(answer.scale, scales[name][0])
        expected = scales[name][0].double() - statistics[name].overall_mean()
        assert torch.allclose(answer.difference.double(), expected, atol=1e-6)
        order = expected.argsort(descending=True).tolist()
        raised, lowered = answer.extremes(2)
        assert [each["channel"] for each in raised] == [c for c in order[:2] if expected[c] > 0]
        assert [each["channel"] for each in lowered] == [c for c in order[::-1][:2] if expected[c] < 0]
        told = told or bool(raised and lowered)  # a gate may be constant, but not all of them
        sd = statistics[name].overall_sd()
        for each in (*raised, *lowered):
            c = each["channel"]
            assert each["deviations"] == pytest.approx(float(expected[c] / sd[c]) if sd[c] > 1e-6 else 0.0, rel=1e-5)
    assert told


def test_the_map_is_of_the_class_that_was_asked_for(predictor, photo):
    pixels = predictor.preprocessing.load(photo)[None]
    x = predictor.preprocessing.normalize(pixels).contiguous(memory_format=torch.channels_last)
    maps = []
    for number, name in enumerate(predictor.classes):
        found = explain_image(predictor, photo, target=name)
        assert found.target == name
        assert torch.equal(found.cam, grad_cam(predictor.model, found.layer, x, number))
        maps.append(found.cam)
    assert len({tuple(each.flatten().tolist()) for each in maps}) > 1  # so that it matters


def test_only_raised_channels_are_called_raised():
    answer = GateAnswer(torch.tensor([0.5, 0.6]), torch.tensor([-0.2, -0.1]), torch.tensor([-1.0, -2.0]), None)
    raised, lowered = answer.extremes(2)
    assert raised == []
    assert [each["channel"] for each in lowered] == [0, 1]


def test_grad_cam_is_the_formula_of_the_paper(predictor):
    """Weights: gradients averaged over positions; then the ReLU of the weighted sum of maps."""
    model = predictor.model
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert last_map(model, x) == "layer3"
    kept = []
    hook = model.layer3[2].register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, 4], kept[0])
    plain = F.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)).detach()
    plain = F.interpolate(plain, size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
    found = grad_cam(model, "layer3.2", x, 4)
    assert torch.allclose(found, plain / plain.max().clamp(min=1e-12), atol=1e-5)
    assert torch.equal(grad_cam(model, "layer3", x, 4), found), "a stage gives the map of its last block"
    assert any(float(grad_cam(model, "layer3.2", x, k).max()) > 0.99 for k in range(10))


def test_grad_cam_of_frozen_weights(predictor):
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = grad_cam(predictor.model, "layer2.0", x, 1)
    predictor.model.requires_grad_(False)
    assert torch.allclose(grad_cam(predictor.model, "layer2.0", x, 1), expected, atol=1e-6)


def test_layers_that_grad_cam_cannot_look_at(predictor, photo):
    with pytest.raises(ExciteError, match=r"no layer 'layer3.9'; did you mean"):
        explain_image(predictor, photo, layer="layer3.9")
    with pytest.raises(ExciteError, match="'fc': it does not output a map"):
        explain_image(predictor, photo, layer="fc")
    predictor.model.aside = nn.Conv2d(1, 1, 1)
    with pytest.raises(ExciteError, match="'aside': it is not called as a module"):
        explain_image(predictor, photo, layer="aside")
    with pytest.raises(ExciteError, match="no module of the network outputs a map"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(1, 1, 2, 2))


def test_gates_that_weigh_positions_become_maps(predictor, photo, tmp_path):
    import excite

    torch.manual_seed(0)
    predictor.model = excite.create_model(
        "cifar_resnet20", gate={"name": "ge", "variant": "theta", "extent": 2}, in_chans=1, image_size=8
    ).eval()
    found = explain_image(predictor, photo)
    scales = {}
    with listening(predictor.model, scales.__setitem__):
        predictor.logits(predictor.preprocessing.load(photo)[None])
    sides = {name: tuple(answer.positions.shape) for name, answer in found.gates.items()}
    assert sides["layer1.0.gate"] == (8, 8)
    assert sides["layer3.2.gate"] == (2, 2)
    for name, answer in found.gates.items():
        assert torch.allclose(answer.positions, scales[name][0].mean(0))
        assert torch.allclose(answer.scale, scales[name][0].mean((1, 2)))
    text = draw_image(found, tmp_path / "image.svg").read_text()
    # Picture, Grad-CAM, classes, channels; six maps, each with a bar of its colours.
    assert text.count('<g id="axes_') == 4 + 2 * 6
    assert text.count(": mean scale") == 6
