"""The settings of a benchmark row. Nothing heavy is imported, so that mistakes are reported at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, TypedDict, cast

from excite.errors import ExciteError, nearest
from excite.models.catalog import get_variant

LIBRARIES = ("excite", "timm", "mindcv")
CHOICES = {
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "compile": ("off", "default", "reduce-overhead", "max-autotune"),
    "fused": ("auto", "on", "plain", "off"),
}


class Asked(TypedDict):
    """The values of a :class:`Setting` that a measurement does not change."""

    library: str
    model: str
    mode: str
    precision: str
    channels_last: bool
    compile: str
    fused: str
    fused_sgd: bool
    device: str
    threads: int | None
    warm_up: int | None
    seconds: float


class SettingValues(Asked):
    """A :class:`Setting` as JSON."""

    batch: int | None
    image_size: int | list[int] | None
    steps: int | None


@dataclass(frozen=True)
class Setting:
    """One row: a model of a library, and how it is run.

    Attributes:
        library: "excite", "timm" or "mindcv".
        model: its name in that library.
        mode: "train" (forward, loss, backward, optimiser step) or "infer" (forward).
        batch: images per step and device; None: 16 on a CPU, else 128.
        image_size: pixels per side, or (height, width); None: the model's own.
        precision: "auto", "fp32", "bf16", "fp16".
        channels_last: memory layout of weights and images.
        compile: torch.compile mode, or "off".
        fused: for excite models: how norm, gate, addition and activation run (``create_model(fused=...)``).
        fused_sgd: for training: use PyTorch's fused SGD kernel.
        device: "auto", "cpu", "cuda" ...
        threads: CPU threads; None: the default of the environment.
        warm_up: untimed steps at the start; None: 3 on a CPU, else 10.
        steps: timed steps per round; None: as many as fit into ``seconds``.
        seconds: approximate duration of a round.
    """

    library: str
    model: str
    mode: str = "train"
    batch: int | None = None
    image_size: int | tuple[int, int] | None = None
    precision: str = "auto"
    channels_last: bool = True
    compile: str = "off"
    fused: str = "auto"
    fused_sgd: bool = True
    device: str = "auto"
    threads: int | None = None
    warm_up: int | None = None
    steps: int | None = None
    seconds: float = 5.0

    @property
    def name(self) -> str:
        """The model as typed by the user."""
        return self.model if self.library == "excite" else f"{self.library}:{self.model}"

    def to_dict(self) -> SettingValues:
        """Plain values, for JSON."""
        return cast(SettingValues, asdict(self))


#: Options that may follow a model name and apply to its row only.
OWN = ("batch", "image_size", "precision", "channels_last", "compile", "fused", "fused_sgd")


#: A value of an option, or several.
Several = str | int | Sequence[str | int] | None


def parse_list(values: Several, option: str) -> list[Any]:
    """``"16,32"`` or [16, 32] -> [16, 32]; None -> [None]. Raises ExciteError."""
    if values is None:
        return [None]
    words = values.split(",") if isinstance(values, str) else [values] if isinstance(values, int) else values
    return [parse_value(option, str(word).strip()) for word in words]


def parse_value(option: str, text: str) -> Any:
    """Parse the value of an option of a row. Raises ExciteError that says what is allowed."""
    if option in CHOICES:
        if text not in CHOICES[option]:
            hint = nearest(text, CHOICES[option])
            raise ExciteError(f"{option} is {text!r}{hint} (allowed: {', '.join(CHOICES[option])})")
        return text
    if option in ("channels_last", "fused_sgd"):
        if text not in ("true", "false"):
            raise ExciteError(f"{option} is {text!r}; write true or false")
        return text == "true"
    height, by, width = text.partition("x")
    if option == "image_size" and by and height.isdigit() and width.isdigit() and int(height) and int(width):
        return int(height) if height == width else (int(height), int(width))
    if not text.isdigit() or int(text) < 1:
        pair = ", or height and width, as in 96x160" if option == "image_size" else ""
        raise ExciteError(f"{option} is {text!r}; write a whole number of at least 1{pair}")
    return int(text)


def parse_model(text: str) -> dict[str, Any]:
    """``"timm:seresnet50,precision=fp32"`` -> {"library": "timm", "model": "seresnet50", "precision": "fp32"}.

    Raises:
        ExciteError: there is no such library or option.
    """
    name, *words = text.split(",")
    library, colon, model = name.partition(":")
    if not colon:
        library, model = "excite", name
    if library not in LIBRARIES or not model:
        hint = nearest(library, LIBRARIES)
        raise ExciteError(f"{text!r} is not a model{hint}: write NAME, timm:NAME or mindcv:NAME")
    found: dict[str, Any] = {"library": library, "model": model}
    for word in words:
        option, equals, value = word.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or option not in OWN:
            raise ExciteError(f"{word!r} in {text!r}{nearest(option, OWN)}: the options of a row are {', '.join(OWN)}")
        found[option] = parse_value(option, value.strip())
    return found


def make_settings(models: Iterable[str], lists: dict[str, list[Any]], **common: Any) -> list[Setting]:
    """Every model with every combination of the listed options; options after a model name take precedence.

    Args:
        models: models in the form of :func:`parse_model`.
        lists: option -> its values; a single None leaves the default.
        common: options that all rows share.
    """
    rows: dict[Setting, None] = {}
    defaults = {field.name: field.default for field in fields(Setting)}
    for text in models:
        own = parse_model(text)
        varied = {option: values for option, values in lists.items() if option not in own}
        for values in product(*varied.values()):
            chosen = dict(zip(varied, values, strict=True))
            chosen = {option: defaults[option] if value is None else value for option, value in chosen.items()}
            rows[replace(Setting(**own), **chosen, **{k: v for k, v in common.items() if k not in own})] = None
    return list(rows)  # each once


def check_models(settings: Iterable[Setting]) -> None:
    """Raise ExciteError for an unknown excite model."""
    for setting in settings:
        if setting.library == "excite":
            get_variant(setting.model)


def refuse_options_of_models(options: Mapping[str, object]) -> None:
    """Raise ExciteError for the first of these options that was given (is not None): ``--data`` does not take them."""
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise ExciteError(f"{given[0]} is for models; with --data change the recipe, such as train.batch_size=64")


def settle(
    models: Sequence[str],
    *,
    train: bool,
    batch: Several,
    image_size: Several,
    precision: Several,
    compile_mode: Several,
    channels_last: bool,
    device: str,
    threads: int | None,
    warm_up: int | None,
    steps: int | None,
    seconds: float,
    csv: object,
    profile: object,
    data: object,
) -> list[Setting]:
    """The rows requested; [] with ``data``. Raises ExciteError for wrong models or options."""
    given = {"batch": batch, "image_size": image_size, "precision": precision, "compile": compile_mode}
    if data is not None:
        of_models = {
            **{f"--{name.replace('_', '-')}": value for name, value in given.items()},
            "--threads": threads,
            "--warm-up": warm_up,
            "--steps": steps,
            "--csv": csv,
            "--profile": profile,
            "--infer": None if train else True,
            "--no-channels-last": None if channels_last else True,
            "--device": None if device == "auto" else device,
        }
        refuse_options_of_models(of_models)
        return []
    if not models:
        raise ExciteError("give models to measure (`excite models` lists them), or --data RECIPE")
    settings = make_settings(
        models,
        {name: parse_list(values, name) for name, values in given.items()},
        mode="train" if train else "infer",
        channels_last=channels_last,
        device=device,
        threads=threads,
        warm_up=warm_up,
        steps=steps,
        seconds=seconds,
    )
    check_models(settings)
    return settings
