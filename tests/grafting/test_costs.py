"""What each gate adds to the latency: the weighing design, the switches, and the places by order."""

import json

import pytest
import torch

import excite.grafting.costs as costs_module
from excite.errors import ExciteError
from excite.grafting import gate_costs, graft
from excite.grafting.costs import GateCosts, Switched, solve, spread_of, weighing_rows
from excite.models import create_model
from excite.models.base import by_order, match_slots, placements
from excite.runtime.timing import Timed
from tests.grafting import networks
from tests.grafting.networks import randomised

PLACES = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"]


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("first", [0]),
        ("first2", [0, 1]),
        ("last", [4]),
        ("last3", [2, 3, 4]),
        ("last99", [0, 1, 2, 3, 4]),
        ("every2", [0, 2, 4]),
        ("every3", [0, 3]),
        ("every", []),
        ("every0", []),
        ("last0", []),
        ("last-1", []),
        ("lasts", []),
    ],
)
def test_places_by_their_order(pattern, numbers):
    assert by_order(pattern, PLACES) == [PLACES[i] for i in numbers]


def test_a_module_of_that_name_comes_first():
    assert match_slots("last2", ["last2.0", "body.0", "body.1"]) == ["last2.0"]
    net = networks.TorchvisionStyle().eval()
    names = [row["place"] for row in graft(net, at="last2", dry_run=True).rows()]
    assert names == ["layer2.0.bn3", "layer2.1.bn3"]
    net.last2 = torch.nn.Identity()
    with pytest.raises(ExciteError, match="the module 'last2' is never called"):
        graft(net, at="last2", dry_run=True)


def test_places_by_order_wherever_places_are_named():
    built = create_model("cifar_seresnet20", gate_at=["last2"])
    assert [name for name, slot in built.gate_slots().items() if slot.gate is not None] == ["layer3.1", "layer3.2"]
    grafted = graft(create_model("cifar_resnet20").eval(), at=["first", "every4"])
    there = [name for name, slot in grafted.gate_slots().items() if slot.gate is not None]
    assert there == ["layer1.0", "layer2.1", "layer3.2"]
    with pytest.raises(ExciteError, match=r"matches 'every' .*or by their order: first, last2, every2"):
        graft(built, at="every")


def test_placements_that_are_the_same_are_listed_once():
    assert placements(PLACES[:3]) == {
        "all": ("layer1.0", "layer1.1", "layer2.0"),
        "first": ("layer1.0",),
        "last": ("layer2.0",),
        "last2": ("layer1.1", "layer2.0"),
        "every2": ("layer1.0", "layer2.0"),
    }
    assert list(placements(PLACES[:2])) == ["all", "first", "last"]
    assert list(placements(PLACES[:1])) == ["all"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 16])
def test_the_design_weighs_every_gate_with_half_of_the_passes(count):
    rows = torch.tensor(weighing_rows(count))
    assert rows.shape[1] == count + 1
    assert torch.equal(rows.T @ rows, len(rows) * torch.eye(count + 1, dtype=torch.int64)), "orthogonal columns"
    assert rows[:, 1:].eq(1).all(1).any(), "one has all gates"
    assert rows[:, 1:].eq(-1).all(1).any(), "one has none"
    pairs = torch.einsum("ra,rb,rc->abc", rows[:, 1:], rows[:, 1:], rows[:, 1:])
    assert not pairs.any(), "a pair of gates that interact does not distort a third"


def test_the_costs_are_found_whatever_disturbs_some_passes():
    true = [0.3, 0.0, 0.11, 0.07, 0.2]
    rows, noise = weighing_rows(5), torch.Generator().manual_seed(0)
    timed = []
    for row in rows:
        ms = 2.0 + sum(cost for cost, on in zip(true, row[1:], strict=True) if on > 0)
        passes = ms + 0.02 * torch.randn(41, generator=noise)
        passes[:8] *= 3  # another program took the core
        timed.append(Timed([[value / 1000] for value in passes.tolist()]))
    base, gates = solve(timed, rows, PLACES)
    assert base == pytest.approx(2.0, abs=0.02)
    for cost, place in zip(true, PLACES, strict=True):
        found, low, high = gates[place]
        assert low < cost < high
        assert found == pytest.approx(cost, abs=0.01)
        assert high - low < 0.03
    costs = GateCosts(base, gates, 41 * len(rows), "a CPU", "fp32")
    assert costs.predict(PLACES) == pytest.approx(2.68, abs=0.03)
    assert costs.placements()["last"] == costs.predict(PLACES[-1:])


def test_a_busy_machine_is_said():
    steady = [Timed([[0.100], [0.101], [0.102], [0.103], [0.500]])] * 3
    busy = [Timed([[0.1], [0.2], [0.3], [0.2], [0.1]])] * 3
    told = [GateCosts(1.0, {}, 15, "a CPU", "fp32", spread_of(timed)).notes for timed in (steady, busy)]
    assert told[0] == []
    assert told[1][0].startswith("the machine was not idle: half of the passes of one placement differ by 50 %")


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_fastnet7", "cifar_wrn16_8", "efficientnet_lite0"])
@pytest.mark.parametrize("gate", ["se", "ge"])
def test_switched_off_the_network_is_the_ungated_one(name, gate):
    """Of the very network that is timed: folded, channels-last."""
    torch.manual_seed(0)
    net = randomised(create_model(name, image_size=32, num_classes=3)).eval()
    switched = Switched(net, gate, at="auto", init="paper", example=None, device=torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        with switched._only([]):
            assert torch.allclose(switched.net(images), net(images), rtol=1e-3, atol=1e-3)
        with switched._only(switched.places):
            assert not torch.allclose(switched.net(images), net(images), rtol=1e-2, atol=1e-2)
        with switched._only(switched.places[-1:]):
            one = switched.net(images)
        with switched._only([]):
            assert not torch.equal(one, switched.net(images))


@pytest.mark.parametrize("kind", [networks.TorchvisionStyle, networks.InvertedResiduals, networks.ChannelsLastBlocks])
def test_so_is_somebody_elses(kind):
    net = randomised(kind()).eval()
    switched = Switched(net, "se", at="auto", init="paper", example=None, device=torch.device("cpu"))
    (images,), _ = switched.example
    with torch.inference_mode():
        with switched._only([]):
            assert torch.equal(switched.net(images), net(images))
        with switched._only(switched.places):
            assert not torch.equal(switched.net(images), net(images))


def test_a_network_that_has_some_gates_keeps_them():
    net = create_model("cifar_seresnet20", gate_at=["layer1"], gate={"name": "se", "identity": True}).eval()
    found = gate_costs(net, "se", seconds=0)
    assert list(found.gates) == [f"layer{stage}.{i}" for stage in (2, 3) for i in range(3)]
    assert found.form == "folded, fp32"


def test_the_command_says_what_each_gate_adds(command_line, monkeypatch):
    quick = costs_module.gate_costs
    monkeypatch.setattr("excite.grafting.proof.gate_costs", lambda *a, **k: quick(*a, seconds=0, **k))
    words = ("graft", "cifar_resnet20", "--dry-run", "--latency", "--at", "layer3")
    said = command_line(*words)
    assert "adds ms" in said
    assert "gates at" in said
    assert "time of one image" in said
    told = command_line(*words, "--json")
    latency = json.loads(told[told.index("{") :])["latency"]
    assert list(latency["places"]) == ["layer3.0", "layer3.1", "layer3.2"]
    assert list(latency["placements"]) == ["all", "first", "last", "last2", "every2"]
    assert latency["placements"]["all"] == pytest.approx(
        latency["base_ms"] + sum(place[0] for place in latency["places"].values())
    )
    told = command_line(*words[:3], "--json")
    assert "latency" not in json.loads(told[told.index("{") :])
    assert "nothing to time" in command_line("graft", "cifar_seresnet20", *words[2:4])
