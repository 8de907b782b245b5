"""summary.png: the validation metric of every configuration, its seeds as dots beside mean and standard deviation."""

import collections
import textwrap
from collections.abc import Sequence
from pathlib import Path

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer
from idgenrec_jax.run_files import SELECTION_METRIC
from idgenrec_jax.sweeps.summary import LEGEND, UNSUPPORTED, Configuration, differing_fields

PLOT_FILE = "summary.png"
_MOST = 60
_LEGEND_WIDTH = 110


def draw_summary(configurations: Sequence[Configuration], output: Path) -> None:
    """Draw the configurations with a finished trial, at most the 60 best, to `output`/summary.png.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"{output / PLOT_FILE} is not drawn: it needs matplotlib; pip install matplotlib"
        ) from error

    shown = [one for one in configurations if one.validation][:_MOST]
    labels = _labels(shown, differing_fields(configurations))
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, one in enumerate(shown):
        if spread := one.validation:
            colour = "tab:gray" if _is_unsupported(one) else "tab:blue"
            axes.plot(spread.values, [row] * len(spread.values), "o", color=colour, alpha=0.35, zorder=1)
            axes.errorbar(
                spread.mean, row, xerr=spread.deviation or 0.0, fmt="D", color=colour, capsize=4, zorder=2
            )
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    left_out = sum(one.validation is not None for one in configurations) - len(shown)
    rest = f" (the {_MOST} best; {left_out} more in the table)" if left_out else ""
    axes.set_xlabel(f"validation {SELECTION_METRIC}{rest}")
    axes.set_title("dots: seeds; diamonds: mean +- standard deviation over seeds", fontsize="medium")
    if any(map(_is_unsupported, shown)):
        figure.supxlabel(textwrap.fill(LEGEND, _LEGEND_WIDTH), fontsize="x-small")
    with atomic_writer(output / PLOT_FILE) as file:
        figure.savefig(file.buffer, format="png", dpi=150)


def _labels(shown: Sequence[Configuration], fields: Sequence[str]) -> list[str]:
    """One label a configuration: the fields that differ, without their section where the name alone is clear."""
    counts = collections.Counter(field.split(".")[-1] for field in fields)
    names = {field: short if counts[short := field.split(".")[-1]] == 1 else field for field in fields}
    labels = []
    for one in shown:
        values = [f"{names[field]}={_value(one.overrides[field])}" for field in fields if field in one.overrides]
        mark = "~ " if _is_unsupported(one) else ""
        labels.append(mark + ("\n".join(values) if len(values) <= 2 else ", ".join(values)) if values else "all trials")
    return labels


def _is_unsupported(one: Configuration) -> bool:
    return one.comparison is not None and one.comparison.verdict == UNSUPPORTED


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
