""" "same" padding: by hand where a zero goes, and there and back."""

import pytest
import torch
from torch.nn import functional as F

from excite.models import create_model
from excite.models.convolution import set_conv_padding
from excite.ops.same_padding import pad_same


@pytest.mark.parametrize(
    ("size", "kernel", "dilation", "sides"),
    [(224, 7, 1, (2, 3)), (56, 3, 1, (0, 1)), (57, 3, 1, (1, 1)), (56, 3, 2, (1, 2)), (56, 1, 1, (0, 0))],
)
def test_zeros_are_where_mindspore_puts_them(size, kernel, dilation, sides):
    """(ceil(size / 2) - 1) * 2 + reach - size zeros in all, the odd one behind; rows and columns apart."""
    x = torch.ones(1, 1, size, 9)
    padded = pad_same(x, (kernel, 1), (2, 1), (dilation, 1))
    assert torch.equal(padded, F.pad(x, (0, 0, *sides)))


@pytest.mark.parametrize("name", ["resnet18", "sknet50"])
def test_there_and_back(name):
    model = create_model(name, num_classes=3, image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        set_conv_padding(model, "same")
        other = model(x)
        set_conv_padding(model, "symmetric")
        assert torch.equal(model(x), before)
    assert not torch.allclose(other, before, rtol=1e-2)
