"""The experiment: trains the missing runs, one process after another, and keeps the report up to date."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.text import Text

from excite.children import python_command
from excite.console import Display, format_seconds
from excite.errors import ExciteError, shown
from excite.files import check_here, from_json, to_json, write_json, write_text
from excite.leaving import signal_name
from excite.measures import MEASURES
from excite.owners import names_in
from excite.pages.figures import dispensable
from excite.recipe import Overrides, Recipe, as_recipe, load_recipe
from excite.runtime.job import world_size
from excite.text import printable
from excite.training.results import Results, read_results
from excite.training.run_folder import is_record
from excite.training.stop import Interrupted, StopSignals
from excite.twins.plan import PLAN, Plan, load_plan, make_plan
from excite.twins.report import (
    Failure,
    Report,
    collect,
    known,
    last_of,
    measure_in,
    read_latency,
    show_report,
    verdicts,
    write_report,
)
from excite.weights.locate import saved_steps

RESULTS, LATENCY, RECIPE, LOCK = "results.json", "latency.json", ".recipe.yaml", ".lock"
#: Seconds to wait for the lock: a training whose experiment was killed needs time to save and stop.
LOCK_SECONDS = 30.0


def run_twins(
    recipe: Recipe | str | Path | None = None,
    overrides: Overrides = (),
    *,
    gates: str | Sequence[str] | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    confidence: float = 0.95,
    until: str | None = None,
    margin: float | None = None,
    quiet: bool = False,
) -> Report:
    """Train one recipe with each gate and each seed, and report accuracy, size and speed side by side.

    Finished runs are kept and an interrupted one is resumed, so repeating the call resumes the experiment. Gates and
    seeds may be added.

    Args:
        recipe: a Recipe, the name of a shipped one, a YAML file or a run folder; None with ``resume``.
        overrides: ``section.key=value`` strings; see ``load_recipe``.
        gates: labels, see :func:`excite.twins.plan.parse_gate`, as a list or separated by commas; None: ungated, SE and
            the three GE variants.
        seeds: number of seeds, counting up from the recipe's ``train.seed``; None: 3, or those of the experiment.
        folds: number of folds (2 or more): each gate is trained once for each, validated on that fold of the training
            images and trained on the others, so that each image validates once; instead of seeds.
        out: folder of the experiment; None: ``runs/twins-NAME`` with the recipe's name.
        resume: folder of an experiment to resume, with its own recipe.
        confidence: confidence level of the intervals, between 0.5 and 0.999.
        until: "decided": a gate gets no more seeds once its interval, which holds whenever one stops, says that it is
            better or worse than the baseline, or equivalent within ``margin``; ``seeds`` is then the most (None: 30).
        margin: in points, for ``until``; None: 0.1, or that of the experiment.
        quiet: print nothing.

    Returns:
        The contents of the experiment's ``results.json``: ``rows`` (one per gate), ``runs``, ``failures``, devices and
        versions.

    Raises:
        ExciteError: a gate does not fit, the recipe or its data are wrong, or the folder belongs to another experiment;
            all this is checked before training.
        Interrupted: SIGTERM or Ctrl-C; the current run saved a checkpoint first.
    """
    if world_size() > 1:
        raise ExciteError(
            "start `excite twins` directly, not under torchrun or accelerate: it starts each training itself"
        )
    if not 0.5 <= confidence <= 0.999:
        raise ExciteError(f"--confidence must be between 0.5 and 0.999, such as 0.95, not {confidence:g}")
    if until not in (None, "decided"):
        raise ExciteError(f"--until is {shown(until)}, but it takes one word: decided")
    if margin is not None and not 0 < margin < math.inf:
        raise ExciteError(f"--margin must be a number of points above 0, such as 0.1, not {margin:g}")
    if isinstance(gates, str):
        gates = [gate.strip() for gate in gates.split(",")]
    display = Display(quiet)
    folder, recipe = _resolve(recipe, overrides, out, resume, display)
    plan = make_plan(folder, recipe, gates, seeds, folds, until is not None, margin)
    with StopSignals() as stop:
        _check(plan, folder, display, stop)
        with _locked(folder, display) as lock:
            plan.save(folder)
            return _Experiment(plan, folder, confidence, display, stop, lock).run()


def _resolve(
    recipe: Recipe | str | Path | None,
    overrides: Overrides,
    out: str | Path | None,
    resume: str | Path | None,
    display: Display,
) -> tuple[Path, Recipe | None]:
    """The folder of the experiment, and its recipe as the runs will have it; None with ``resume``."""
    if resume is not None:
        if recipe is not None or overrides or out is not None:
            raise ExciteError(
                "--resume continues an experiment with its own recipe: do not give a recipe, changes or --out"
            )
        folder, checked = Path(resume), None
    elif recipe is None:
        raise ExciteError("give a recipe (`excite recipes` lists them) or --resume DIR")
    else:
        # As the recipes of the run folders will be: each run has its own recipe, which is used unchanged.
        asked = as_recipe(recipe, overrides)
        folder = Path("runs") / f"twins-{asked.name}" if out is None else Path(out)
        checked, note = _settled(asked, folder).scaled()
        for line in (*checked.notes, *([note] if note else [])):
            display.message(line)
    check_here(str(resume or out), "the folder of an experiment")
    if folder.is_file():
        raise ExciteError(f"{folder} is a file; give a folder for the experiment")
    if not (folder / PLAN).is_file() and any(name != LOCK for name in names_in(folder)):
        raise ExciteError(
            f"{folder} contains other files and no {PLAN}: choose an empty or new folder for the experiment"
        )
    return folder, checked


def _settled(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the precision of the existing experiment, or with that of a training on this machine.

    See ``settle_precision``.
    """
    key = "train.precision"
    if recipe.is_own(key) or recipe.train.precision in ("auto", "fp32"):
        return recipe
    begun = load_plan(folder)
    if begun is not None:
        now = begun.recipe.train.precision
        same = now == recipe.train.precision
        return recipe if same else recipe.replaced(key, now, f"{now}, with which this experiment was started")
    import torch

    from excite.runtime.device import count_devices
    from excite.training.precision import settle_precision

    return settle_precision(recipe, torch.device(count_devices(recipe.train.device)[0]))


def _check(plan: Plan, folder: Path, display: Display, stop: StopSignals) -> None:
    """Open the data and set up every new gate, in a separate process, before training."""
    first = plan.numbers[0]
    new = [gate for gate in plan.gates if not any((folder / plan.run_name(gate, n)).is_dir() for n in plan.numbers)]
    if new:
        display.message(f"checking the data and the networks with {', '.join(new)} ...")
        _ask("check", {gate: plan.twin(gate, first).model_dump(mode="json") for gate in new}, stop)


def _ask(task: str, question: Any, stop: StopSignals) -> str:
    """The output of a worker. Raises ExciteError with its error message, or Interrupted if it was asked to stop."""
    done = subprocess.run(
        _worker(task),
        input=to_json(question),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},
    )
    if stop.received:
        raise Interrupted(f"stopped by {signal_name(stop.received)}; nothing is lost", stop.received)
    if done.returncode:
        raise ExciteError(_reason(done.stderr, done.returncode))
    return done.stdout


def _worker(*words: str) -> list[str]:
    return python_command("-m", "excite.twins.worker", *words)


@contextmanager
def _locked(folder: Path, display: Display) -> Iterator[int | None]:
    """Lock the folder against a second `excite twins`; yields the lock's file descriptor, which trainings inherit.

    The lock thus holds while a training runs, even if the experiment itself was killed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise ExciteError(f"the folder {folder} cannot be written: {error.strerror or error}") from None
    with file:
        if sys.platform == "win32":  # has no flock
            yield None
            return
        if not _try_lock(file):
            display.message(f"waiting for another process in {folder} ...")
            until = time.monotonic() + LOCK_SECONDS
            while not _try_lock(file):
                if time.monotonic() > until:
                    raise ExciteError(
                        f"another `excite twins`, or a training that it started, is running in {folder}; wait for it, "
                        "or stop it"
                    )
                time.sleep(0.2)
        yield file.fileno()


def _try_lock(file: IO[str]) -> bool:
    import fcntl  # POSIX only

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@dataclass
class _Experiment:
    """A running experiment; see :func:`run_twins` for the fields."""

    plan: Plan
    folder: Path
    confidence: float
    display: Display
    stop: StopSignals
    lock: int | None
    failures: list[Failure] = field(default_factory=list)

    def run(self) -> Report:
        """Train the missing runs, measure the latencies, and report."""
        self._check_recipes()
        for nth, (gate, number) in enumerate(self.plan.runs(), 1):
            if self._finished(gate, number) or self._decided(gate):
                continue
            self._train(gate, number, nth)
            if self.stop.received:
                self._leave()
            self._report(show_it=nth < len(self.plan.runs()))
        self._measure_latency()
        report = self._report(show_it=True)
        if report["runs"]:
            from excite.twins.figure import draw

            with dispensable("twins.png", self.display.message):
                draw(report, self.folder / "twins.png")
                draw(report, self.folder / "twins.svg")
        return report

    def _run_folder(self, gate: str, number: int) -> Path:
        return self.folder / self.plan.run_name(gate, number)

    def _finished(self, gate: str, number: int) -> bool:
        return (self._run_folder(gate, number) / RESULTS).is_file()

    def _decided(self, gate: str) -> bool:
        """Whether a gate needs no further seeds. The baseline needs them as long as another gate does."""
        if self.plan.margin is None:
            return False
        found = verdicts(self.plan, self.folder, self.confidence)
        return all(found.values()) if gate == self.plan.baseline else found[gate]

    def _results(self, gate: str, number: int) -> Results:
        return read_results(self._run_folder(gate, number) / RESULTS)

    def _check_recipes(self) -> None:
        for gate, number in self.plan.runs():
            run = self._run_folder(gate, number)
            if (run / "recipe.yaml").is_file() and load_recipe(str(run)) != self.plan.twin(gate, number):
                raise ExciteError(
                    f"{run} was trained with another recipe than that in {self.folder / PLAN}; move it away"
                )

    def _train(self, gate: str, number: int, nth: int) -> None:
        """Train one run from the start or its last checkpoint; a failure is recorded.

        Raises:
            ExciteError: no run folder was created, so the recipe, the data or the device are wrong.
        """
        run, recipe = self._run_folder(gate, number), self.folder / RECIPE
        what = f"run {nth}/{len(self.plan.runs())}  {gate}, {self.plan.unit} {number}"
        resuming = bool(saved_steps(run))
        self.display.message(f"{what}: {'resuming' if resuming else 'training'} ...{self._time_left()}")
        write_text(recipe, self.plan.twin(gate, number).to_yaml())
        code, errors = self._watch([str(recipe), "--run-dir", str(run), "--json"], what, run / "metrics.jsonl")
        recipe.unlink()
        if code == 0 and self._finished(gate, number):
            self._announce(gate, number, what)
        elif not self.stop.received:
            reason = _reason(errors, code)
            if not (run / "recipe.yaml").is_file():
                raise ExciteError(reason)
            self.failures.append({**self.plan.labels(gate, number), "reason": reason})
            self.display.message(f"{what}: FAILED: {reason}")

    def _watch(self, words: list[str], what: str, metrics: Path) -> tuple[int, str]:
        """Run ``excite train WORDS`` to its end: (exit status, standard error)."""
        shown = self.display.redraws and not self.display.quiet
        live = self.display.console.status(Text(printable(what)), spinner="line") if shown else nullcontext()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors, live as status:
            process = subprocess.Popen(
                _worker("train", *words),
                stdin=subprocess.PIPE,  # closes whenever this process ends: see excite.twins.worker
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},
                # Ctrl-C only reaches this process, which passes it on once: a second one would interrupt the saving.
                start_new_session=True,
                pass_fds=() if self.lock is None else (self.lock,),
            )
            try:
                told = False
                while process.poll() is None:
                    if self.stop.received and not told:
                        process.terminate()
                        told = True
                    if status is not None:
                        where = _progress(metrics, self.plan.recipe.train.epochs)
                        status.update(Text(printable(f"{what}  {where}")))
                    time.sleep(0.1)
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                assert process.stdin is not None
                process.stdin.close()
            errors.seek(0)
            return process.returncode, errors.read()

    def _announce(self, gate: str, number: int, what: str) -> None:
        results = self._results(gate, number)
        speed, seconds = results["images_per_second"], results["train_seconds"]
        assert seconds is not None
        measure = MEASURES[measure_in(results)]
        balanced = f", balanced {results['last_balanced']:.2f} %" if results.get("uneven") else ""
        self.display.message(
            f"{what}: {measure.label} {measure.text(last_of(results))}{balanced} (last epoch), "
            + ("" if speed is None else f"{speed:,.0f} img/s, ")
            + format_seconds(seconds)
        )

    def _time_left(self) -> str:
        """An estimate: all runs take as long as the finished ones, without start-up and evaluation."""
        if self.plan.margin is not None:
            return ""  # nobody knows how many seeds it takes
        runs = self.plan.runs()
        done = known(
            self._results(gate, number)["train_seconds"] for gate, number in runs if self._finished(gate, number)
        )
        if not done:
            return ""
        return f"  (about {format_seconds((len(runs) - len(done)) * sum(done) / len(done))} left)"

    def _leave(self) -> None:
        runs = self.plan.runs()
        done = sum(self._finished(gate, number) for gate, number in runs)
        self._report(show_it=True)
        raise Interrupted(
            f"stopped by {signal_name(self.stop.received)} with {done} of {len(runs)} runs finished; resume with: "
            f"excite twins --resume {self.folder}",
            self.stop.received,
        )

    def _measure_latency(self) -> None:
        """Measure all gates in turns in one process, once per set of gates; stored in ``latency.json``."""
        numbers = {
            gate: number for gate, number in reversed(self.plan.runs()) if self._finished(gate, number)
        }  # the first one
        numbers = {gate: numbers[gate] for gate in self.plan.gates if gate in numbers}
        path = self.folder / LATENCY
        kept = read_latency(path)
        if not numbers or (kept is not None and kept["ms"].keys() == numbers.keys()):
            return
        path.unlink(missing_ok=True)
        self.display.message("measuring the latency of one image ...")
        task = {
            "runs": {gate: str(self._run_folder(gate, number)) for gate, number in numbers.items()},
            "device": self.plan.recipe.train.device,
            "precision": self._results(*next(iter(numbers.items())))["precision"],
        }
        write_json(path, json.loads(_ask("latency", task, self.stop)))

    def _report(self, show_it: bool) -> Report:
        """Collect, write and show the results so far."""
        report = collect(self.plan, self.folder, self.failures, self.confidence)
        write_report(report, self.folder)
        if show_it:
            show_report(report, self.display)
        return report


def _reason(errors: str, code: int) -> str:
    """One sentence on why a process failed, from its standard error."""
    lines = [line for line in errors.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return said[-1]
    if code < 0:
        name = signal.Signals(-code).name
        return f"the training was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return lines[-1] if lines else f"the training ended with exit status {code}"


def _progress(metrics: Path, epochs: int) -> str:
    """The progress of a run, from the last complete line of its metrics."""
    if not metrics.is_file():
        return "starting ..."
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    for line in reversed(lines):
        try:
            record = from_json(line)
        except ValueError:
            continue
        if is_record(record) and record["kind"] == "train":
            left = format_seconds(record["seconds_left"])
            loss = "loss overflowed" if record["loss"] is None else f"loss {record['loss']:.4f}"
            return f"epoch {math.ceil(record['epoch'])}/{epochs}  {loss}  {left} left"
    return "starting ..."
