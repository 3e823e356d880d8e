"""timm's networks: places, and the identity. Small images, random weights."""

import pytest
import torch

from excite.errors import ExciteError
from excite.grafting import graft, ungraft
from tests.grafting.networks import randomised

#: Network -> (places, the last of them, channels there), read off timm's sources.
FOUND = {
    "resnet50": (16, "layer4.2.bn3", 2048),
    "mobilenetv2_100": (10, "blocks.5.2.bn3", 160),  # 17 blocks, of which 7 change the shape and have no shortcut
    "regnetx_002": (13, "s4.b7.conv3.bn", 368),
    "convnext_atto": (12, "stages.3.blocks.1.mlp.fc2", 320),
    "resnetv2_50": (16, "stages.3.blocks.2.conv3", 2048),
}
GATED = ["seresnet18", "regnety_002", "ecaresnet26t"]


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100", "regnetx_002", "convnext_atto"])
def test_places_and_identity(timm, name):
    count, last, channels = FOUND[name]
    torch.manual_seed(0)
    model = randomised(timm.create_model(name, num_classes=7))
    x = torch.randn(2, 3, 64, 64)
    gated = graft(model, example=x[:1])
    plan = graft(model, example=x[:1], dry_run=True)
    assert (len(plan.new), plan.new[-1].name, plan.new[-1].channels) == (count, last, channels)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(gated(x), before)
        assert torch.equal(ungraft(gated)(x), before)
        assert not torch.equal(graft(model, "eca", init="paper", example=x[:1])(x), before)
    missing, unexpected = gated.load_state_dict(model.state_dict(), strict=False)
    assert unexpected == []
    assert len(missing) == 4 * count
    assert all(".gate." in key for key in missing)


@pytest.mark.parametrize("name", GATED)
def test_gates_of_timms_are_recognised(timm, name):
    model = timm.create_model(name, num_classes=7)
    plan = graft(model, example=torch.zeros(1, 3, 64, 64), dry_run=True)
    assert plan.new == []
    assert all("Module" in place.gated or "SqueezeExcite" in place.gated for place in plan.places)
    with pytest.raises(ExciteError, match="every place is already gated"):
        graft(model, example=torch.zeros(1, 3, 64, 64))


def test_a_transformer_is_refused_in_a_sentence(timm):
    with pytest.raises(ExciteError, match=r"sequences \(N, L, C\)"):
        graft(timm.create_model("vit_tiny_patch16_224"), dry_run=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_places_at_full_size(timm, name):
    model = timm.create_model(name)
    plan = graft(model, dry_run=True)
    assert (len(plan.new), plan.new[-1].name) == FOUND[name][:2]
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(graft(model.eval())(x), model(x))
