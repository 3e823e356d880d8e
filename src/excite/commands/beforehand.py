"""What commands print and check before anything heavy is imported.

Each command prints its first line at once (:func:`begin`). Mistakes on the command line that can be found without
PyTorch are reported before that. Each kind of argument has one check, the ``callback`` of its parameter, in every
command; ``excite.cli`` runs all of them before the command itself. The library repeats these checks, with the same
functions, for callers from Python.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from excite.errors import ExciteError
from excite.runtime.job import rank
from excite.text import tell

if TYPE_CHECKING:
    from excite.recipe import Recipe


def begin(doing: str) -> None:
    """Print on standard error, once per job, what the command does; loading PyTorch first takes seconds."""
    if rank() == 0:
        tell(f"{doing}: loading PyTorch ...")


def check_trained(source: str) -> None:
    """RUN|CHECKPOINT: it exists."""
    from excite.weights.locate import check_there

    check_there(source)


def check_several_trained(words: list[str] | None) -> None:
    """RUN|CHECKPOINT... [KEY=VALUE]...: the former exist, the latter are valid."""
    from excite.recipe import is_override

    for word in words or []:
        if not is_override(word):
            check_trained(word)
    check_changes([word for word in words or [] if is_override(word)])


def check_changes(words: list[str] | None) -> None:
    """[KEY=VALUE]...: the keys exist, the values can be parsed, and data.root, if given, exists."""
    if words:
        from excite.data.root import check_exists
        from excite.recipe import apply_overrides

        root = apply_overrides({}, words).get("data", {}).get("root")
        if isinstance(root, str):
            check_exists(root)


def check_images(words: list[str]) -> None:
    """IMAGE|FOLDER|GLOB...: each exists."""
    from excite.trained.find import check_images as check

    check(words)


def check_images_and_changes(words: list[str] | None) -> None:
    """[IMAGE|FOLDER|GLOB|KEY=VALUE]...: images exist, changes are valid."""
    from excite.recipe import is_override

    check_images([word for word in words or [] if not is_override(word)])
    check_changes([word for word in words or [] if is_override(word)])


def check_data(source: str, changes: list[str] | None) -> None:
    """The data of a local run exist, as far as its recipe.yaml says; the weights file is read later."""
    from excite.data.root import check_root
    from excite.recipe import elsewhere, load_recipe
    from excite.weights.locate import run_folder

    if run_folder(source) is None:
        return
    recipe = None
    with suppress(ExciteError):  # a damaged recipe.yaml does not matter: the weights file holds a copy
        recipe = load_recipe(source, elsewhere(load_recipe(source, []).data, changes or []))
    if recipe is not None:
        check_root(recipe.data)


def check_recipe(recipe: "Recipe", begun: bool = False) -> None:
    """A recipe to train: its data, its device, its initial weights and its teacher exist.

    Args:
        recipe: what is to be trained.
        begun: the run has started already, so that its initial weights are not needed.
    """
    from excite.data.config import check_fit
    from excite.data.root import check_root

    check_root(recipe.data)
    check_fit(recipe.data, recipe.augment)
    check_device(recipe.train.device)
    if recipe.train.init_from is not None and not begun:
        check_trained(recipe.train.init_from)
    if recipe.train.teacher is not None:
        check_trained(recipe.train.teacher)


def is_begun(run: str | None) -> bool:
    """Whether a run folder, local or at an address, may hold a run to resume."""
    from excite.storage.address import is_remote

    return run is not None and (is_remote(run) or (Path(run) / "recipe.yaml").is_file())


def check_weights(source: str | None) -> None:
    """SOURCE of weights, from excite or another library."""
    if source is not None:
        from excite.weights.hub import check_weights as check

        check(source)


def check_network(source: str) -> None:
    """SOURCE of a network: a model name, or trained weights that exist."""
    from excite.models.catalog import VARIANTS

    if source not in VARIANTS:
        check_trained(source)


def check_device(device: str) -> None:
    """--device: the kind of device is known."""
    from excite.choices import check_device as check

    check(device)


def check_precision(precision: str | None) -> None:
    """--precision: it is known."""
    from excite.choices import check_precision as check

    if precision is not None:
        check(precision, "--precision")


def choice(option: str, allowed: Iterable[str]) -> Callable[[str | None], None]:
    """A check that ``option``, if given, has one of the ``allowed`` values."""

    def check(value: str | None) -> None:
        from excite.choices import check_choice

        if value is not None:
            check_choice(option, value, allowed)

    return check


def check_gate(gate: str) -> None:
    """--gate: a gate of that name exists."""
    from excite.gates.sheets import list_sheets, unknown_gate

    names = [sheet["name"] for sheet in list_sheets()]
    if gate not in names:
        raise unknown_gate(gate, names)


def check_labels(gates: str | None) -> None:
    """--gates: all are known to `excite twins`; their options are only checked when the gates are built."""
    if gates is not None:
        from excite.gates.sheets import list_rows, unknown_gate

        known = {"none", *(row["gate"].partition(":")[0] for row in list_rows())}
        for label in gates.split(","):
            name = label.strip().partition("@")[0].partition(":")[0]
            if name not in known:
                raise ExciteError(f"--gates: {unknown_gate(name, known)}")


def check_file(path: Path | None) -> None:
    """A file to write; an existing one is replaced."""
    if path is not None:
        from excite.files import check_writable

        check_writable(path)


def check_new_file(context: typer.Context, path: Path | None) -> None:
    """A file to write; an existing one is only replaced with --force."""
    if path is not None:
        from excite.files import check_new

        check_new(path, bool(context.params.get("force")))


def check_new_folder(path: Path | None) -> None:
    """A folder to create; it must not exist."""
    if path is not None:
        from excite.files import check_new_folder as check

        check(path)


def check_read(path: str | None) -> None:
    """A file or folder to read; it exists."""
    if path is not None:
        check_images([path])


def check_experiment(place: str | None) -> None:
    """The experiment folder of `excite twins`, new or started: it is local and writable."""
    if place is not None:
        from excite.files import check_here

        check_here(place, "the folder of an experiment")
        check_parent(place)


def check_parent(place: str | None) -> None:
    """A folder, local or at an address, that a run is created in or as."""
    from excite.files import check_writable
    from excite.storage.address import is_remote

    if place is not None and not is_remote(place):
        check_writable(Path(place) / "recipe.yaml")
