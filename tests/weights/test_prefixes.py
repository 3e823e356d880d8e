"""Which of a file's tensors are the network, where they have several prefixes; stems of other channels."""

import pytest
import torch

from excite.errors import ExciteError
from excite.models import create_model
from excite.weights.convert import convert, load_weights, start_from
from excite.weights.stem import fit_channels

from .nets import images, logits, make


def timms(model):
    return {name.replace(".gate.", ".se."): tensor for name, tensor in model.state_dict().items()}


def under(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.fixture
def net(tiny):
    return make("tiny_seresnet", num_classes=4)


@pytest.fixture
def average(tiny):
    return make("tiny_seresnet", seed=7, num_classes=4)


def read(path, tensors):
    torch.save(tensors, path)
    model, loaded = convert(path)
    assert (model.model_name, loaded.fresh, loaded.left_over) == ("tiny_seresnet", [], [])
    return model, loaded.foreign


LOSS = {"criterion.weight": torch.ones(4), "criterion.pos_weight": torch.ones(4)}


@pytest.mark.parametrize(
    ("prefix", "beside", "said"),
    [
        ("model.", LOSS, "used: model.*, not used: 1: criterion.* (2)"),
        ("module.", {"n_averaged": torch.tensor(3)}, "used: module.*, not used: 1: n_averaged"),
        (
            "model.module.",
            {"model.loss_fn.weight": torch.ones(4)},
            "used: model.module.*, not used: 1: model.loss_fn.* (1)",
        ),
        ("net.", {"train_acc.tp": torch.zeros(4)}, "used: net.*, not used: 1: train_acc.* (1)"),
        ("a.name.nobody.foresaw.", LOSS, "used: a.name.nobody.foresaw.*"),
        ("", LOSS, "not used: 1: criterion.* (2)"),
        ("_orig_mod.module.", {}, ""),
        ("module._orig_mod.model.", {}, ""),
        ("state_dict_ema.", LOSS, "used: state_dict_ema.*"),
    ],
)
def test_one_network_beside_other_tensors(net, tmp_path, prefix, beside, said):
    model, foreign = read(tmp_path / "x.pth", under(prefix, timms(net)) | beside)
    assert torch.equal(logits(model, images()), logits(net, images()))
    assert said in foreign.sentence()
    assert ("taken" in foreign.sentence()) == ("taken" in said)


def test_compiled_parts_inside_of_names(net, tmp_path):
    tensors = {name.replace("layer2.", "layer2._orig_mod."): t for name, t in timms(net).items()}
    assert torch.equal(logits(read(tmp_path / "x.pth", tensors)[0], images()), logits(net, images()))


@pytest.mark.parametrize(
    ("raw", "other"),
    [("model.", "model_ema."), ("model.", "ema_model.module."), ("", "ema."), ("student.", "teacher.")],
)
def test_of_two_alike_the_average_is_taken_and_said(net, average, tmp_path, raw, other):
    model, foreign = read(tmp_path / "x.pth", under(raw, timms(net)) | under(other, timms(average)))
    assert torch.equal(logits(model, images()), logits(average, images()))
    assert f"used: {other}*, not used: " in foreign.sentence()


def test_of_two_networks_the_one_that_fits_is_taken(net, tmp_path):
    """Without a network to fill the larger one; with one, its own."""
    big = make("seresnet18", num_classes=4, image_size=64)
    torch.save(under("teacher.", timms(big)) | under("student.", timms(net)), tmp_path / "x.pth")
    assert convert(tmp_path / "x.pth")[0].model_name == "seresnet18"
    model = make("tiny_seresnet", seed=3, num_classes=4)
    loaded = load_weights(model, tmp_path / "x.pth")
    assert torch.equal(logits(model, images()), logits(net, images()))
    assert f"used: student.*, not used: 1: teacher.* ({len(timms(big))})" in loaded.sentence()


def split(tensors, body, head):
    return {(f"{head}{n.removeprefix('fc.')}" if n.startswith("fc.") else f"{body}{n}"): t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("backbone.", "head."),
        ("backbone.", "classifier.1."),
        ("model.backbone.", "model.head.fc."),
        ("0.", "1."),
        ("module.0.", "module.2."),
        ("", "fc.1."),
        ("net.", "net.fc.0."),
        ("encoder.", "linear."),
    ],
)
def test_a_classifier_beside_its_body(net, tmp_path, body, head):
    tensors = split(timms(net), body, head)
    model, foreign = read(tmp_path / "x.pth", tensors)
    assert torch.equal(logits(model, images()), logits(net, images()))
    assert f"its classifier: {head}*" in foreign.sentence()


def test_the_numbered_parts_of_a_network(tiny, tmp_path):
    """nn.Sequential(*net.children()), as fastai cuts it; its head is no classifier of ours, and is said to be left."""
    net = make("tiny_resnet", num_classes=4)
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7", "fc": "9"}
    state = net.state_dict()
    plain = {f"{numbers[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in state.items()}
    torch.save(plain, tmp_path / "x.pth")
    assert torch.equal(logits(convert(tmp_path / "x.pth")[0], images()), logits(net, images()))
    body = {f"0.{n}": t for n, t in plain.items() if not n.startswith("9.")}
    head = {"1.2.weight": torch.ones(512), "1.4.weight": torch.ones(512, 512), "1.8.weight": torch.ones(4, 512)}
    torch.save({"model": body | head, "opt": {}}, tmp_path / "y.pth")
    with pytest.raises(ExciteError, match="no classifier, only the body of tiny_resnet"):
        convert(tmp_path / "y.pth")
    model = make("tiny_resnet", seed=3, num_classes=7)
    loaded = start_from(model, tmp_path / "y.pth")
    assert loaded.fresh == ["fc.weight", "fc.bias"]
    assert "used: 0.*, not used: 1: 1.* (3)" in loaded.sentence()
    with torch.no_grad():
        assert torch.equal(model.eval().forward_features(images()), net.forward_features(images()))


def test_what_may_be_part_of_the_network_is_still_an_error(net, tmp_path):
    for name in ("extra.weight", "head.x", "layer1.0.odd"):
        torch.save({**timms(net), name: torch.zeros(2)}, tmp_path / "x.pth")
        with pytest.raises(ExciteError, match=f"unexpected 1: {name}"):
            convert(tmp_path / "x.pth")
    torch.save(under("model.", {**timms(net), "extra.weight": torch.zeros(2)}) | LOSS, tmp_path / "x.pth")
    with pytest.raises(ExciteError, match=r"unexpected 1: extra\.weight"):
        convert(tmp_path / "x.pth")


def test_another_network_is_named(net, tmp_path):
    torch.save(timms(net), tmp_path / "x.pth")
    with pytest.raises(ExciteError, match=r"tiny_seresnext: it is tiny_seresnet \(set model\.name=tiny_seresnet\)"):
        load_weights(make("tiny_seresnext", num_classes=4), tmp_path / "x.pth")


# --- channels ---------------------------------------------------------------------------------------------------------


def test_colour_into_grey_and_back(net, tmp_path):
    torch.save(timms(net), tmp_path / "colour.pth")
    grey = make("tiny_seresnet", seed=3, num_classes=4, in_chans=1)
    loaded = load_weights(grey, tmp_path / "colour.pth")
    assert "conv1.weight is summed over its 3 channels for images of 1" in loaded.sentence()
    x = images()[:, :1]
    torch.testing.assert_close(logits(grey, x), logits(net, x.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)
    torch.save(timms(grey), tmp_path / "grey.pth")
    colour = make("tiny_seresnet", seed=4, num_classes=4)
    loaded = load_weights(colour, tmp_path / "grey.pth")
    assert "conv1.weight is repeated for images of 3 channels, divided by 3" in loaded.sentence()
    torch.testing.assert_close(logits(colour, x.repeat(1, 3, 1, 1)), logits(grey, x), rtol=1e-4, atol=1e-5)


def test_a_colour_stem_is_repeated_for_more_bands_as_timm_does(net, tmp_path):
    torch.save(timms(net), tmp_path / "x.pth")
    for bands in (2, 4, 5, 16):
        wider = create_model("tiny_seresnet", num_classes=4, in_chans=bands)
        loaded = load_weights(wider, tmp_path / "x.pth")
        assert f"conv1.weight is repeated for images of {bands} channels, multiplied by 3/{bands}" in loaded.sentence()
        stem, wide = timms(net)["conv1.weight"], wider.state_dict()["conv1.weight"]
        # timm.models.adapt_input_conv: repeated, cut off, and scaled.
        torch.testing.assert_close(wide, torch.cat([stem] * 6, 1)[:, :bands] * (3 / bands))
    back, said = fit_channels({"conv1.weight": wide}, {"conv1.weight": torch.ones(8, 1, 7, 7)})
    torch.testing.assert_close(back["conv1.weight"], wide.sum(1, keepdim=True))
    assert said == "conv1.weight is summed over its 16 channels for images of 1"


def test_the_stem_of_another_kernel_does_not_fit():
    tensors = {"conv1.weight": torch.ones(8, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(8, 3, 1, 1)}
    own = {"conv1.weight": torch.ones(8, 1, 3, 3), "layer1.0.conv1.weight": torch.ones(8, 1, 1, 1)}
    assert fit_channels(tensors, own) == (tensors, "")
