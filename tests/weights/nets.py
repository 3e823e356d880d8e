"""Small networks for the tests, in our catalog while a test runs, with weights that tell every channel apart."""

import re

import torch

from excite.models import create_model

_ARCH = {"block": "bottleneck", "layers": (1, 2, 1, 1), "widths": (8, 16, 32, 64), "stem_width": 8}
_SE = {"name": "se"}
_154 = {"groups": 2, "first_ratio": 0.5, "stem": "conv3x3x3", "down_kernel": 3, "max_pool": "ceil"}
TINY = {
    "tiny_resnet": (_ARCH, None),
    "tiny_basicnet": ({**_ARCH, "block": "basic"}, None),
    "tiny_seresnet": (_ARCH, _SE),
    "tiny_sebasicnet": ({**_ARCH, "block": "basic"}, _SE),
    "tiny_seresnext": ({**_ARCH, "groups": 2, "base_width": 32}, _SE),
    "tiny_senet154": ({**_ARCH, **_154}, _SE),
}


def randomise(model, seed=0):
    """Give batch norms statistics and biases that are neither 0 nor 1, and return the model in evaluation mode.

    The last norm of a branch scales it down, as in trained nets: else the maps of a deep one grow a million-fold,
    its gates saturate, and float32 has no digit left to compare.
    """
    rng = torch.Generator().manual_seed(seed)
    last = "bn3" if any(".bn3." in name for name in model.state_dict()) else "bn2"
    for name, tensor in model.state_dict().items():
        if name.endswith(f".{last}.weight"):
            tensor.uniform_(0.1, 0.3, generator=rng)
        elif re.search(r"running_var$|(bn\d?|norm|downsample\.1|conv1\.[14])\.weight$", name):
            tensor.uniform_(0.5, 1.5, generator=rng)
        elif name.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.3, 0.3, generator=rng)
    return model.eval()


def make(name, seed=0, **options):
    torch.manual_seed(seed)
    return randomise(create_model(name, **options), seed)


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images)


def images(size=32, count=2, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
