"""The picture of an inspection: how often each layer fired at each timestep."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dalif_deploy.deploy.files import written_whole
from dalif_deploy.deploy.inspected import Inspection
from dalif_deploy.errors import Code, DalifError

SUFFIXES = (".png", ".svg", ".pdf")
CELLS_WITH_NUMBERS = 600
"""Up to so many, every cell holds its number."""


def check_plot(path: Path) -> None:
    """Whether a picture can be drawn under this name. Raises `DalifError` (BAD_OPTION, MISSING_PACKAGE)."""
    if path.suffix.lower() not in SUFFIXES:
        raise DalifError(Code.BAD_OPTION, f"--plot {path}: name a file that ends in {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DalifError(
            Code.MISSING_PACKAGE, "--plot: matplotlib is not installed; run: pip install 'dalif_deploy[report]'"
        ) from error


def plot_rates(found: Inspection, path: Path) -> None:
    """Write the firing rates, layer by timestep, beside each layer's rate over all of them.

    Raises `DalifError`: as `check_plot`; BAD_OPTION where the inspection has no rates; NO_FOLDER.
    """
    check_plot(path)
    layers = [layer for layer in found.layers if layer.rates is not None]
    if not layers:
        raise DalifError(Code.BAD_OPTION, "--plot: there are no firing rates to draw; give --data")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rates = np.array([layer.rates for layer in layers])
    count, timesteps = rates.shape
    numbered = rates.size <= CELLS_WITH_NUMBERS and timesteps <= 20
    names = [layer.name for layer in layers]
    label = max(len(name) for name in names)
    width = 2.4 + 0.075 * label + max(2.8, (0.5 if numbered else 0.22) * min(timesteps, 60)) + 2.6
    figure = Figure(figsize=(width, 1.5 + 0.26 * max(count, 4)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    grid, bars = figure.subplots(1, 2, sharey=True, width_ratios=[max(2.8, 0.5 * min(timesteps, 20)), 2.0])
    top = max(float(rates.max()), 1e-9)
    drawn = grid.imshow(rates, aspect="auto", cmap="viridis", vmin=0.0, vmax=top, interpolation="nearest")
    if numbered:
        for (row, step), rate in np.ndenumerate(rates):
            colour = "black" if rate > 0.6 * top else "white"
            grid.text(step, row, f"{100 * rate:.1f}", ha="center", va="center", color=colour, fontsize=6.5)
    grid.set_xlabel("timestep")
    grid.set_ylabel("layer")
    grid.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(timesteps, 20), min_n_ticks=1))
    grid.set_yticks(range(count), names, fontsize=8)
    grid.set_title("neurons that fired, %", fontsize=9)
    means = rates.mean(axis=1)
    bars.barh(range(count), means, height=0.7, color=["tab:red" if m in (0.0, 1.0) else "tab:blue" for m in means])
    for row, mean in enumerate(means):
        bars.text(mean, row, f" {100 * mean:.1f} %", va="center", ha="left", fontsize=7)
    bars.set_xlim(0.0, 1.3 * top)
    bars.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bars.xaxis.set_major_locator(MaxNLocator(nbins=4))
    bars.tick_params(axis="y", left=False)
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_title("over all timesteps", fontsize=9)
    if not numbered:
        figure.colorbar(drawn, ax=grid, format=PercentFormatter(1.0, decimals=0), fraction=0.05, pad=0.02)
    figure.suptitle(f"Firing rates of {Path(found.source).name} ({found.samples} samples)", fontsize=10)
    with written_whole(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None} if path.suffix.lower() == ".png" else None)
