"""Translate the options of timm, torchvision, Ultralytics and fastai into those of excite.

A rejected command line is read again, word by word. Each word that the command does not know is replaced by its
equivalent here, and the message ends with the corrected line, ready to copy. Nothing heavy is imported.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

#: Recipe key -> other names for it, normalised: lower case, "_" for "-".
_KEYS: dict[str, str] = {
    "data.root": "data dataset data_dir data_path dataset_dir dataset_path train_dir root dir path folder image_dir",
    "data.image_size": "imgsz img_size input_size image_size resolution size img crop_size train_crop_size",
    "data.eval_size": "val_crop_size test_input_size eval_img_size",
    "data.fit": "crop_mode resize_mode",
    "data.workers": "num_workers j nw n_workers dataloader_num_workers",
    "data.fold": "fold_idx kfold cv_fold",
    "data.val_fraction": "valid_pct val_pct val_split val_ratio",
    "data.interpolation": "train_interpolation",
    "data.sampler": "weighted_sampler class_sampler",
    "data.in_chans": "channels in_channels ch",
    "train.epochs": "epoch e n_epochs num_epochs max_epochs num_train_epochs n_epoch",
    "train.batch_size": "batch bs b batchsize train_batch_size per_device_train_batch_size",
    "train.label_smoothing": "smoothing",
    "train.ema_decay": "model_ema_decay",
    "train.patience": "early_stopping_patience early_stopping early_stop",
    "train.class_weights": "class_weight cls_weights loss_weights",
    "train.focal_gamma": "fl_gamma",
    "train.precision": "amp_dtype dtype mixed_precision",
    "train.grad_accumulation": "accumulate grad_accum grad_accum_steps gradient_accumulation_steps",
    "train.grad_checkpointing": "gradient_checkpointing activation_checkpointing",
    "train.init_from": "pretrained weights initial_checkpoint pretrained_path init checkpoint ckpt finetune_from",
    "train.progressive": "progressive_resizing progressive_sizes image_size_schedule",
    "train.teacher": "teacher_model teacher_path kd_model kd_model_path distill",
    "train.distill_temperature": "kd_temperature temperature",
    "train.distill_weight": "kd_weight distillation_weight distill_alpha",
    "train.device": "gpu accelerator",
    "train.devices": "gpus ngpus num_gpus n_gpus nproc nproc_per_node world_size",
    "train.seed": "random_seed manual_seed",
    "train.sync_bn": "sync_batchnorm syncbn",
    "train.compile": "torchcompile",
    "optimizer.lr": "lr0 learning_rate lr_max base_lr max_lr",
    "optimizer.name": "optimizer opt optim",
    "optimizer.weight_decay": "wd l2",
    "optimizer.clip_grad_norm": "clip_grad grad_clip max_grad_norm gradient_clip_val",
    "schedule.name": "schedule sched scheduler lr_scheduler lr_schedule lr_policy",
    "schedule.warmup_epochs": "warmup lr_warmup_epochs",
    "schedule.warmup_lr": "lr_warmup_init warmup_lr_init",
    "schedule.end_lr": "min_lr lr_min eta_min",
    "schedule.step_epochs": "lr_step_size step_size decay_epochs",
    "schedule.milestones": "decay_milestones lr_steps",
    "schedule.gamma": "lr_gamma decay_rate",
    "model.name": "model arch a m architecture network net backbone model_name",
    "model.drop_rate": "drop dropout",
    "model.drop_path_rate": "drop_path stochastic_depth stochastic_depth_prob",
    "augment.hflip": "fliplr hflip_prob",
    "augment.vflip": "flipud",
    "augment.color_jitter": "jitter colorjitter",
    "augment.random_erasing": "reprob erasing random_erase random_erase_prob",
    "augment.mixup": "mixup_alpha",
    "augment.cutmix": "cutmix_alpha",
    "augment.rotation": "degrees rotate",
    "augment.repeats": "aug_repeats ra_reps",
    "eval.batch_size": "val_batch_size validation_batch_size eval_batch_size",
    "eval.metric": "eval_metric monitor metric_for_best_model best_metric",
    "eval.every_epochs": "val_freq eval_interval val_interval",
    "log.every_steps": "log_interval print_freq p log_every_n_steps",
    "log.tensorboard": "log_tensorboard tb",
    "checkpoint.every_epochs": "save_period save_freq checkpoint_hist",
}
#: Option -> other names for it, in addition to those of the recipe key of that name.
_OPTIONS: dict[str, str] = {
    "out": "output output_dir out_dir outdir save_dir log_dir logdir project o output_path destination",
    "resume": "resume_from resume_path resume_from_checkpoint auto_resume continue",
    "top_k": "topk k top",
    "force": "overwrite exist_ok yes y",
    "format": "fmt export_format f to_format",
    "classes": "class_names names class_map label_names",
    "batch": "batch_size bs b",
    "images": "limit max_images n",
    "to": "library",
    "json": "as_json",
}
#: Flag of another library -> its equivalent here, a key with a value.
_SWITCHES: dict[str, str] = {
    "amp": "train.precision=auto",
    "native_amp": "train.precision=auto",
    "half": "train.precision=fp16",
    "fp16": "train.precision=fp16",
    "bf16": "train.precision=bf16",
    "model_ema": "train.ema_decay=0.9998",
    "ema": "train.ema_decay=0.9998",
    "cos_lr": "schedule.name=cosine",
    "cosine": "schedule.name=cosine",
    "pretrained": "train.init_from=CHECKPOINT",
    "torchcompile": "train.compile=default",
    "compile": "train.compile=default",
    "aa": "augment.rand_augment={n: 2, m: 9}",
    "auto_augment": "augment.rand_augment={n: 2, m: 9}",
    "randaugment": "augment.rand_augment={n: 2, m: 9}",
}
#: Flags that ask to evaluate a trained network.
_EVALUATE = frozenset(["e", "evaluate", "eval", "eval_only", "test_only", "validate", "val", "only_eval", "test"])
#: Other names for commands.
_COMMANDS: dict[str, str] = {
    **dict.fromkeys(["val", "valid", "eval", "evaluate", "test", "score", "validation"], "validate"),
    **dict.fromkeys(["fit", "finetune", "fine-tune", "fine_tune", "run", "training", "classify"], "train"),
    **dict.fromkeys(["infer", "inference", "prediction", "detect"], "predict"),
    **dict.fromkeys(["benchmark", "speed", "profile", "time"], "bench"),
    **dict.fromkeys(["list", "ls", "zoo", "list-models", "list_models", "model"], "models"),
    **dict.fromkeys(["recipe", "config", "configs", "cfg"], "recipes"),
    **dict.fromkeys(["import", "load", "download"], "convert"),
    **dict.fromkeys(["upload", "push"], "sync"),
}
#: Names for the trained network and for the images to classify, which are positional arguments here.
_RUN = frozenset(["model", "weights", "checkpoint", "ckpt", "resume", "run", "pretrained", "path", "m", "init_from"])
_IMAGES = frozenset(["source", "input", "inputs", "img", "image", "images", "data", "dir", "folder", "root"])

_YES, _NO = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off", "none", "null"})
_KEY = re.compile(r"[A-Za-z_][\w.-]*")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Shape:
    """The options and arguments of a command.

    Attributes:
        name: the command.
        options: option, with its dashes -> whether a value follows.
        keys: full names of the recipe keys that it accepts.
        run: whether its first argument is a trained network.
        images: whether images follow.
        all_keys: full names of all recipe keys.
        flags: those of them that are true or false.
    """

    name: str
    options: Mapping[str, bool]
    keys: Sequence[str] = ()
    run: bool = False
    images: bool = False
    all_keys: Sequence[str] = ()
    flags: frozenset[str] = frozenset()


def _plain(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_")


def _group(key: str, others: str) -> set[str]:
    return {key.rpartition(".")[2], *others.split()}


def key_of(name: str, keys: Iterable[str]) -> str | None:
    """The recipe key for a name, which may come from another library; None if there is none.

    Args:
        name: as typed, with or without a section: ``imgsz``, ``data.dir``, ``learning-rate``.
        keys: the keys to choose from, with their sections.
    """
    known, plain = list(keys), _plain(name)
    section, _, last = plain.rpartition(".")
    if plain in known:
        return plain
    same = [key for key in known if key.rpartition(".")[2] == last]
    for key in (f"train.{last}", *(same if len(same) == 1 else ())):
        if key in same and section in ("", key.partition(".")[0]):
            return key
    found = [key for key, others in _KEYS.items() if key in known and last in others.split()]
    return next((key for key in found if section in ("", key.partition(".")[0])), found[0] if found else None)


def _option_of(name: str, shape: Shape) -> str | None:
    """The command's option for a name; None if there is none."""
    plain = _plain(name)
    if f"--{plain.replace('_', '-')}" in shape.options:
        return f"--{plain.replace('_', '-')}"
    groups = [_group(key, others) for key, others in [*_KEYS.items(), *_OPTIONS.items()]]
    same = {each for group in groups if plain in group for each in group}
    return next((o for o in shape.options if o.startswith("--") and _plain(o) in same), None)


def corrected(
    words: Sequence[str], shapes: Mapping[str, Shape], instead: Mapping[str, str] | None = None
) -> str | None:
    """The corrected form of a rejected command line; None if no correction is known.

    Args:
        words: the words after ``excite``.
        shapes: the commands, by name.
        instead: replacements for words that the error supplies.
    """
    if not words:
        return None
    first, *rest = words
    several = [each for each in shapes if each.startswith(f"{first} ")]  # `data check`: a command of two words
    if several:
        second = rest[0] if rest else ""
        near = get_close_matches(second, [each.partition(" ")[2] for each in several], n=1, cutoff=0.6)
        first, rest = (f"{first} {near[0]}", rest[1:]) if near else (first, rest)
    name = first if first in shapes else _COMMANDS.get(first.lower())
    if first not in shapes and rest and rest[0] in shapes:  # yolo classify train ...
        name, rest = rest[0], rest[1:]
    if name is None or name not in shapes:
        near = get_close_matches(first, list(shapes), n=1, cutoff=0.6)
        if not near:
            return None
        name = near[0]
    rest = [(instead or {}).get(word, word) for word in rest]
    found = list(_Reader(shapes[name], rest).read())
    if name == "train" and any(word == "validate" for word in found if isinstance(word, _Command)):
        runs = [word for word in found if os.path.isfile(Path(word, "recipe.yaml"))]
        return f"excite validate {shlex.quote(runs[0]) if runs else 'RUN'}"
    if not found and (shapes[name].keys or shapes[name].run):  # which need arguments
        return None
    line = [*name.split(" "), *found]
    return None if line == list(words) else f"excite {' '.join(map(_quoted, line))}"


class _Command(str):
    """A word that stands for another command."""


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[A-Z|.]+", word) else shlex.quote(word)


class _Reader:
    """Reads the words after a command and yields their equivalents here."""

    def __init__(self, shape: Shape, words: Sequence[str]) -> None:
        self.shape, self.words, self.at = shape, list(words), 0
        self.arguments = 0  # positional arguments so far

    def read(self) -> Iterator[str]:
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if word == "--":
                yield from [word, *self.words[self.at :]]
                return
            if word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word):
                yield from self._option(word)
            else:
                yield from self._argument(word)

    # --- options ------------------------------------------------------------------------------------------------------

    def _option(self, word: str) -> Iterator[str]:
        name, equals, text = word.partition("=")
        if not equals and name not in self.shape.options and (joined := re.fullmatch(r"(-[a-zA-Z])([\d.]+)", word)):
            name, text = joined.groups()
            equals = "="
        if name in self.shape.options:
            yield from self._known_option(word, name, bool(equals))
            return
        if not word.startswith("--") and self.shape.options.get(word[:2]):  # -k5
            yield word
            return
        given: str | None = text if equals else self._next_value()
        if given is None and _plain(name) in _EVALUATE and self.shape.name == "train":
            yield _Command("validate")
        elif (found := self._said_here(name, given)) is not None:
            if not equals and given is not None and (not found or given.lower() in _YES | _NO or _says(found, given)):
                self.at += 1  # otherwise the next word is not its value
            yield from found
        elif near := get_close_matches(name, [o for o in self.shape.options if o.startswith("--")], n=1, cutoff=0.75):
            yield near[0]
        elif not equals and given is not None and not os.path.exists(given):
            self.at += 1  # dropped, with its value

    def _known_option(self, word: str, name: str, equals: bool) -> Iterator[str]:
        value = self._next_value()
        if name == "--resume" and not equals:
            if value is not None and value.lower() not in _YES and "=" not in value:
                self.at += 1
                yield from [word, _run_of(value)]
            else:
                self.at += value is not None and value.lower() in _YES
                yield from [word, newest_run()]
            return
        yield word
        if self.shape.options[name] and not equals and self.at < len(self.words):
            yield self.words[self.at]
            self.at += 1

    def _next_value(self) -> str | None:
        if self.at >= len(self.words):
            return None
        word = self.words[self.at]
        key, equals, _ = word.partition("=")
        if equals and key_of(key, self.shape.all_keys) is not None and not os.path.exists(word):
            return None
        return None if word.startswith("-") and not _NUMBER.fullmatch(word) else word

    # --- arguments ----------------------------------------------------------------------------------------------------

    def _argument(self, word: str) -> Iterator[str]:
        key, text = self._key_and_value(word)
        if key is None:
            self.arguments += 1
            if (
                any(_plain(each.partition("=")[0]) == "resume" for each in self.words)
                and self.shape.keys
                and not os.path.exists(word)
            ):
                return  # a recipe next to --resume: the run has its own
            yield word
            return
        known = key_of(key, self.shape.all_keys)
        if self._is_exact(key) and (known in self.shape.keys or (known is None and self.shape.keys)):
            said = _with_value(known or key, text)
            yield f"{key}={text}" if said.endswith(f"={text}") else said
        elif (found := self._said_here(key, text)) is not None:
            yield from found
        elif known is None and not self._is_exact(key) and _plain(key) not in _SWITCHES:
            near = get_close_matches(_plain(key), self._names(), n=1, cutoff=0.6)
            yield f"{near[0] if near else key}={text}"
        # else: a recipe key that this command does not accept: dropped

    def _key_and_value(self, word: str) -> tuple[str | None, str]:
        """Split ``key=value``, also with spaces around the "=" or in its place; (None, "") for other words."""
        key, equals, text = word.partition("=")
        if os.path.exists(word) or not _KEY.fullmatch(key):
            return None, ""
        if equals:
            if not text and self._next_value() is not None and "=" not in self.words[self.at]:
                text = self._take()
            return key, text
        following = self.words[self.at] if self.at < len(self.words) else ""
        if following == "=":
            self.at += 1
            return key, self._take() if self._next_value() is not None else ""
        if following.startswith("=") and not os.path.exists(following):
            return key, self._take()[1:]
        is_key = self.arguments > 0 and self.shape.keys and key_of(key, self.shape.keys) is not None
        if is_key and following and not following.startswith("-") and "=" not in following:
            return key, self._take()
        return None, ""

    def _take(self) -> str:
        self.at += 1
        return self.words[self.at - 1]

    def _is_exact(self, key: str) -> bool:
        """Whether the key, as typed, is a recipe key."""
        names = {*self.shape.all_keys, *(full.partition(".")[2] for full in self.shape.all_keys), "name", "data"}
        return key in names or any(key.startswith(f"{full}.") for full in self.shape.all_keys)

    def _names(self) -> list[str]:
        return [*self.shape.keys, *(key.partition(".")[2] for key in self.shape.keys)]

    # --- equivalents --------------------------------------------------------------------------------------------------

    def _said_here(self, name: str, text: str | None) -> list[str] | None:
        """The equivalent here of ``name`` with the value ``text``; None if it is unknown."""
        plain = _plain(name)
        is_switch = text is None or text.lower() in _YES | _NO
        if plain in _SWITCHES and self.shape.keys and _SWITCHES[plain].partition("=")[0] in self.shape.keys:
            if text is not None and text.lower() in _NO:
                return []
            if is_switch or plain in ("aa", "auto_augment") or not _takes(_SWITCHES[plain], text):
                return [_SWITCHES[plain]]
        option = _option_of(name, self.shape)
        if self.shape.run and plain in _RUN and option is None and self.arguments == 0 and text:
            self.arguments += 1
            return [text]
        if self.shape.images and plain in _IMAGES and option is None and text:
            return [text]
        key = key_of(name, self.shape.keys)
        if key is not None and (option is None or self.shape.name == "bench"):  # with --data, bench takes recipe keys
            flag = key in self.shape.flags and (text is None or text.lower() not in _YES | _NO)
            return [f"{key}=true" if flag else _with_value(key, text)]
        if option is None:
            return None
        if not self.shape.options[option]:
            return [] if text is not None and text.lower() in _NO else [option]
        if option == "--resume":
            return [option, newest_run() if is_switch else _run_of(text or "")]
        return [option, "VALUE" if text is None else text]


def _says(found: Sequence[str], given: str) -> bool:
    """Whether the value is part of the equivalent, perhaps in another form: a GPU number, a run folder."""
    other = ("=cuda", "train.devices=", "augment.rand_augment=")
    return any(word.endswith(given) or word == _run_of(given) or any(o in word for o in other) for word in found)


def _takes(switch: str, text: str | None) -> bool:
    """Whether the value belongs to the key that a flag stands for, such as a path for init_from."""
    return switch.startswith(("train.init_from", "train.ema_decay", "train.compile")) and text is not None


def _with_value(key: str, text: str | None) -> str:
    if text is None:
        return f"{key}=VALUE"
    if key == "train.device" and re.fullmatch(r"\d+|cuda:\d+", text):
        return f"{key}=cuda"
    if key == "train.device" and re.fullmatch(r"\d+(,\d+)+", text):
        return f"train.devices={len(text.split(','))}"
    return f"{key}={text}"


def newest_run(folder: str = "runs") -> str:
    """The most recently changed run folder, to resume; "RUN" if there is none."""
    try:
        runs = [path.parent for path in Path(folder).glob("*/recipe.yaml")]
        return str(max(runs, key=lambda run: run.stat().st_mtime)) if runs else "RUN"
    except OSError:
        return "RUN"


def _run_of(path: str) -> str:
    """The run folder that contains a checkpoint; the path itself if there is none."""
    for folder in [Path(path), *Path(path).parents][:4]:
        if os.path.isfile(folder / "recipe.yaml"):
            return str(folder)
    return path
