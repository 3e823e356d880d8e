"""Writes the table of docs/gates.md anew: ``python tests/gates/rewrite.py``."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "gates.md"
_TABLE = re.compile(r"(<!-- table:.*?-->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table() -> str:
    from excite.gates.summary import summarise

    lines = [
        "| gate | paper | sees | scales | parameters | of 256x56x56 | multiply-adds | extra passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summarise():
        authors, _, rest = row["paper"].partition(": ")
        title, _, place = rest.partition(", ")
        cells = [f"`{row['gate']}`", f"{authors}, *{title}*, {place}", row["squeeze"], row["scales"]]
        cells += [f"`{row['parameters']}`", f"{row['params']:,}", f"{row['macs']:,}", str(row["passes"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rewritten(page: str) -> str:
    assert len(_TABLE.findall(page)) == 1
    return _TABLE.sub(lambda match: match[1] + table() + match[3], page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
