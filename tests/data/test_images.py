"""Images in memory: brought to a size as files are, made gray as Pillow does it, ordered and split by class."""

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import eval_transform
from excite.data.images import balanced_order, fitted, luma, stratified_split


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(9, 14), (14, 9), (7, 20), (20, 7)])
def test_arrays_are_fitted_as_files_are(channels, height, width):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, channels, height, width), dtype=np.uint8))
    found = fitted(images, 7, 0.875, "bicubic")
    assert found.shape == (4, channels, 7, 7)
    for image, one in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
        assert np.array_equal(one.permute(1, 2, 0).numpy(), eval_transform(picture, 7, 0.875, "bicubic"))
    square = images[..., :7, :7]
    assert fitted(square, 7, 0.875, "bicubic") is square


def test_gray_is_pillows_for_a_million_colours():
    colours = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    found = luma(torch.from_numpy(colours).permute(2, 0, 1)[None])
    assert np.array_equal(found[0, 0].numpy(), np.asarray(Image.fromarray(colours).convert("L")))


def test_every_beginning_of_a_balanced_order_is_balanced_and_the_seed_decides():
    labels = np.array([0] * 50 + [1] * 30 + [2] * 5)
    order = balanced_order(labels, 3)
    assert sorted(order) == list(range(85))
    for end in range(1, 85):
        counts = np.bincount(labels[order[:end]], minlength=3)
        lacking = counts < [50, 30, 5]  # a class that has no more images may have fewer
        assert counts.max() - counts[lacking].min(initial=counts.max()) <= 1
    assert np.array_equal(balanced_order(labels, 3), order)
    assert not np.array_equal(balanced_order(labels, 4), order)


@pytest.mark.parametrize("case", range(200))
def test_a_split_has_its_size_and_shares_it_out_by_class(case):
    rng = np.random.default_rng(case)
    classes = int(rng.integers(1, 8))
    labels = rng.permutation(np.concatenate([np.full(rng.integers(1, 30), k) for k in range(classes)]))
    fraction = float(rng.choice([0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 0.999]))
    if len(labels) < 2:
        return
    train, val = stratified_split(labels, fraction, case)
    total = min(max(1, round(len(labels) * fraction)), len(labels) - 1)
    assert (len(val), sorted([*train, *val])) == (total, list(range(len(labels))))
    assert (list(train), list(val)) == (sorted(train), sorted(val))
    here, counts = np.bincount(labels[val], minlength=classes), np.bincount(labels, minlength=classes)
    if len(labels) - total >= classes:
        assert (here < counts).all()  # every class keeps an image for training
        assert (here >= np.minimum(np.floor(counts * total / len(labels)), counts - 1)).all()
    again = stratified_split(labels, fraction, case)
    assert np.array_equal(again[1], val)
