"""The data sheets, `excite gates` and docs/gates.md against the gates themselves."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from excite.cli import app
from excite.errors import ExciteError
from excite.gates import Gate, create_gate, gate_facts, gate_options, list_gates, registry
from excite.gates.registry import gate_defaults
from excite.gates.sheets import find_sheet, list_rows, list_sheets
from excite.gates.summary import MAP, describe_gate, summarise, summarise_gate
from excite.models import create_model
from excite.recipe import load_recipe
from excite.twins.plan import parse_gate, with_gate
from tests.gates.passes import count_passes
from tests.gates.rewrite import PAGE, rewritten

FORMS = [(name, form) for name in list_gates() for form in gate_facts(name).forms]
every_form = pytest.mark.parametrize(
    ("name", "form"), FORMS, ids=lambda v: v if isinstance(v, str) else str(dict(v.options))
)

S, K = 256 // 16, 7
POSITIONS = 56 * 56
MACS = {
    "se": 2 * 256 * S,
    "cse": 2 * 256 * 128,
    "ese": 256 * 256,
    "eca": 256 * 5,
    "sse": 256 * POSITIONS,
    "scse": 2 * 256 * 128 + 256 * POSITIONS,
    "cbam": 2 * (2 * 256 * S) + 2 * K * K * POSITIONS,
    "coordinate": 2 * 256 * 8 * (56 + 56),
    "gct": 0,
    "gaussian_gct": 0,
    "gaussian_gct:learnable=true": 0,
    "ge_theta_minus": 0,
    "ge_theta": 256 * POSITIONS,
    "ge_theta_plus": 256 * POSITIONS + 2 * 256 * S,
}


@pytest.mark.parametrize("size", [MAP, (48, 6, 5), (2048, 7, 7)], ids=str)
@every_form
def test_the_formula_counts_the_parameters(name, form, size):
    letters = dict(zip("CHW", size, strict=True)) | {"log2": math.log2}
    for letter, expression in form.letters.items():
        letters[letter] = eval(expression, letters)
    with torch.device("meta"):
        gate = create_gate({"name": name, **form.options}, size[0], feature_size=size[1:])
    assert eval(form.parameters, letters) == sum(p.numel() for p in gate.parameters())


@every_form
def test_the_passes_are_those_that_a_training_step_makes(name, form, monkeypatch):
    ungated = count_passes(None, monkeypatch)
    assert ungated == 4 + 7  # docs/free-excitation.md
    assert count_passes({"name": name, **form.options}, monkeypatch) - ungated == form.passes
    assert create_gate({"name": name, **form.options}, 8, feature_size=(4, 4)).channelwise == (form.passes == 0)


@every_form
def test_what_is_scaled_is_what_is_said(name, form):
    with torch.device("meta"):
        gate = create_gate({"name": name, **form.options}, 8, feature_size=(5, 4)).eval()
        shape = tuple(gate.scale(torch.empty(2, 8, 5, 4)).shape)
    assert shape == {"channels": (2, 8), "positions": (2, 1, 5, 4), "both": (2, 8, 5, 4)}[form.scales]


def test_multiply_adds():
    assert {row["gate"]: row["macs"] for row in summarise()} == MACS


@pytest.mark.parametrize("name", list_gates())
def test_every_option_is_explained(name):
    assert set(gate_facts(name).options) == set(gate_options(name))
    assert gate_facts(name).paper.count(": ") == 1
    told = describe_gate(name)
    assert [row["option"] for row in told["options"]] == gate_options(name)
    assert told["notes"].startswith(create_gate(name, 8, feature_size=(2, 2)).__doc__.split("\n")[0])


def test_a_sheet_says_what_the_facts_and_the_class_say():
    for name in list_gates():
        facts, told = gate_facts(name), describe_gate(name)
        assert (told["title"], told["paper"]) == (facts.title, facts.paper)
        assert {row["option"]: row["meaning"] for row in told["options"]} == facts.options
        assert {row["option"]: row["default"] for row in told["options"]} == gate_defaults(name)
        assert [(form["title"], form["paper"]) for form in told["forms"]] == [(facts.title, facts.paper)] * len(
            facts.forms
        )


def test_the_numbers_are_of_the_map_that_is_asked_for():
    size = (16, 7, 5)
    rows = summarise(size)
    assert rows == [row for name in list_gates() for row in summarise_gate(name, size)]
    assert all(row["map"] == [16, 7, 5] for row in rows)
    assert next(row["params"] for row in rows if row["gate"] == "se") == 16 + 1 + 16 + 16


def test_the_labels_are_those_of_twins():
    for row in summarise():
        assert parse_gate(row["gate"]) == {"name": row["name"], **row["options"]}
        assert describe_gate(row["gate"])["name"] == row["name"]


@pytest.mark.parametrize("label", [row["gate"] for row in summarise()])
def test_twins_put_it_into_a_recipes_model(label):
    model = with_gate(load_recipe("digits-seresnet20").model, label)
    with torch.device("meta"):
        net = create_model(model.name, image_size=16, **model.options)
        fresh = create_gate(parse_gate(label), 16, feature_size=(16, 16))
    assert repr(net.layer1[0].gate) == repr(fresh)


def test_a_gate_without_a_data_sheet_is_listed_too(monkeypatch):
    class Mine(Gate):
        channelwise = True

        def __init__(self, channels, *, strength=1.0, feature_size=None):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(channels))

        def excitation(self, squeezed):
            return self.weight * squeezed

    monkeypatch.setitem(registry._GATES, "mine", Mine)
    (row,) = summarise_gate("mine")
    assert (row["gate"], row["params"], row["macs"], row["fused"]) == ("mine", 256, 0, True)
    assert row["paper"] is row["passes"] is None
    assert row in summarise()
    assert [option["option"] for option in describe_gate("mine")["options"]] == ["strength"]


def test_the_file_that_the_command_reads_is_up_to_date():
    told = json.loads(json.dumps([describe_gate(name) for name in list_gates()]))
    assert list_sheets() == told, "python -m excite.gates.summary"
    for label in (*list_gates(), *(row["gate"] for row in list_rows())):
        assert find_sheet(label) == json.loads(json.dumps(describe_gate(label)))
    with pytest.raises(ExciteError, match=r"unknown gate 'cban'; did you mean 'cbam'\? \(known: cbam, "):
        find_sheet("cban")


def test_the_command_lists_and_describes():
    rows = json.loads(CliRunner().invoke(app, ["gates", "--json"]).stdout)
    assert rows == summarise()
    listed = CliRunner().invoke(app, ["gates"]).stdout
    for row in rows:
        assert row["name"] in listed
        assert f"{row['params']:,}" in listed
        assert f"{row['macs']:,}" in listed
    assert json.loads(CliRunner().invoke(app, ["gates", "ge_theta", "--json"]).stdout) == describe_gate("ge")
    for name in list_gates():
        told = CliRunner().invoke(app, ["gates", name]).stdout
        for word in (gate_facts(name).title, *(f.formula for f in gate_facts(name).forms), *gate_options(name)):
            assert word in told


def test_an_unknown_gate_is_one_sentence():
    with pytest.raises(ExciteError, match=r"unknown gate 'cban'; did you mean 'cbam'\? \(known: cbam, "):
        describe_gate("cban")


def test_the_page_is_up_to_date():
    page = PAGE.read_text()
    assert page == rewritten(page), "python tests/gates/rewrite.py"
    told = page.split("## The gates\n")[1].split("## Selective kernels")[0]
    for name in list_gates():
        assert f"**{name}**" in told
        for form in gate_facts(name).forms:
            assert f"\n    {form.formula}\n" in told
