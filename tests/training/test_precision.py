"""Mixed precision: what batch norm computes in, what a skipped step leaves behind, what compiling costs."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import excite
from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import OptimizerConfig
from excite.runtime.device import DTYPES
from excite.training import loop, train
from excite.training.compilation import CompileTimer, compile_errors, compile_model
from excite.training.optimizer import LossScaler, make_optimizer
from excite.training.precision import BufferGuard, LowPrecisionBatchNorm2d, set_norm_precision
from excite.training.reporting import NonFiniteLoss
from excite.training.schedule import learning_rate
from tests.training.small import metrics, same, small, tensors

PLAIN = ["rotation=0.0", "mixup=0.0", "random_erasing=0.0", "drop_rate=0.0", "drop_path_rate=0.0"]
CPU = torch.device("cpu")


# --- batch norm ---------------------------------------------------------------------------------------------------


def norm_outputs(model: nn.Module, precision: str) -> set[torch.dtype]:
    """The dtypes that the batch norms of a model give out in a training step under autocast."""
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    with torch.autocast("cpu", DTYPES[precision]):
        logits = model.train()(torch.randn(4, 3, 16, 16))
    logits.float().square().sum().backward()
    return seen


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["cifar_seresnet20", "cifar_resnet20"])
def test_each_norm_precision_is_what_it_says(name, precision):
    low = DTYPES[precision]
    for norm_precision, out in (("auto", low), ("fp32", torch.float32), ("same", low)):
        torch.manual_seed(0)
        model = create_model(name)
        before = {k: v.dtype for k, v in model.state_dict().items()}
        set_norm_precision(model, norm_precision, precision)
        assert norm_outputs(model, precision) == {out}
        after = model.state_dict()
        assert {k: v.dtype for k, v in after.items()} == before
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        mean = after["layer1.0.bn1.running_mean"]
        assert mean.abs().sum() > 0
        assert torch.equal(mean, mean.to(low).float()) == (norm_precision == "same")
        assert after["layer1.0.bn1.num_batches_tracked"] == 1


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.3, "eps": 0.1, "affine": False}, {"track_running_stats": False}]
)
def test_low_precision_norm_is_batch_norm_on_rounded_numbers(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(6, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 2)
    exact = copy.deepcopy(model)
    set_norm_precision(model, "same", "bf16")
    assert isinstance(model[0], LowPrecisionBatchNorm2d)
    exact.to(torch.bfloat16)
    for step in range(3):
        x = torch.randn(8, 6, 5, 5) * (step + 1)
        assert torch.equal(model(x), exact(x.bfloat16()))
    for key, value in exact.state_dict().items():
        if "weight" not in key and "bias" not in key:  # those are rounded at each use only
            assert torch.equal(model.state_dict()[key].double(), value.double())
    model.eval(), exact.eval()
    if options.get("track_running_stats", True):  # as another run may have left them: not rounded, and not to be
        exact[0].running_mean.copy_(model[0].running_mean.add_(1e-4))
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model(x), exact(x.bfloat16()))
    assert same(model.state_dict(), before)


def test_norm_precision_changes_nothing_under_fp32():
    model = create_model("cifar_resnet20")
    set_norm_precision(model, "same", "fp32")
    set_norm_precision(model, "fp32", "fp32")
    assert {type(m) for m in model.modules() if "BatchNorm" in type(m).__name__} == {nn.BatchNorm2d}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_same_refuses_other_batch_norms():
    with pytest.raises(ExciteError, match="not for SyncBatchNorm; use auto or fp32"):
        set_norm_precision(nn.Sequential(nn.SyncBatchNorm(3)), "same", "bf16")


@pytest.mark.parametrize("words", [("fp32", "bf16"), ("same", "fp16")])
def test_validate_computes_norms_as_the_training_did(tmp_path, words):
    norm_precision, precision = words
    common = [*PLAIN, "epochs=1", f"precision={precision}", "loss_scale=128.0", "limit_train=96"]
    run = train(small(*common, f"norm_precision={norm_precision}"), out=tmp_path, quiet=True)
    predictor, evaluation = excite.validate(run["run"])
    assert evaluation.loss == pytest.approx(run["loss"], rel=1e-6)
    with torch.autocast("cpu", DTYPES[precision]):
        out = predictor.model.bn1(torch.randn(2, 16, 4, 4, dtype=DTYPES[precision]))
    assert out.dtype == (torch.float32 if norm_precision == "fp32" else DTYPES[precision])
    usual = train(small(*common), out=tmp_path, quiet=True)
    assert usual["loss"] != run["loss"]
    assert run["loss"] == pytest.approx(usual["loss"], rel=0.1)


# --- fp16: overflows ------------------------------------------------------------------------------------------------


def state_of(run: Any) -> dict[str, torch.Tensor]:
    """Copies of all that a step may change: weights, batch-norm statistics, moving average, momentum."""
    found = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in run.ema.module.state_dict().items()}
    for k, parameter in run.model.named_parameters():
        found |= {f"{key}.{k}": v for key, v in run.optimizer.state[parameter].items() if v is not None}
    return {k: v.clone() for k, v in found.items()}


@pytest.fixture
def overflowing(monkeypatch):
    """Make chosen steps overflow, in the backward pass or in the forward pass too; collect the states around steps."""
    states: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def install(steps: set[int], where: str) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        real_step, real_scale = loop.train_step, LossScaler.scale
        now = {"overflow": False}

        def step(run, images, labels):
            before = state_of(run)
            now["overflow"] = run.step in steps
            augment = run.augment
            if now["overflow"] and where == "forward":
                run.augment = lambda *batch: (augment(*batch)[0] * 1e38, augment(*batch)[1])
            try:
                result = real_step(run, images, labels)
            finally:
                run.augment = augment
            states.append((before, state_of(run)))
            return result

        def scale(self, loss):
            return real_scale(self, loss) * (float("inf") if now["overflow"] and where == "backward" else 1.0)

        monkeypatch.setattr(loop, "train_step", step)
        monkeypatch.setattr(LossScaler, "scale", scale)
        return states

    return install


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("scale", ["dynamic", "128.0"])
def test_a_step_that_overflows_leaves_nothing_but_its_count(tmp_path, overflowing, where, scale):
    steps = {0, 3, 4}
    states = overflowing(steps, where)
    words = ["epochs=1", "precision=fp16", f"loss_scale={scale}", "loss_scale_init=1024.0", "grad_accumulation=2"]
    run = Path(train(small(*PLAIN, *words), out=tmp_path, quiet=True)["run"])
    assert len(states) == 6
    for index, (before, after) in enumerate(states):
        assert same(before, after) == (index in steps), index
        assert all(v.isfinite().all() for v in after.values())
    assert any(k.startswith("momentum_buffer.") for k in states[0][0])
    records = metrics(run)
    assert [r["skipped_steps"] for r in records] == [1, 1, 1, 2, 3, 3]
    expected = [512.0] * 3 + [256.0] + [128.0] * 2 if scale == "dynamic" else [128.0] * 6
    assert [r["loss_scale"] for r in records] == expected
    config = small(*PLAIN, *words)  # the schedule moves on: it counts images, not updates
    rates = [learning_rate(config.schedule, config.optimizer.lr, step, 6, 1) for step in range(6)]
    assert [r["lr"] for r in records] == pytest.approx(rates)
    assert json.loads((run / "results.json").read_text())["skipped_steps"] == 3
    log = (run / "log.txt").read_text()
    assert f"loss scale {expected[-1]:g}, 3 skipped" in log
    assert ("loss overflowed" in log) == (where == "forward")
    assert (records[3]["loss"] is None) == (where == "forward")


@pytest.mark.parametrize(
    ("scale", "advice"), [("dynamic", "train.precision=bf16 or fp32"), ("128.0", "train.loss_scale=dynamic")]
)
def test_a_run_that_only_skips_stops_and_says_what_to_do(tmp_path, overflowing, monkeypatch, scale, advice):
    monkeypatch.setattr("excite.training.reporting.MAX_SKIPPED_IN_A_ROW", 4)
    overflowing({0, 2, 3, 4, 5}, "backward")
    with pytest.raises(NonFiniteLoss, match=rf"the last 4 steps up to step 6 overflowed in fp16 .*{advice}"):
        train(small(*PLAIN, "epochs=1", "precision=fp16", f"loss_scale={scale}"), out=tmp_path, quiet=True)


def test_skips_go_on_counting_after_a_resume(tmp_path, overflowing):
    overflowing({0, 1}, "backward")
    words = [*PLAIN, "epochs=1", "precision=fp16", "loss_scale_init=1024.0", "checkpoint.keep_last=9"]
    run = Path(train(small(*words), out=tmp_path, quiet=True)["run"])
    expected = tensors(run)
    (run / "results.json").unlink()
    for step in (4, 6):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    assert train(resume=run, quiet=True)["skipped_steps"] == 2
    assert same(tensors(run), expected)


def test_sgd_starts_from_zero_momentum_even_if_its_first_step_is_skipped():
    """PyTorch's fused kernel would leave the momentum as the memory happens to be."""
    for _ in range(3):
        junk = [torch.full((4096,), 7.0) for _ in range(64)]
        del junk
        parameter = nn.Parameter(torch.ones(4096))
        optimizer = make_optimizer(nn.ParameterList([parameter]), OptimizerConfig(lr=1.0, weight_decay=0.0))
        scaler = LossScaler("cpu", small("loss_scale_init=2.0").train, enabled=True)
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale((parameter * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert torch.equal(parameter, torch.zeros(4096))  # 1 - lr * 1, and no momentum from before


def test_dampening_has_its_own_first_step():
    parameter = nn.Parameter(torch.ones(3))
    config = OptimizerConfig(lr=1.0, weight_decay=0.0, momentum=0.5, options={"dampening": 0.25})
    optimizer = make_optimizer(nn.ParameterList([parameter]), config)
    parameter.sum().backward()
    optimizer.step()
    assert torch.equal(parameter, torch.zeros(3))


def test_the_guard_puts_back_every_kind_of_buffer():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(5))
    model[0](torch.randn(2, 3, 4, 4))
    guard = BufferGuard(model)
    before = copy.deepcopy(model.state_dict())
    for overflowed in (1.0, 0.0):
        guard.keep()
        model[0](torch.full((2, 3, 4, 4), float("inf")))
        model[1](torch.randn(2, 5, 4, 4))
        guard.restore(torch.tensor(overflowed))
        assert same(before, model.state_dict()) == bool(overflowed)
    assert model[1].num_batches_tracked == 1
    alone = nn.Module()
    alone.register_buffer("seen", torch.ones(2, 3))
    guard = BufferGuard(alone)
    alone.seen.zero_()
    guard.restore(torch.tensor(1.0))
    assert alone.seen.tolist() == [[1.0] * 3] * 2


# --- compiling ------------------------------------------------------------------------------------------------------


def test_compile_seconds_are_the_compilers_and_count_recompilation():
    timer = CompileTimer()
    timer.watch()
    torch._dynamo.reset()  # forgets all listeners
    timer.watch()
    timer.watch()

    def layer(x, scale):
        return x * scale

    fn = torch.compile(layer, backend="eager", dynamic=False)
    fn(torch.ones(2), 2)
    assert timer.count == 1
    first = timer.seconds
    assert first > 0
    fn(torch.ones(2), 2)
    assert (timer.count, timer.seconds) == (1, first)
    fn(torch.ones(3), 2)
    assert timer.count == 2
    assert timer.seconds > first


def test_time_spent_compiling_is_no_part_of_a_step(monkeypatch):
    from excite.training import reporting

    now = {"time": 100.0}
    timer = CompileTimer()
    monkeypatch.setattr(reporting, "compile_timer", timer)
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: now["time"])
    clock = reporting.Clock()
    clock.start(0.0)
    now["time"] += 10.0
    timer.seconds += 6.0
    assert clock.read(4, 1.0) == (4.0, 0.25, 6.0)
    assert clock.ms_per_step == 1000.0
    now["time"] += 2.0
    assert clock.read(4, 1.0) == (2.0, 0.0, 0.0)


def test_what_the_compiler_lacks_is_one_sentence(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    model = nn.Linear(2, 2)
    with pytest.raises(ExciteError, match=r"compile is 'default', but no C\+\+ compiler was found .*compile=off"):
        compile_model(model, "default", CPU)
    assert compile_model(model, "off", CPU) is model


def test_a_failing_compiler_is_one_sentence():
    def backend(graph, inputs):
        raise RuntimeError("no such instruction\nand pages more")

    fn = torch.compile(lambda x: x + 1, backend=backend)
    with pytest.raises(ExciteError) as caught, compile_errors("default"):
        fn(torch.ones(2))
    message = "compile is 'default', and the compiler failed: no such instruction; use compile=off"
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_compiled_run_trains_alike_and_reports_its_compile_seconds(tmp_path):
    common = [*PLAIN, "epochs=2"]
    usual = train(small(*common), out=tmp_path, quiet=True)
    compiled = train(small(*common, "compile=default"), out=tmp_path, quiet=True)
    assert usual["compile_seconds"] == 0.0
    records = metrics(compiled["run"])
    assert records[0]["compile_seconds"] > 0.5
    assert sum(r["compile_seconds"] for r in records[1:]) == 0.0  # the evaluation in between compiles nothing
    assert compiled["compile_seconds"] == pytest.approx(records[0]["compile_seconds"])
    assert compiled["ms_per_step"] < 1000 * compiled["compile_seconds"]
    assert compiled["train_seconds"] >= compiled["compile_seconds"]
    losses = [[r["loss"] for r in metrics(run["run"])] for run in (usual, compiled)]
    # Rounding grows tenfold and more a step in so small a net (the textbook and the fused form without a compiler: 2e-6
    # at the second loss, 1e-5 at the third, 5e-4 at the fourth), so only the first ones can tell anything.
    assert losses[1][:3] == pytest.approx(losses[0][:3], rel=1e-4)
