"""What a type checker knows of ``import excite``: mypy reads this file (`make lint`); nothing runs it."""

from pathlib import Path
from typing import assert_type

import excite
import excite.report
from excite.bench.build import Measured
from excite.bench.pipeline import Pipeline
from excite.compare import Comparison
from excite.explain import Explanation
from excite.export.build import Exported
from excite.grafting import GraftPlan
from excite.grafting.proof import GraftResult
from excite.grafting.prune import Pruned
from excite.models.resnet import ResNet
from excite.report import Reported
from excite.trained.accuracy import Validation
from excite.trained.predictor import Predicted, Prediction
from excite.training.results import Results
from excite.twins.report import Report
from excite.weights.conversion import Conversion


def functions(net: ResNet) -> None:
    """Each function by its result."""
    assert_type(excite.train("digits-seresnet20", "epochs=3", epochs=3, data={"limit_val": 3}), Results)
    assert_type(excite.validate("run", {"data.part": "test"}), Validation)
    assert_type(excite.predict("run", ["a.jpg", Path("b")], top_k=1), Predicted)
    assert_type(excite.load("run")("a.jpg"), Predicted)
    assert_type(excite.load("run")("a.jpg")[0], Prediction)
    assert_type(excite.report("run", images=10), Reported)
    assert_type(excite.report("run").path, Path)
    assert_type(excite.compare("a", "b", "data.part=test", labels=["x", "y"]), Comparison)
    assert_type(excite.explain("run", "photo.jpg", images=10), Explanation)
    assert_type(excite.export("run", "onnx", out="model.onnx"), Exported)
    assert_type(excite.convert("a.ckpt", "a.safetensors"), Conversion)
    assert_type(excite.graft("run", "se", reduction=8), GraftResult)
    assert_type(excite.graft(net, "se"), ResNet)
    assert_type(excite.graft(net, "se", dry_run=True), GraftPlan)
    assert_type(excite.prune("run", out="pruned"), Pruned)
    assert_type(excite.twins("digits-seresnet20", gates="none,se"), Report)
    assert_type(excite.bench(["resnet50"], batch=[1, 16]), Measured | Pipeline)


def mistakes() -> None:
    """What it finds: without the mistakes these comments would be unused, which is an error, too."""
    excite.report("run", imags=10)  # type: ignore[call-arg]
    excite.compare("a", "b", out=3)  # type: ignore[arg-type]
    excite.train(3)  # type: ignore[arg-type]
