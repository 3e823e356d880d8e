"""Mutation testing of one module by mutmut: ``python tests/mutate.py src/excite/MODULE.py tests/TEST.py ...``

mutmut changes one operator, number, word or argument at a time and runs the tests; a change that no test notices has
survived, and is printed as a difference. It works on a copy in a temporary folder, in which nothing is left behind.
Give only the tests that are about the module and fast: they run once for each change. ``make mutation`` calls this.
Words that begin with ``-`` are for pytest: ``--deselect=tests/X.py::test_y`` leaves out a test that needs the code as
it is written (one that compiles it into one graph, say).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = """[mutmut]
source_paths=src/excite
only_mutate={module}
also_copy=
    tests
    docs
    README.md
    pyproject.toml
pytest_add_cli_args=
    -p
    no:cacheprovider
    {options}
pytest_add_cli_args_test_selection=
    {tests}
"""


def _config(module: str, tests: list[str], options: list[str]) -> str:
    return CONFIG.format(module=module, tests="\n    ".join(tests), options="\n    ".join(options))


def main() -> int:
    """Run mutmut on a copy; the exit status is 1 where a mutant survived."""
    words, options = ([word for word in sys.argv[1:] if word.startswith("-") == dash] for dash in (False, True))
    if len(words) < 2 or not all((ROOT / word.partition("::")[0]).exists() for word in words):
        print(f"{__doc__}\nerror: name a module under src/excite, and its tests, from {ROOT}", file=sys.stderr)
        return 2
    module, *tests = words
    with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
        folder = Path(scratch)
        for name in ("src", "tests", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "setup.cfg").write_text(_config(module, tests, options))
        mutmut = [sys.executable, "-m", "mutmut"]
        # torch's threads and mutmut's forks do not go together, and the tests are about numbers, not speed.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = [*mutmut, "run", "--max-children", "1"]
        if subprocess.run(run, cwd=folder, env=environment, check=False).returncode:
            return 2
        told = subprocess.run(
            [*mutmut, "results"], cwd=folder, env=environment, text=True, capture_output=True, check=True
        )
        names = [line.split(":")[0].strip() for line in told.stdout.splitlines() if ": survived" in line]
        print(f"\n{len(names)} mutants of {module} survived")
        for name in names:
            subprocess.run([*mutmut, "show", name], cwd=folder, env=environment, check=False)
        print(told.stdout)
    return int(bool(names))


if __name__ == "__main__":
    sys.exit(main())
