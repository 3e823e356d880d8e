"""The experiment: trains what is missing, one process after the other, and keeps the report up to date."""

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
from excite.errors import ExciteError
from excite.files import check_here, from_json, to_json, write_json, write_text
from excite.pages.figures import dispensable
from excite.recipe import Overrides, Recipe, as_recipe, load_recipe
from excite.runtime.job import world_size
from excite.text import printable
from excite.training.results import Results, read_results
from excite.training.run_folder import is_record
from excite.training.stop import Interrupted, StopSignals
from excite.twins.plan import PLAN, Plan, load_plan, make_plan, run_name
from excite.twins.report import Failure, Report, collect, known, read_latency, show_report, write_report
from excite.weights.locate import saved_steps

RESULTS, LATENCY, RECIPE, LOCK = "results.json", "latency.json", ".recipe.yaml", ".lock"
#: A training whose experiment was killed needs a moment to save and end.
LOCK_SECONDS = 30.0


def run_twins(
    recipe: Recipe | str | Path | None = None,
    overrides: Overrides = (),
    *,
    gates: str | Sequence[str] | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    confidence: float = 0.95,
    quiet: bool = False,
) -> Report:
    """Train one recipe with each gate and each seed, and report accuracy, size and speed side by side.

    Runs that are finished are kept, an interrupted one goes on exactly where it was; so the same call again goes on
    with the experiment. Gates and seeds may be added.

    Args:
        recipe: a Recipe, the name of a shipped one, a YAML file or a run folder; None with ``resume``.
        overrides: ``section.key=value`` strings; see ``load_recipe``.
        gates: labels as :func:`excite.twins.plan.parse_gate` reads them, in a list or separated by commas; None:
            ungated, SE and the three GE forms.
        seeds: how many, counted up from the recipe's ``train.seed``; None: 3, or those of the experiment.
        out: folder of the experiment; None: ``runs/twins-NAME`` with the recipe's name.
        resume: folder of an experiment to go on with, by its own recipe.
        confidence: of the intervals, between 0.5 and 0.999.
        quiet: print nothing.

    Returns:
        What ``results.json`` of the experiment holds: ``rows`` (one a gate), ``runs``, ``failures`` and what they were
        made with.

    Raises:
        ExciteError: a gate does not fit, the recipe or its data are wrong, or the folder is another experiment's; all
            found before anything trains.
        Interrupted: SIGTERM or Ctrl-C; the run that was under way saved a checkpoint first.
    """
    if world_size() > 1:
        raise ExciteError("start `excite twins` once, not under torchrun or accelerate: it starts each training itself")
    if not 0.5 <= confidence <= 0.999:
        raise ExciteError(f"--confidence must be between 0.5 and 0.999, such as 0.95, not {confidence:g}")
    if isinstance(gates, str):
        gates = [gate.strip() for gate in gates.split(",")]
    display = Display(quiet)
    folder, plan = _resolve(recipe, overrides, gates, seeds, out, resume, display)
    with StopSignals() as stop:
        _check(plan, folder, display, stop)
        with _locked(folder, display) as lock:
            plan.save(folder)
            return _Experiment(plan, folder, confidence, display, stop, lock).run()


def _resolve(
    recipe: Recipe | str | Path | None,
    overrides: Overrides,
    gates: Sequence[str] | None,
    seeds: int | None,
    out: str | Path | None,
    resume: str | Path | None,
    display: Display,
) -> tuple[Path, Plan]:
    if resume is not None:
        if recipe is not None or overrides or out is not None:
            raise ExciteError("--resume goes on with an experiment by its own recipe: give no recipe, changes or --out")
        folder, checked = Path(resume), None
    elif recipe is None:
        raise ExciteError("give a recipe (`excite recipes` lists them) or --resume DIR")
    else:
        # As the run folders' recipes will be: each run has a recipe of its own, which its training takes at its word.
        asked = as_recipe(recipe, overrides)
        folder = Path("runs") / f"twins-{asked.name}" if out is None else Path(out)
        checked, note = _settled(asked, folder).scaled()
        for line in (*checked.notes, *([note] if note else [])):
            display.message(line)
    check_here(str(resume or out), "the folder of an experiment")
    if folder.is_file():
        raise ExciteError(f"{folder} is a file; give a folder for the experiment")
    if not (folder / PLAN).is_file() and folder.is_dir() and any(p.name != LOCK for p in folder.iterdir()):
        raise ExciteError(f"{folder} holds other files and no {PLAN}: the experiment needs a folder of its own")
    return folder, make_plan(folder, checked, gates, seeds)


def _settled(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the precision of the experiment in ``folder``, or else with the one that a training on this
    machine gives it; see ``settle_precision``."""
    key = "train.precision"
    if recipe.is_own(key) or recipe.train.precision in ("auto", "fp32"):
        return recipe
    begun = load_plan(folder)
    if begun is not None:
        now = begun.recipe.train.precision
        same = now == recipe.train.precision
        return recipe if same else recipe.replaced(key, now, f"{now}, in which this experiment was begun")
    import torch

    from excite.runtime.device import count_devices
    from excite.training.precision import settle_precision

    return settle_precision(recipe, torch.device(count_devices(recipe.train.device)[0]))


def _check(plan: Plan, folder: Path, display: Display, stop: StopSignals) -> None:
    """Open the data and set up every gate not yet trained, in a process of its own, before anything trains."""
    seed = plan.seeds[0]
    new = [gate for gate in plan.gates if not any((folder / run_name(gate, s)).is_dir() for s in plan.seeds)]
    if new:
        display.message(f"checking the data and the networks with {', '.join(new)} ...")
        _ask("check", {gate: plan.twin(gate, seed).model_dump(mode="json") for gate in new}, stop)


def _ask(task: str, question: Any, stop: StopSignals) -> str:
    """What a worker prints. Raises ExciteError with its sentence, or Interrupted where it was asked to stop."""
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
        raise Interrupted(f"stopped by {_signal_name(stop.received)}; nothing is lost", stop.received)
    if done.returncode:
        raise ExciteError(_reason(done.stderr, done.returncode))
    return done.stdout


def _worker(*words: str) -> list[str]:
    return python_command("-m", "excite.twins.worker", *words)


@contextmanager
def _locked(folder: Path, display: Display) -> Iterator[int | None]:
    """Keep a second `excite twins` out of the folder; yields the lock's descriptor, which trainings inherit.

    So the lock holds as long as a training is at work, even when the experiment itself was killed.
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
            display.message(f"waiting for what is at work in {folder} ...")
            until = time.monotonic() + LOCK_SECONDS
            while not _try_lock(file):
                if time.monotonic() > until:
                    raise ExciteError(
                        f"another `excite twins`, or a training that it started, is at work in {folder}; wait until it "
                        f"ends, or end it"
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
    """An experiment at work; see :func:`run_twins` for the fields."""

    plan: Plan
    folder: Path
    confidence: float
    display: Display
    stop: StopSignals
    lock: int | None
    failures: list[Failure] = field(default_factory=list)

    def run(self) -> Report:
        """Train what is missing, measure the latencies, and report."""
        self._check_recipes()
        for number, (gate, seed) in enumerate(self.plan.runs(), 1):
            if self._finished(gate, seed):
                continue
            self._train(gate, seed, number)
            if self.stop.received:
                self._leave()
            self._report(show_it=number < len(self.plan.runs()))
        self._measure_latency()
        report = self._report(show_it=True)
        if report["runs"]:
            from excite.twins.figure import draw

            with dispensable("twins.png", self.display.message):
                draw(report, self.folder / "twins.png")
                draw(report, self.folder / "twins.svg")
        return report

    def _run_folder(self, gate: str, seed: int) -> Path:
        return self.folder / run_name(gate, seed)

    def _finished(self, gate: str, seed: int) -> bool:
        return (self._run_folder(gate, seed) / RESULTS).is_file()

    def _results(self, gate: str, seed: int) -> Results:
        return read_results(self._run_folder(gate, seed) / RESULTS)

    def _check_recipes(self) -> None:
        for gate, seed in self.plan.runs():
            run = self._run_folder(gate, seed)
            if (run / "recipe.yaml").is_file() and load_recipe(str(run)) != self.plan.twin(gate, seed):
                raise ExciteError(f"{run} was trained by another recipe than {self.folder / PLAN} says; move it away")

    def _train(self, gate: str, seed: int, number: int) -> None:
        """One run, from its start or its last checkpoint; a failure is remembered.

        Raises:
            ExciteError: it did not come as far as a run folder, so the recipe, the data or the device are at fault.
        """
        run, recipe = self._run_folder(gate, seed), self.folder / RECIPE
        what = f"run {number}/{len(self.plan.runs())}  {gate}, seed {seed}"
        resuming = bool(saved_steps(run))
        self.display.message(f"{what}: {'going on' if resuming else 'training'} ...{self._time_left()}")
        write_text(recipe, self.plan.twin(gate, seed).to_yaml())
        code, errors = self._watch([str(recipe), "--run-dir", str(run), "--json"], what, run / "metrics.jsonl")
        recipe.unlink()
        if code == 0 and self._finished(gate, seed):
            self._announce(gate, seed, what)
        elif not self.stop.received:
            reason = _reason(errors, code)
            if not (run / "recipe.yaml").is_file():
                raise ExciteError(reason)
            self.failures.append({"gate": gate, "seed": seed, "reason": reason})
            self.display.message(f"{what}: FAILED: {reason}")

    def _watch(self, words: list[str], what: str, metrics: Path) -> tuple[int, str]:
        """Run ``excite train WORDS`` to its end: (exit status, standard error)."""
        shown = self.display.console.is_terminal and not self.display.quiet
        live = self.display.console.status(Text(printable(what)), spinner="line") if shown else nullcontext()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors, live as status:
            process = subprocess.Popen(
                _worker("train", *words),
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends: see excite.twins.worker
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},
                # Ctrl-C reaches this process alone, which passes it on once: a second one would not wait for the save.
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

    def _announce(self, gate: str, seed: int, what: str) -> None:
        results = self._results(gate, seed)
        speed, seconds = results["images_per_second"], results["train_seconds"]
        assert seconds is not None
        self.display.message(
            f"{what}: top-1 {results['last_top1']:.2f} % (last epoch), "
            + ("" if speed is None else f"{speed:,.0f} img/s, ")
            + format_seconds(seconds)
        )

    def _time_left(self) -> str:
        """A guess: all runs take as long as those that are finished, without start-up and evaluation."""
        runs = self.plan.runs()
        done = known(self._results(gate, seed)["train_seconds"] for gate, seed in runs if self._finished(gate, seed))
        if not done:
            return ""
        return f"  (about {format_seconds((len(runs) - len(done)) * sum(done) / len(done))} left)"

    def _leave(self) -> None:
        runs = self.plan.runs()
        done = sum(self._finished(gate, seed) for gate, seed in runs)
        self._report(show_it=True)
        raise Interrupted(
            f"stopped by {_signal_name(self.stop.received)} with {done} of {len(runs)} runs finished; go on with: "
            f"excite twins --resume {self.folder}",
            self.stop.received,
        )

    def _measure_latency(self) -> None:
        """Once for a set of gates, all in turns in one process; kept in ``latency.json``."""
        seeds = {gate: seed for gate, seed in reversed(self.plan.runs()) if self._finished(gate, seed)}  # the first one
        seeds = {gate: seeds[gate] for gate in self.plan.gates if gate in seeds}
        path = self.folder / LATENCY
        kept = read_latency(path)
        if not seeds or (kept is not None and kept["ms"].keys() == seeds.keys()):
            return
        path.unlink(missing_ok=True)
        self.display.message("measuring the latency of one image ...")
        task = {
            "runs": {gate: str(self._run_folder(gate, seed)) for gate, seed in seeds.items()},
            "device": self.plan.recipe.train.device,
            "precision": self._results(*next(iter(seeds.items())))["precision"],
        }
        write_json(path, json.loads(_ask("latency", task, self.stop)))

    def _report(self, show_it: bool) -> Report:
        """Collect, write and show what there is so far."""
        report = collect(self.plan, self.folder, self.failures, self.confidence)
        write_report(report, self.folder)
        if show_it:
            show_report(report, self.display)
        return report


def _signal_name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _reason(errors: str, code: int) -> str:
    """One sentence on why a process failed, from what it wrote to standard error."""
    lines = [line for line in errors.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return said[-1]
    if code < 0:
        name = signal.Signals(-code).name
        return f"the training was killed by {name}{' (for want of memory?)' if name == 'SIGKILL' else ''}"
    return lines[-1] if lines else f"the training ended with exit status {code}"


def _progress(metrics: Path, epochs: int) -> str:
    """Where a run is, from the last whole line of its metrics."""
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
