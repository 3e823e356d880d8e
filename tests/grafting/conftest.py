"""What the grafting tests share."""

import pytest


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """Run a command in this process (starting one costs seconds), in an empty folder: its output, or its sentence."""
    from typer.testing import CliRunner

    from excite.cli import app
    from excite.errors import ExciteError

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(done.exception, ExciteError):
            return f"error: {done.exception}"
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    return run


@pytest.fixture(scope="session")
def ungated_run(tmp_path_factory):
    """A run folder of an ungated network, trained for two epochs on a few digits."""
    from excite.training import train
    from tests.training.small import small

    recipe = small(
        "model.name=cifar_resnet20", "epochs=2", "ema_decay=0", "checkpoint.every_steps=null", "optimizer.lr=0.2"
    )
    return train(recipe, out=tmp_path_factory.mktemp("ungated"), quiet=True)["run"]
