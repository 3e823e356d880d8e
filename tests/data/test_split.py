"""The rule of which images are held out, beside the same rule in plain Python with sets."""

import hashlib
from collections import defaultdict

import numpy as np
import pytest

from excite.data import DataConfig, open_data
from excite.data.split import draw, fold_split, group_keys, stable_split
from excite.errors import ExciteError


def number_of(key: bytes, seed: int) -> float:
    digest = hashlib.blake2b(f"excite split {seed}\0".encode() + key, digest_size=8).digest()
    return sum(byte << (8 * place) for place, byte in enumerate(digest)) / 2**64


def test_the_numbers_are_these_for_ever():
    """A run that goes on next year must hold out the same images."""
    assert draw([b"cat/1.jpg", b"\xe9"], 3).tolist() == [number_of(b"cat/1.jpg", 3), number_of(b"\xe9", 3)]
    assert draw([b"a"], 0)[0] != draw([b"a"], 1)[0]


def plainly(keys: list[bytes], labels: list[int], fraction: float, seed: int) -> set[bytes]:
    """The groups that validate."""
    number = {key: number_of(key, seed) for key in keys}
    held = {key for key in number if number[key] < fraction}
    groups, classes = defaultdict(set), defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        groups[label].add(key)
        classes[key].add(label)

    def is_last_of_another(key: bytes, own: int) -> bool:
        same_side = held if key in held else set(number) - held
        return any(groups[label] & same_side == {key} for label in classes[key] - {own})

    for label in sorted(groups):
        mine = groups[label]
        if not mine - held:  # none trains: the one that came nearest to training does
            for key in sorted(mine, key=lambda k: -number[k]):
                if not is_last_of_another(key, label):
                    held.remove(key)
                    break
        if not mine & held and len(mine) > 1:
            for key in sorted(mine, key=lambda k: number[k]):
                if not is_last_of_another(key, label):
                    held.add(key)
                    break
    if not held:
        held = {key for key in number if number[key] < fraction} | {min(number, key=lambda k: number[k])}
        if len(held) == len(number):
            held.remove(max(number, key=lambda k: number[k]))
    return held


@pytest.mark.parametrize("shared", [False, True], ids=["groups of one class", "groups across classes"])
def test_the_rule_is_the_plain_one(shared):
    moved = 0
    for case in range(1000):
        rng = np.random.default_rng(case)
        images, kinds = int(rng.integers(2, 60)), int(rng.integers(1, 13))
        labels = rng.integers(0, kinds, images).tolist()
        of = rng.integers(0, max(2, int(rng.integers(2, 20))), images)
        keys = [f"{g}{'' if shared else f' of {label}'}".encode() for g, label in zip(of, labels, strict=True)]
        if case % 5 == 0:
            keys = [f"{i}".encode() for i in range(images)]  # every image for itself
        if len(set(keys)) < 2:
            continue
        fraction, seed = float(rng.choice([0.05, 0.2, 0.5, 0.95])), case % 7
        held = plainly(keys, labels, fraction, seed)
        train, val = stable_split(keys, labels, fraction, seed)
        assert val.tolist() == [i for i, key in enumerate(keys) if key in held], case
        assert train.tolist() == [i for i, key in enumerate(keys) if key not in held], case
        moved += held != {key for key in keys if number_of(key, seed) < fraction}
    assert moved > 100  # else the cases would ask nothing


def test_a_class_of_one_group_trains_though_the_group_has_other_classes():
    """Of 40 patients one has the rare disease: whatever his number, his images of it are trained on."""
    for seed in range(40):
        keys = [*(f"patient {i}".encode() for i in range(40)), b"patient 0"]
        train, _ = stable_split(keys, [*[0] * 40, 1], 0.3, seed)
        assert 40 in train, seed


def test_two_groups_are_the_fewest():
    train, val = stable_split([b"a", b"b"], [0, 0], 0.2, 0)
    assert (len(train), len(val)) == (1, 1)
    with pytest.raises(ExciteError, match=r"2 images in one group .* add more, or add a validation folder$"):
        stable_split([b"a", b"a"], [0, 1], 0.2, 0)


def test_names_that_differ_in_their_last_byte_only():
    train, val = stable_split([b"a", b"a\0"], [0, 0], 0.5, 0)  # NumPy's byte strings would be equal
    assert (len(train), len(val)) == (1, 1)


def test_what_names_a_group():
    paths = ["cat/b1/x/a-2.png", "cat/b1/y/a-3.png", "dog/b1/a.png", "dog/\udce9/c.png"]
    assert group_keys(paths, 1) == ([b"b1", b"b1", b"b1", b"\xe9"], 0)
    assert group_keys(paths, 2) == ([b"b1/x", b"b1/y", b"\0dog/b1/a.png", b"\0dog/\xe9/c.png"], 2)
    assert group_keys(paths, r"a-\d") == ([b"a-2", b"a-3", b"\0dog/b1/a.png", b"\0dog/\xe9/c.png"], 2)
    assert group_keys(paths, r"/(\w+)/(?:(\w)/)?a") == ([b"b1\0x", b"b1\0y", b"b1\0", b"\0dog/\xe9/c.png"], 1)
    with pytest.raises(ExciteError, match=r"none of 2 images has a group \(no match in 'cat/b1/x/a-2.png'\)"):
        group_keys(paths[:2], "z")


# --- folds ------------------------------------------------------------------------------------------------------------


def test_each_image_is_in_one_fold_and_groups_stay_together():
    keys = [f"patient {i % 97}".encode() for i in range(500)]
    folds = [fold_split(keys, k, 5, 3) for k in range(1, 6)]
    assert sorted(np.concatenate([out for _, out in folds]).tolist()) == list(range(500))
    for keep, out in folds:
        assert sorted([*keep.tolist(), *out.tolist()]) == list(range(500))
        assert not {keys[i] for i in keep} & {keys[i] for i in out}
        assert 50 < len(out) < 150
    numbers = [number_of(key, 3) for key in keys]
    assert folds[2][1].tolist() == [i for i, number in enumerate(numbers) if 0.4 <= number < 0.6]
    more = fold_split([*keys, b"new"], 3, 5, 3)[1].tolist()  # a new image moves no other
    assert [i for i in more if i < 500] == folds[2][1].tolist()


def test_folds_that_hold_nothing_are_refused():
    keys = [b"a", b"a", b"b"]
    empty = next(k for k in range(1, 9) if not any(int(number_of(key, 0) * 8) == k - 1 for key in keys))
    with pytest.raises(ExciteError, match=rf"data.fold={empty}/8 has none of the 3 images, which are 2 groups"):
        fold_split(keys, empty, 8, 0)
    with pytest.raises(ExciteError, match="has all of the 2 images, which are 1 groups"):
        fold_split(keys[:2], int(number_of(b"a", 0) * 2) + 1, 2, 0)


def test_every_image_of_a_source_validates_once():
    base = {"source": "digits", "image_size": 8, "in_chans": 1}
    parts = [open_data(DataConfig(**base, fold=fold)) for fold in ("1/3", (2, 3), [3, 3])]
    names = [name for part in parts for name in part.val.digests()]
    whole = [*parts[0].train.digests(), *parts[0].val.digests()]
    assert sorted(names) == sorted(whole)
    assert "(fold 1 of 3, data.fold)" in " ".join(parts[0].notes)
    assert DataConfig(**base, fold="1/3").fold == [1, 3]
    assert len({part.fingerprint for part in parts}) == 3


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1", 2, [1], [1, 2, 3], [True, 2], "1/5/2", "a/b"])
def test_a_fold_is_two_numbers(fold):
    with pytest.raises(ValueError, match="but a fold is its number and how many there are"):
        DataConfig(source="digits", image_size=8, fold=fold)


def test_what_does_not_go_with_folds_is_refused():
    with pytest.raises(
        ValueError, match=r"validates on training images, not on the test part; give data.val_from=auto"
    ):
        DataConfig(source="digits", image_size=8, fold="1/5", val_from="test")
    with pytest.raises(ValueError, match=r"holds out a share of 1/5, so data.val_fraction=0.3 has no effect"):
        DataConfig(source="digits", image_size=8, fold="1/5", val_fraction=0.3)
