"""Streaming statistics against plain float64 arithmetic on scales that were kept."""

import numpy as np
import pytest
import torch

from excite.errors import ExciteError
from excite.explain import ScaleStatistics, collect_scales, listening


def streamed(scales: torch.Tensor, labels: torch.Tensor, classes: int, sizes: list[int]) -> ScaleStatistics:
    found = ScaleStatistics(classes)
    for part, own in zip(scales.split(sizes), labels.split(sizes), strict=True):
        found.update(part, own)
    return found


@pytest.fixture(params=[(), (3, 5)], ids=["channels", "maps"])
def example(request):
    """Scales (60, 6[, 3, 5]) that depend on the class, labels of 4 classes out of 5, and the statistics."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (60,), generator=generator)
    noise = torch.randn(60, 6, *request.param, generator=generator)
    shift = labels.float().view(-1, *[1] * (noise.ndim - 1))
    scales = torch.sigmoid(0.7 * noise + 0.5 * shift)
    return scales, labels, streamed(scales, labels, 5, [1, 22, 30, 7])


def kept(scales: torch.Tensor) -> np.ndarray:
    return scales.double().numpy().reshape(*scales.shape[:2], -1).mean(2)


def test_means_and_deviations(example):
    scales, labels, found = example
    values, k = kept(scales), labels.numpy()
    np.testing.assert_allclose(found.overall_mean(), values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.overall_sd(), values.std(0, ddof=1), rtol=1e-10)
    assert found.images == 60
    assert found.count.tolist() == np.bincount(k, minlength=5).tolist()
    for each in range(4):
        np.testing.assert_allclose(found.mean[each], values[k == each].mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.class_sd(each), values[k == each].std(0, ddof=1), rtol=1e-10)
    assert found.class_sd(4).tolist() == [0.0] * 6


def test_variance_between_classes(example):
    scales, labels, found = example
    values, k = kept(scales), labels.numpy()
    centre = values.mean(0)
    between = sum((k == each).sum() * (values[k == each].mean(0) - centre) ** 2 for each in range(4)).sum()
    assert found.class_share() == pytest.approx(between / ((values - centre) ** 2).sum(), rel=1e-10)
    assert found.chance_share() == pytest.approx(3 / 59)


def test_shares_quantiles_and_histogram(example):
    scales, _, found = example
    values = scales.double().numpy().ravel()
    for share, quantile in zip((0.05, 0.5, 0.9), found.quantiles((0.05, 0.5, 0.9)), strict=True):
        assert quantile == pytest.approx(np.quantile(values, share, method="inverted_cdf"), abs=1e-3)
    assert found.quantiles((0, 1)) == [values.min(), values.max()]
    edges, shares = found.coarse_histogram(20)
    np.testing.assert_allclose(shares, np.histogram(values, np.array(edges))[0] / len(values), atol=1e-12)
    assert sum(shares) == pytest.approx(1)
    assert found.share_below(0.3) == pytest.approx((values < 0.3).mean(), abs=1e-12)


def test_variance_between_positions(example):
    scales, _, found = example
    if scales.ndim == 2:
        assert found.to_dict()["sd_positions"] is None
        assert not found.spatial
        return
    variance = scales.double().flatten(2).numpy().var(2).mean()
    assert found.to_dict()["sd_positions"] == pytest.approx(np.sqrt(variance), rel=1e-10)


def test_memory_does_not_grow_with_the_images():
    found, labels = ScaleStatistics(3), torch.arange(30) % 3
    sizes = []
    for _ in range(3):
        found.update(torch.rand(30, 4, 6, 6), labels)
        sizes.append(sum(v.numel() for v in vars(found).values() if isinstance(v, torch.Tensor)))
    assert sizes[0] == sizes[1] == sizes[2]


def test_many_batches_lose_no_digits():
    """Sums of squares minus squared sums would: the deviations are a hundred-thousandth of the mean."""
    values = 0.9 + 1e-5 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values.float()
    found = streamed(values, torch.zeros(4000, dtype=torch.int64), 1, [8] * 500)
    np.testing.assert_allclose(found.overall_sd(), values.double().numpy().std(0, ddof=1), rtol=1e-9)


def test_saturated_and_constant_channels():
    n = 40
    scales = torch.empty(n, 5)
    scales[:, 0] = 0.02  # closed
    scales[:, 1] = 0.97  # open
    scales[:, 2] = 0.5  # says always the same
    scales[:, 3] = torch.linspace(0.1, 0.9, n)
    scales[:, 4] = torch.linspace(0.4, 0.45, n)
    found = streamed(scales, torch.arange(n) % 2, 2, [15, 25])
    row = found.to_dict()
    assert row["saturated_low"] == pytest.approx(1 / 5)
    assert row["saturated_high"] == pytest.approx(1 / 5)
    assert row["constant"] == [0, 1, 2]
    assert row["constant_share"] == pytest.approx(3 / 5)
    assert found.constant_channels(0.06) == [0, 1, 2, 4]


def test_saturated_is_below_5_and_above_95_percent_of_the_range():
    found = ScaleStatistics(1)
    found.update(torch.tensor([[0.01, 0.049, 0.051, 0.5, 0.949, 0.951, 0.97, 0.99]]), torch.tensor([0]))
    row = found.to_dict()
    assert row["saturated_low"] == pytest.approx(2 / 8)
    assert row["saturated_high"] == pytest.approx(3 / 8)


def test_saturation_is_relative_to_the_range():
    doubled = ScaleStatistics(1, amplitude=2.0)
    doubled.update(torch.tensor([[0.09, 1.0, 1.5, 1.95]]), torch.tensor([0]))
    assert doubled.ceiling() == 2.0
    assert doubled.to_dict()["saturated_low"] == pytest.approx(1 / 4)
    assert doubled.to_dict()["saturated_high"] == pytest.approx(1 / 4)
    tanh = ScaleStatistics(1)  # 1 + tanh has the amplitude 1
    tanh.update(torch.tensor([[1.5]]), torch.tensor([0]))
    assert tanh.ceiling() == 2.0
    wide = ScaleStatistics(1)
    wide.update(torch.tensor([[-4.0, 7.0]]), torch.tensor([0]))
    assert wide.ceiling() == 7.0
    assert wide.quantiles((0, 1)) == [-4.0, 7.0]


@pytest.mark.parametrize(("within", "expected"), [(0.0, 1.0), (None, 0.0)], ids=["only class", "only image"])
def test_variance_ratio_at_its_ends(within, expected):
    labels = torch.arange(12) % 3
    if within == 0.0:
        scales = (0.2 + 0.2 * labels.float())[:, None].expand(12, 4)
    else:  # the same four values in every class
        scales = (0.1 * torch.arange(12).div(3, rounding_mode="floor").float())[:, None].expand(12, 4)
    assert streamed(scales, labels, 3, [12]).class_share() == pytest.approx(expected, abs=1e-9)


def test_a_gate_that_never_varies_has_no_ratio():
    scales = torch.full((10, 3), 0.3)
    assert streamed(scales, torch.arange(10) % 2, 2, [3, 7]).class_share() is None


def test_scales_of_something_else_than_images_are_refused():
    with pytest.raises(ExciteError, match="gave 8 scales for 2 images"):
        ScaleStatistics(2).update(torch.rand(8, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ExciteError, match="never called"):
        ScaleStatistics(2).to_dict()


def test_collecting_from_a_network(predictor, batches):
    before = [predictor.logits(images) for images, _, _ in batches]
    heard: dict[str, list[torch.Tensor]] = {}
    with listening(predictor.model, lambda name, scale: heard.setdefault(name, []).append(scale)):
        for images, _, _ in batches:
            predictor.logits(images)
    told = []
    found = collect_scales(predictor, batches, lambda done, total: told.append((done, total)), 24)
    assert told == [(7, 24), (19, 24), (24, 24)]
    assert len(found) == 9
    for name, statistics in found.items():
        np.testing.assert_allclose(statistics.overall_mean(), torch.cat(heard[name]).double().mean(0), rtol=1e-12)
    after = [predictor.logits(images) for images, _, _ in batches]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(ExciteError, match="no images"):
        collect_scales(predictor, [])
