"""One measurement in a separate process: a JSON request on standard input, the answer as the last line of output.

echo '{"setting": {"library": "excite", "model": "cifar_seresnet20"}}' | python -m excite.bench.worker
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, final, overload

from excite.bench.settings import Setting
from excite.errors import ExciteError
from excite.files import to_json
from excite.leaving import leave_quickly

if TYPE_CHECKING:
    from excite.bench.profile import Profile
    from excite.bench.timing import StepTimes


@final
class Failure(TypedDict):
    """The reason why there is no result, in one sentence."""

    error: str


@overload
def answer(setting: Setting) -> "StepTimes | Failure": ...


@overload
def answer(setting: Setting, profile: Path) -> "Profile | Failure": ...


@overload
def answer(setting: Setting, profile: Path | None) -> "StepTimes | Profile | Failure": ...


def answer(setting: Setting, profile: Path | None = None) -> "StepTimes | Profile | Failure":
    """Measure a setting, or profile it and write the trace to the file ``profile``."""
    from excite.runtime.device import is_out_of_memory

    try:
        from excite.bench.timing import Workbench

        bench = Workbench(setting)
        if profile is None:
            return bench.measure()
        from excite.bench.profile import profile_steps

        return profile_steps(bench, profile)
    except ExciteError as error:
        return {"error": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"error": "out of memory; use a smaller batch or image_size"}


def main() -> None:
    leave_quickly()
    request = json.load(sys.stdin)
    profile = request.get("profile")
    result = answer(Setting(**request["setting"]), None if profile is None else Path(profile))
    print(to_json(result))


if __name__ == "__main__":
    main()
