"""Put an experiment's table and picture into docs/twins.md.

    python docs/img/update.py runs/twins-digits-seresnet20 digits

Between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the page everything is replaced; `twins-NAME.svg`, `.png` and
`.json` (what the table is made from, see tests/test_twins.py) are copied here.
"""

import json
import shutil
import sys
from pathlib import Path

from excite.twins.report import markdown

HERE = Path(__file__).parent


def section(name: str) -> str:
    """What stands between the marks: the table and the picture of ``twins-NAME.json``."""
    report = json.loads((HERE / f"twins-{name}.json").read_text(encoding="utf-8"))
    picture = f"![accuracy, difference, speed and latency of each gate](img/twins-{name}.svg)"
    return f"<!-- {name} -->\n{markdown(report)}\n{picture}\n<!-- /{name} -->"


def main() -> None:
    experiment, name = Path(sys.argv[1]), sys.argv[2]
    for source, kind in (("twins.svg", "svg"), ("twins.png", "png"), ("results.json", "json")):
        shutil.copyfile(experiment / source, HERE / f"twins-{name}.{kind}")
    page = HERE.parent / "twins.md"
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {name} -->")
    after = rest.split(f"<!-- /{name} -->")[1]
    page.write_text(before + section(name) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
