"""Names and numbers."""

import json
import subprocess
import sys

import pytest
import torch

from excite.errors import ExciteError
from excite.models import PUBLISHED, VARIANTS, create_model, describe, list_models
from excite.models.catalog import get_variant

COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "seresnet18": 11_778_592,
    "seresnet34": 21_958_868,
    "seresnet50": 28_088_024,
    "seresnet101": 49_326_872,
    "seresnet152": 66_821_848,
    "seresnext26_32x4d": 16_790_280,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101_32x4d": 48_955_416,
    "senet154": 115_088_984,
    "geresnet50_theta_minus": 25_557_032,
    "cifar_resnet20": 269_722,
    "cifar_seresnet110_tf": 3_504_422,
    "efficientnet_lite0": 4_652_008,  # as timm's
    "sknet50": 27_479_784,  # as timm's skresnext50_32x4d
    # He et al. (arXiv 1603.05027) give 1.7 M; Zagoruyko and Komodakis (arXiv 1605.07146) 11.0 M.
    "cifar_preresnet164": 1_703_258,
    "cifar_wrn16_8": 10_961_370,
}


def count(name, **args):
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **args).parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_parameter_counts(name, parameters):
    assert count(name) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"), [("seresnet18", 11_779_624), ("seresnet34", 21_960_416), ("seresnet50", 28_088_024)]
)
def test_parameter_counts_with_rounded_width(name, parameters):
    assert count(name, rd_divisor=8) == parameters


def test_the_number_of_names():
    # 8 ImageNet and 10 CIFAR nets and EfficientNet-Lite0, plain + SE + 3 GE each; SENet-154; the TensorFlow reference;
    # two SKNets.
    assert len(VARIANTS) == len(list_models()) == (8 + 10 + 1) * 5 + 4
    assert list_models("*se*50*") == ["seresnet50", "seresnext50_32x4d"]
    assert list_models("cifar_ge*20*") == [f"cifar_geresnet20_theta{end}" for end in ("", "_minus", "_plus")]
    assert list_models("nothing") == []


def test_names_cost_no_torch():
    code = "import sys, excite.models as m; assert m.list_models('*se*'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ExciteError, match="unknown model 'seresnet5O'; did you mean 'seresnet50'"):
        get_variant("seresnet5O")


def test_published_numbers_belong_to_models_and_say_where_they_stand():
    assert set(PUBLISHED) <= set(VARIANTS)
    for entries in PUBLISHED.values():
        for entry in entries:
            assert set(entry) == {"top1", "top5", "dataset", "source", "note", "confirmed"}
            assert 50 < entry["top1"] < 100
            assert entry["top5"] is None or entry["top1"] < entry["top5"] < 100
            assert entry["source"]


def test_describe():
    told = describe("seresnet50")
    assert told["params"] == COUNTS["seresnet50"]
    assert told["gmacs"] == pytest.approx(4.09, abs=0.005)  # as torchvision's resnet50, plus 2.5 M for the gates
    assert told["input_size"] == [3, 224, 224]
    assert told["gate"] == {"name": "se"}
    assert any(entry["top1"] == 78.32 for entry in told["published"])
    assert describe("seresnet50", reduction=8)["gate"] == {"name": "se", "reduction": 8}
    assert describe("resnet50")["gate"] is None
    json.dumps(told)


@pytest.mark.parametrize(("name", "gmacs"), [("resnet18", 1.814), ("resnext50_32x4d", 4.230), ("resnet152", 11.514)])
def test_multiply_accumulates(name, gmacs):
    # torchvision's documentation: 1.81, 4.23, 11.51
    assert describe(name)["gmacs"] == pytest.approx(gmacs, abs=0.001)
    assert describe(name, image_size=112)["gmacs"] < gmacs / 3
