"""What a check of data holds: the JSON of ``excite data check``. Accuracies and shares are in percent; p is 0 to 1."""

from typing import Literal, NotRequired, TypedDict

#: What is wrong, the worst first: in this order findings are told.
Kind = Literal[
    "broken",
    "leaks",
    "groups",
    "conflicts",
    "labels",
    "copies",
    "giveaways",
    "imbalance",
    "constant",
    "endings",
    "tiny",
    "shapes",
    "modes",
    "labels-perhaps",
    "outliers",
]


class Example(TypedDict):
    """An image of a finding.

    ``name`` is for display; ``path`` its file, None for an image without one. ``detail``: what was found. ``instead``:
    the class that it may belong to. ``group``: images with the same number are copies of each other, or of one group
    (a patient) of the data.
    """

    part: str
    name: str
    path: str | None
    label: str
    detail: str
    instead: str | None
    group: int | None
    item: int


class Finding(TypedDict):
    """One kind of finding: ``count`` images, of which ``examples`` holds the first ones, the worst first."""

    kind: Kind
    title: str
    count: int
    sentence: str
    advice: str
    examples: list[Example]


class Giveaway(TypedDict):
    """How well the class can be told from one property alone.

    ``accuracy`` and ``chance`` are balanced accuracies in percent: cross-validated, and the mean over shuffled labels.
    ``p``: the share of shuffles that do as well (one of 200 at least). ``label``: with several labels an image, the
    class that is told best from all others; the shuffles, too, are allowed their best class.
    """

    what: str
    label: str | None
    accuracy: float
    chance: float
    p: float
    gives_away: bool


class ClassRow(TypedDict):
    """The images of a class in each part."""

    label: str
    training: int
    validation: int
    test: int


class Balance(TypedDict):
    """The counts of all classes; ``ratio`` is that of the largest class of the training part to the smallest."""

    classes: list[ClassRow]
    largest: str
    smallest: str
    ratio: float


class LabelNoise(TypedDict):
    """The wrong labels of a part: their share and its 95 % interval, in percent; see ``excite.datacheck.labels``.

    ``what``: "wrong" of images with one class each. With several (``excite.datacheck.decisions``): "missing", of the
    labels that belong to images, and "invented", of the given labels. ``sure``: labels more likely wrong than right.
    """

    part: str
    images: int
    judged_by: str
    what: Literal["wrong", "missing", "invented"]
    percent: float
    percent_low: float
    percent_high: float
    temperature: float
    sure: int


class RestatedRow(TypedDict):
    """An accuracy with its 95 % interval, in percent, and the images it is of; mAP with several labels an image."""

    what: str
    images: int
    top1: NotRequired[float]
    top1_low: NotRequired[float]
    top1_high: NotRequired[float]
    map: NotRequired[float]
    map_low: NotRequired[float]
    map_high: NotRequired[float]


class Restated(TypedDict):
    """The accuracy of a run on a part, as measured and restated; see ``excite.datacheck.restated``.

    ``leaked_right``: of the copies of training images, those with the right answer (all labels, if there are several).
    """

    part: str
    measure: Literal["top1", "map"]
    leaked: int
    leaked_right: int
    rows: list[RestatedRow]


class AboutCheck(TypedDict):
    """What was checked and by what."""

    source: str
    run: bool
    data: str
    images: dict[str, int]
    classes: int
    several: bool
    image_size: str
    features: str
    weights_sha256: str | None
    looked_at_now: int
    not_judged: list[str]
    notes: list[str]


class DataNumbers(TypedDict):
    """All results of ``excite data check``."""

    about: AboutCheck
    findings: list[Finding]
    balance: Balance
    giveaways: list[Giveaway]
    labels: list[LabelNoise]
    restated: list[Restated]
