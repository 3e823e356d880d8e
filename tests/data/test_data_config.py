import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from excite.data.config import AugmentConfig, DataConfig, RandAugmentConfig


def test_importing_the_config_imports_no_torch():
    code = "import sys, excite.data.config as c; assert 'torch' not in sys.modules and 'numpy' not in sys.modules, c"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model", [DataConfig, AugmentConfig, RandAugmentConfig])
def test_every_field_is_described(model: type[BaseModel]):
    assert not [name for name, info in model.model_fields.items() if not info.description]


def test_lists_and_tuples_are_accepted_and_survive_a_round_trip():
    from_yaml = DataConfig.model_validate(
        {"source": "cifar10", "image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}
    )
    from_python = DataConfig(source="cifar10", image_size=32, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert from_yaml == from_python == DataConfig.model_validate(from_yaml.model_dump())
    augment = AugmentConfig.model_validate({"rand_augment": {"n": 2, "m": 9}, "scale": [0.2, 1]})
    assert augment == AugmentConfig.model_validate(augment.model_dump())


@pytest.mark.parametrize(
    "change",
    [
        {"sauce": "digits"},
        {"source": "cifar"},
        {"image_size": 0},
        {"image_size": "32"},
        {"image_size": True},
        {"in_chans": 2},
        {"crop_pct": 1.5},
        {"val_fraction": 0.0},
        {"workers": -1},
        {"mean": [0.5, 0.5, 0.5]},
        {"mean": [0.5], "std": [0.5]},
        {"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]},
        {"limit_train": 0},
        {"max_pixels": 10**12},
        {"eval_size": 16},
        {"group_by": 1},
        {"source": "folder", "group_by": 0},
        {"source": "folder", "group_by": True},
        {"std": [0.5] * 3},
        {"in_chans": 1, "mean": [0.5], "std": [0.5] * 3},
    ],
)
def test_wrong_data_settings_are_refused(change: dict):
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"source": "digits", "image_size": 8, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"hflip": 1.1},
        {"hflip": float("nan")},
        {"scale": [0.5, 0.2]},
        {"scale": [0.5]},
        {"scale": [0.0, 1.0]},
        {"scale": [0.5, 1.1]},
        {"ratio": [2, 1]},
        {"color_jitter": [0.4, -0.1, 0.4, 0.1]},
        {"ratio": [0, 1]},
        {"color_jitter": [0.4, 0.4, 0.4]},
        {"color_jitter": [0.4, 0.4, 0.4, 0.6]},
        {"rand_augment": {"n": 0}},
        {"rand_augment": {"n": 2, "m": 31}},
        {"rand_augment": {}, "trivial_augment": True},
        {"mixup": -1},
        {"cutout": 1.5},
        {"crop": "random"},
    ],
)
def test_wrong_augment_settings_are_refused(change: dict):
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(change)


def test_settings_at_the_edge_of_what_is_refused_are_accepted():
    for values in (
        {"eval_size": 8},  # as large as in training
        {"source": "folder", "group_by": 1, "eval_size": 16},
        {"source": "folder", "group_by": "(.)"},
        {"in_chans": 1, "mean": [0.0], "std": [1e-3]},
    ):
        DataConfig.model_validate({"source": "digits", "image_size": 8, **values})
    AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=(0.0, 3.0, 0.0, 0.5))
    assert AugmentConfig(mixup=0.1).mixes
    assert AugmentConfig(cutmix=0.1).mixes
    assert not AugmentConfig().mixes
