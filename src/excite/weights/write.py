"""Writes our weights with the names of other libraries: timm's and torchvision's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.files import patient
from excite.gates.squeeze_excite import SqueezeExcite, squeeze_width
from excite.models import Classifier, EfficientNetLite, ResNet
from excite.models.blocks import Bottleneck
from excite.weights.convert import setting
from excite.weights.digest import write_safetensors
from excite.weights.layouts import CADENE, CADENE_SENET154, TIMM, TIMM_EFFICIENTNET_LITE, TORCHVISION, Layout

#: Epsilon of every batch norm of timm's and torchvision's ResNets.
EPS = 1e-5
#: Settings of torchvision's ResNets, and of timm's except the legacy ones and senet154.
PLAIN = (
    ("max_pool", "pad1"),
    ("conv_padding", "symmetric"),
    ("stride_on", "conv2"),
    ("stem", "conv7"),
    ("down_kernel", 1),
)
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")
#: Library -> its names of the networks that we also have.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "torchvision": _RESNETS,
    "timm": (
        *_RESNETS,
        "resnext101_32x4d",
        *(f"seresnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *(f"seresnext{depth}_32x4d" for depth in (50, 101)),
        "senet154",
        *(f"legacy_seresnet{depth}" for depth in (50, 101, 152)),
        *(f"legacy_seresnext{depth}_32x4d" for depth in (26, 50, 101)),
        "legacy_senet154",
        "tf_efficientnet_lite0",
    ),
}


@dataclass(frozen=True)
class Exported:
    """A state dict for another library: ``library``, its name of the ``architecture``, and the ``tensors``."""

    library: str
    architecture: str
    tensors: dict[str, Tensor]

    def sentence(self) -> str:
        """How to use it."""
        if self.library == "timm":
            return f"timm.create_model({self.architecture!r}, num_classes=...).load_state_dict(...)"
        return f"torchvision.models.{self.architecture}(num_classes=...).load_state_dict(...)"


def export_state_dict(model: nn.Module, library: str) -> Exported:
    """The model's state dict for ``library``'s own network of this architecture, which loads it strictly and computes
    the same.

    A different epsilon is folded into the variances, and biases that only their gates have are 0: the function in
    evaluation mode is the same.

    Args:
        model: a ResNet or EfficientNet-Lite from ``create_model``.
        library: "timm" or "torchvision".

    Raises:
        ExciteError: the library has no such network; the message says what it lacks.
    """
    writers: dict[str, Callable[[ResNet], tuple[Layout, str]]] = {"timm": _for_timm, "torchvision": _for_torchvision}
    if library not in writers:
        raise ExciteError(
            f"there is no writer for {library!r}{nearest(library, writers)} (known: {', '.join(writers)})"
        )
    if isinstance(model, EfficientNetLite) and library == "timm" and isinstance(model.fc, nn.Linear):
        return _efficientnet_lite(model)
    if not isinstance(model, ResNet):
        raise ExciteError(f"{_name(model)} cannot be written for {library}, which has no such network")
    if not isinstance(model.fc, nn.Linear):
        raise ExciteError(f"{_name(model)} has no classifier to write")
    layout, architecture = writers[library](model)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    _fold_epsilon(tensors, model)
    if layout is not TORCHVISION:
        _zero_biases(tensors)
    return Exported(library, architecture, layout.write(tensors))


def _name(model: nn.Module) -> str:
    return model.model_name if isinstance(model, Classifier) else type(model).__name__


def _for_torchvision(model: ResNet) -> tuple[Layout, str]:
    if model.gate_spec is not None:
        raise ExciteError(
            f"{model.model_name} has gates, but torchvision's ResNets have none; --to timm supports SE gates"
        )
    _need(model, "torchvision", PLAIN)
    return TORCHVISION, _known(model.model_name, "torchvision")


def _for_timm(model: ResNet) -> tuple[Layout, str]:
    if model.gate_spec is None:
        _need(model, "timm", PLAIN)
        return TORCHVISION, _known(model.model_name, "timm")
    gates = {name: m for name, m in model.named_modules() if name.rpartition(".")[2] == "gate"}
    if not all(isinstance(gate, SqueezeExcite) for gate in gates.values()):
        raise ExciteError(f"{model.model_name} has gates other than SE, which timm's ResNets do not have")
    if any(gate.identity for gate in gates.values() if isinstance(gate, SqueezeExcite)):
        raise ExciteError(
            f"{model.model_name} has gates that started as the identity and so double their sigmoid, which timm's SE "
            "does not"
        )
    blocks = [block for stage in model.stages() for block in stage]
    if len(gates) != len(blocks) or setting(model, "gate_position", "standard") != "standard":
        raise ExciteError(
            f"{model.model_name} has gates at other places than timm, whose SE gates end the branch of every block"
        )
    senet154 = model.model_name == "senet154"
    if setting(model, "max_pool", "pad1") == "ceil":
        grouped = senet154 or model.model_name.startswith("seresnext")
        stem = ("conv3x3x3", 3) if senet154 else ("conv7", 1)
        _need(
            model,
            "timm",
            (
                ("conv_padding", "symmetric"),
                ("stride_on", "conv2" if grouped else "conv1"),
                ("stem", stem[0]),
                ("down_kernel", stem[1]),
            ),
        )
        _check_widths(model, gates, None)
        return (CADENE_SENET154 if senet154 else CADENE), _known(f"legacy_{model.model_name}", "timm")
    deep = (("stem", "conv3x3x3"), ("down_kernel", 3)) if senet154 else ()
    _need(model, "timm", tuple((dict(PLAIN) | dict(deep)).items()))
    _check_widths(model, gates, 8)
    return TIMM, _known(model.model_name, "timm")


def _efficientnet_lite(model: EfficientNetLite) -> Exported:
    """With timm's names. Two of its networks have the same tensors, but different padding and normalisation."""
    if model.gate_spec is not None:
        raise ExciteError(f"{model.model_name} has gates, but timm's EfficientNet-Lite has none")
    made = (
        setting(model, "conv_padding", "same"),
        setting(model, "bn_eps", 1e-3),
        setting(model, "act_layer", "relu6"),
    )
    theirs = {("same", 1e-3, "relu6"): "tf_efficientnet_lite0", ("symmetric", 1e-5, "relu6"): "efficientnet_lite0"}
    if made not in theirs:
        raise ExciteError(
            f"{model.model_name} has conv_padding={made[0]}, bn_eps={made[1]:g}, act_layer={made[2]}, but timm has no "
            "EfficientNet-Lite with these settings"
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return Exported("timm", theirs[made], TIMM_EFFICIENTNET_LITE.write(tensors))


def _known(architecture: str, library: str) -> str:
    if architecture not in ARCHITECTURES[library]:
        raise ExciteError(f"{library} has no {architecture}{nearest(architecture, ARCHITECTURES[library])}")
    return architecture


def _need(model: ResNet, library: str, wanted: tuple[tuple[str, Any], ...]) -> None:
    """Check that settings which a state dict does not show are those of the library's network."""
    defaults = dict(PLAIN)
    for key, value in wanted:
        found = setting(model, key, defaults[key])
        strides = key != "stride_on" or any(isinstance(m, Bottleneck) for m in model.modules())
        if found != value and strides:
            raise ExciteError(f"{model.model_name} has {key}={found}, but {library}'s network has {key}={value}")


def _check_widths(model: ResNet, gates: dict[str, nn.Module], divisor: int | None) -> None:
    options = f"{{reduction: 16, rd_divisor: {divisor or 1}}}"
    for name, gate in gates.items():
        assert isinstance(gate, SqueezeExcite)
        wanted = squeeze_width(gate.fc1.in_features, 16, divisor)
        if gate.fc1.out_features != wanted:
            raise ExciteError(
                f"{model.model_name} squeezes {gate.fc1.in_features} channels to {gate.fc1.out_features} in {name}, "
                f"but timm's network to {wanted}; to have timm's widths, train with \"model.options={options}\""
            )


def _fold_epsilon(tensors: dict[str, Tensor], model: ResNet) -> None:
    """Add the difference of the epsilons to the variances, which preserves sqrt(variance + eps)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.eps != EPS:
            variance = tensors[f"{name}.running_var"].double() + (module.eps - EPS)
            if bool((variance < 0).any()):
                raise ExciteError(f"{name} has eps={module.eps}, too small to be expressed with their eps={EPS}")
            tensors[f"{name}.running_var"] = variance.float()


def _zero_biases(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if ".gate." in n and n.endswith(".weight")]:
        tensors.setdefault(f"{name.removesuffix('weight')}bias", torch.zeros(tensors[name].shape[0]))


def save_state_dict(exported: Exported, path: Path) -> None:
    """Write a plain state dict as safetensors or in PyTorch's format, by the extension of ``path``."""
    if path.suffix.lower() == ".safetensors":
        write_safetensors(path, exported.tensors, {"architecture": exported.architecture})
    else:
        with patient(path) as file:
            torch.save(exported.tensors, file)
