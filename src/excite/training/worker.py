"""One process of a job started by ``launch.run_on_this_machine``: ``python -m excite.training.worker ORDER``.

ORDER is a JSON file; see :class:`excite.training.launch.Job`.
"""

import json
import os
import sys
from pathlib import Path

from excite.files import write_json
from excite.leaving import leave_quickly
from excite.recipe import Recipe
from excite.training import launch
from excite.training.results import Results
from excite.training.steptime import StepTimes


def work(order: launch.Job) -> Results | StepTimes:
    """Carry out the order. The first process returns the result, the others an empty dict."""
    recipe = Recipe.from_yaml(order["recipe"]).with_origin(**order["origin"])
    if "train" in order:
        from excite.training.loop import train

        return train(recipe, **order["train"])
    from excite.training.steptime import time_steps

    return time_steps(recipe, **order["time_steps"])


def main() -> None:
    """Entry point: writes the result or the error to where the launching process reads it."""
    leave_quickly()
    try:
        result = work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        if result:
            write_json(Path(os.environ[launch.OUTCOME]) / "result.json", result)
    except BaseException as error:
        launch.tell_and_end(error)


if __name__ == "__main__":
    main()
