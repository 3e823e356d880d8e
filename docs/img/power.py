"""Draw what `excite twins --until decided` can see: `twins-power.svg` and `.png` in this folder.

    python docs/img/power.py

For each effect, 1,000 experiments of up to 60 seeds are simulated; sequence and verdicts are those of the command.
Effects and the margin are in standard deviations of the difference between the two runs of a pair.
"""

import random
from pathlib import Path

from excite.pages.figures import COLORS, style, write
from excite.twins.statistics import mean_sequence, verdict

EFFECTS, MARGIN, SEEDS, EXPERIMENTS = (0.0, 0.25, 0.5, 1.0, 2.0), 0.75, 60, 1000


def decided_at(rng: random.Random, effect: float) -> tuple[str, int]:
    """The verdict on one gate among one, and after how many seeds."""
    values = [rng.gauss(effect, 1) for _ in range(SEEDS)]
    for n in range(4, SEEDS + 1):
        _, low, high = mean_sequence(values[:n], 0.95)
        if (found := verdict(low, high, MARGIN)) != "undecided":
            return found, n
    return "undecided", SEEDS


def main() -> None:
    from matplotlib.figure import Figure

    rng = random.Random(0)
    found = {effect: [decided_at(rng, effect) for _ in range(EXPERIMENTS)] for effect in EFFECTS}
    with style():
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, word, title in zip(
            panels, ("better", "equivalent"), ("verdict: better", "verdict: equivalent"), strict=True
        ):
            for color, effect in zip(COLORS, EFFECTS, strict=False):
                counts = [sum(what == word and at <= n for what, at in found[effect]) for n in range(1, SEEDS + 1)]
                share = [100 * count / EXPERIMENTS for count in counts]
                panel.plot(range(1, SEEDS + 1), share, color=color, label=f"{effect:g} sd")
            panel.set_title(title)
            panel.set_xlabel("seeds")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("experiments decided so, %")
        panels[1].legend(title="true effect", loc="upper left")
        for kind in ("svg", "png"):
            write(figure, Path(__file__).parent / f"twins-power.{kind}", dpi=130)
    for effect, each in found.items():
        print(
            f"{effect:g} sd:",
            {w: sum(what == w for what, _ in each) for w in ("better", "worse", "equivalent", "undecided")},
        )


if __name__ == "__main__":
    main()
