"""``state_dict()`` of our own networks with SE or GE, saved without the header of our weights files."""

from excite.weights.layouts.base import BILINEAR, Anatomy, Layout, Row, Settings, Source, block_rows
from excite.weights.layouts.torchvision import HEAD, STEMS

_GATE = "layer{s}.{b}.gate"
#: Gather-Excite's convolutions and norms: one pair with global extent, else up to three pairs with ReLUs in between.
_GATHERS = tuple(
    Row(f"{_GATE}.gather.{3 * k + n}", f"{_GATE}.gather.{3 * k + n}", kind)
    for k in range(3)
    for n, kind in enumerate(("conv", "norm"))
)


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """Nothing: such a file may be from any of our networks, and only a header would say how it was created."""
    return {}


OWN = Layout(
    key="excite",
    title="the names of excite's own state dicts",
    signature=(r"^layer1\.0\.gate\.(fc1|gather\.0)\.weight$", r"^conv1\.(0\.)?weight$"),
    rows=(
        *STEMS,
        *block_rows(),
        *_GATHERS,
        *(Row(f"{_GATE}.{layer}", f"{_GATE}.{layer}", "dense") for layer in ("fc1", "fc2")),
        *HEAD,
    ),
    options=_options,
    preprocessing=BILINEAR,
    source="excite.models.resnet",
)
