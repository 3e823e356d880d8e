"""docs/migrating.md: every row of the reference systems is there, and what stands beside it exists."""

import re
from pathlib import Path

import pytest

from excite.models import list_models
from excite.recipe import list_recipes, override_keys, parse_yaml

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0].split(":")[0]: part.split("\n", 1)[1] for part in PAGE.split("\n## ")[1:]}

# What their README files (and, for MindCV, the config.py that its README points to) name.
THEIRS = {
    "MindCV": """
        msrun train.py validate.py --config --data_dir --ckpt_path --distribute --bind_core --worker_num
        mode distribute num_parallel_workers val_while_train val_interval dataset data_dir shuffle dataset_download
        batch_size drop_remainder image_resize scale ratio hflip vflip interpolation crop_pct model num_classes
        pretrained ckpt_path resume_opt keep_checkpoint_max ckpt_save_interval ckpt_save_policy ckpt_save_dir epoch_size
        dataset_sink_mode amp_level loss label_smoothing aux_factor reduction scheduler lr min_lr warmup_epochs
        warmup_factor decay_epochs decay_rate multi_step_decay_milestones lr_epoch_stair num_cycles cycle_decay opt
        momentum use_nesterov weight_decay filter_bias_and_bn eps layer_decay loss_scale dynamic_loss_scale
        gradient_accumulation_steps clip_grad clip_value ema ema_decay drop_rate drop_path_rate in_channels log_interval
        seed device_target train_split val_split num_samples color_jitter auto_augment aug_splits re_prob re_scale
        re_ratio re_value re_max_attempts mean std mixup cutmix cutmix_prob aug_repeats enable_modelarts multi_data_url
        data_url ckpt_url train_url params(M) cards resolution ms/step img/s acc@top1 acc@top5 weight
        """,
    "ModelZoo-PyTorch": """
        1.5_requirements.txt 1.8_requirements.txt train_performance_1p.sh train_full_8p.sh train_performance_8p.sh
        train_eval_8p.sh train_performance_multinodes.sh --data_path --batch_size --nnodes --node_rank --local_addr
        --master_addr --addr --workers --epochs --batch-size --learning-rate --mom --weight-decay --amp --device
        --multiprocessing-distributed --resume demo.py pthtar2onnx.py NAME Acc@1 FPS Epochs AMP_Type Torch_Version
        """,
    "ModelZoo-TensorFlow": """
        run_gpu.py run_gpu.sh run_npu.py run_npu.sh eval.py eval.sh modelart_senet.py help_modelarts.py seresnetv2.py
        se_resnet_110.ckpt cifar10.py tf_slim tflearn cifar-10-batches-py weight_decay momentum init_learning_rate
        batch_size iteration test_iteration total_epochs data_dir num_class precision_mode Classification ms/step
        """,
    "MindSpore": """
        run_distribute_train.sh run_train.sh run_eval.sh RANK_TABLE_FILE DATASET_PATH MLP EXTRA DEVICE_ID
        PRETRAINED_CKPT_PATH CHECKPOINT_PATH src/config.py src/dataset.py src/lr_generator.py src/crossentropy.py
        src/GENet.py src/GEBlock.py train.py eval.py export.py class_num batch_size loss_scale momentum weight_decay
        epoch_size pretrain_epoch_size save_checkpoint save_checkpoint_epochs keep_checkpoint_max decay_mode
        save_checkpoint_path hold_epochs use_label_smooth label_smooth_factor lr_init lr_end mlp=False mlp=True
        extra=False extra=True 模型版本 资源 上传日期 MindSpore版本 数据集 训练参数 优化器 损失函数 输出 损失 准确率
        总时长 参数(M) 微调检查点 推理模型 速度 总时间 top_1_accuracy top_5_accuracy
        """,
}


@pytest.mark.parametrize("system", THEIRS)
def test_everything_of_theirs_is_on_the_page(system):
    (section,) = (text for name, text in SECTIONS.items() if name == system)
    left = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
    results = section[section.index("Results:") : section.index("Better or different here:")]
    text = "\n".join([*left, results])
    missing = [w for w in THEIRS[system].split() if not re.search(rf"(?<![\w-]){re.escape(w)}(?!\w)", text)]
    assert not missing


def test_nothing_is_promised():
    """What a row names is there today."""
    assert "planned" not in PAGE
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row.rstrip(" |").endswith((" - |", "| -"))] == []  # a bare "-" gives no reason


@pytest.mark.parametrize("system", THEIRS)
def test_it_says_what_is_better_or_different(system):
    _, _, points = SECTIONS[system].partition("Better or different here:")
    assert points.count("\n- ") >= 4


def test_keys_of_ours_exist_and_take_the_values_given():
    keys = set(override_keys())
    sections = "|".join(sorted({k.split(".")[0] for k in keys}))
    found = re.findall(rf"`((?:{sections})\.(?!(?:py|sh|log|safetensors)\b)[a-z_]+)(?:=([^`]*))?`", PAGE)
    assert len(found) > 90
    assert [key for key, _ in found if key not in keys] == []
    from tests.training.small import small

    for key, value in found:
        if value and key != "data.source":
            # Changes that go with others are checked on a recipe that has those.
            more = ["augment.crop=random_resized", "train.epochs=200", f"{key}={value}"]
            recipe = small(*more).model_dump(mode="json")
            section, field = key.split(".")
            assert recipe[section][field] == parse_yaml(value, key)


def test_recipes_and_models_of_ours_exist():
    names = set(list_recipes())
    named = set(re.findall(r"`((?:imagenet|cifar10|folder)-[\w-]+)`", PAGE))
    assert named - names - {"cifar-10-batches-py"} == set()
    assert {n for n in names if n.startswith(("imagenet-se", "imagenet-ge")) and "600ep" not in n} <= (
        named | set(re.findall(r"excite train (\S+)", PAGE))
    )
    models = set(list_models())
    assert set(re.findall(r"`((?:ge|se)resnet50_\w+|cifar_\w+)`", PAGE)) <= models
