"""What launch.check_data found, as plain text and as JSON."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idgenrec_jax.data.checks import SHORTEST_JUDGED
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.inspection import (
    Distribution,
    Finding,
    Inspection,
    TextLengths,
    inspect_data,
    measure_texts,
    percent,
)
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.evaluation.metrics import metrics_table
from idgenrec_jax.evaluation.untrained import RANKINGS, Floor, measure_floors

COLUMNS = ("hr@5", "hr@10", "ndcg@5", "ndcg@10")
"""The metrics that are shown; JSON has all."""

SPREAD = {
    "min": "minimum",
    "25%": "lower_quartile",
    "median": "median",
    "75%": "upper_quartile",
    "90%": "ninetieth_percentile",
    "max": "maximum",
    "mean": "mean",
}
"""The columns of a table of distributions, and the fields that they show."""

_LABEL_WIDTH = 38
_WIDTH = 100


@dataclass(frozen=True)
class DataCheck:
    """Everything that is known of a data set without training on it."""

    data: Inspection
    texts: TextLengths
    floors: Sequence[Floor]

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, the worst first."""
        return self.data.findings

    @property
    def defeats_test(self) -> bool:
        """Whether something is so wrong that the test split measures nothing."""
        return any(finding.defeats_test for finding in self.findings)

    def rows(self) -> dict[str, dict[str, str]]:
        """Return the numbers, each as text by its label, under headings."""
        data, order, held_out = self.data, self.data.order, self.data.held_out
        ties = "this folder does not tell"
        if order.tied_interactions is not None:
            ties = _part(order.tied_interactions, data.interactions, "interactions")
        return {
            "Order": {
                "wholly in the order of item keys": (
                    f"{percent(order.in_key_order, 1)} of {order.judged_users:,} users with {SHORTEST_JUDGED} items or "
                    "more"
                ),
                "up in the item key": _part(order.ascending, order.transitions, "transitions"),
                "tied with another in time": ties,
            },
            "Repeats": {
                "users with an item twice or more": _part(data.users_with_repeats, data.users, "users"),
                "with an item the user had before": _part(
                    data.repeated_interactions, data.interactions, "interactions"
                ),
            },
            "Test targets": {
                "in the history already": _part(held_out.in_history, held_out.targets, "targets"),
                "equal to the item right before": _part(held_out.same_as_previous, held_out.targets, "targets"),
                "in no training sequence": (
                    f"{_part(held_out.cold, held_out.targets, 'targets')}, {held_out.cold_items:,} items"
                ),
            },
            "Texts of items": {
                "blank": _part(data.blank_texts, data.items, "items"),
                "with the text of another item": _part(data.duplicate_texts, data.items, "items"),
            },
        }

    def distributions(self) -> dict[str, dict[str, str]]:
        """Return the rows of a table of distributions, its cells by the names of SPREAD."""
        return {
            "history before a test target, items": _spread(self.data.history_lengths),
            f"text of an item, {self.texts.unit}": _spread(self.texts.lengths),
        }

    def buckets(self) -> dict[str, Mapping[str, int]]:
        """Return how many users, items and texts there are in each bucket, by a heading."""
        return {
            "Users by interactions": self.data.users_by_interactions,
            "Items by interactions": self.data.items_by_interactions,
            f"Items by {self.texts.unit} of text": self.texts.by_length,
        }

    def floor_rows(self) -> dict[str, dict[str, float]]:
        """Return the metrics of the rankings without training, by ranking and split."""
        return {
            f"{name.replace('_', ' ')}, {floor.split}": floor.metrics[name]
            for name in RANKINGS
            for floor in self.floors
        }

    def floor_note(self) -> str:
        """Return on how many targets these were measured."""
        return "; ".join(
            f"{floor.split}: {'a sample of ' if floor.is_sample else 'all '}{floor.targets:,} targets"
            for floor in self.floors
        )

    def to_text(self) -> str:
        """Return it all as plain text."""
        data = self.data
        lines = [f"{data.name}: {data.users:,} users, {data.items:,} items, {data.interactions:,} interactions"]
        lines.append(f"split: {data.split}")
        for heading, rows in self.rows().items():
            lines += ["", heading, *(f"  {label:<{_LABEL_WIDTH}}{value}" for label, value in rows.items())]
        lines += ["", f"{'Lengths':<{_LABEL_WIDTH + 2}}" + "".join(f"{name:>8}" for name in SPREAD)]
        for label, cells in self.distributions().items():
            lines.append(f"  {label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>8}" for cell in cells.values()))
        for heading, counts in self.buckets().items():
            widths = [max(len(name), len(f"{count:,}")) for name, count in counts.items()]
            names = "  ".join(f"{name:>{width}}" for name, width in zip(counts, widths, strict=True))
            values = "  ".join(f"{count:>{width},}" for count, width in zip(counts.values(), widths, strict=True))
            lines += ["", heading, f"  {names}", f"  {values}"]
        if self.floors:
            lines += ["", f"Without training ({self.floor_note()})", metrics_table(self.floor_rows(), COLUMNS)]
        lines += ["", "Judgement"]
        for sentence in map(str, self.findings):
            lines.append(textwrap.fill(sentence, _WIDTH, initial_indent="  - ", subsequent_indent="    "))
        if not self.findings:
            lines.append("  Nothing stands out.")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return it all as a JSON object."""
        data = asdict(self.data)
        data["order"]["share_ascending"] = self.data.order.share_ascending
        return {
            "data": data,
            "texts": asdict(self.texts),
            "untrained": {
                floor.split: {"targets": floor.targets, "is_sample": floor.is_sample, "metrics": floor.metrics}
                for floor in self.floors
            },
            "findings": [asdict(finding) for finding in self.findings],
            "defeats_test": self.defeats_test,
        }


def check_data(dataset: Dataset, folder: Path | None = None, tokenizer: Tokenizer | None = None) -> DataCheck:
    """Return what can be known of a data set without training; its `folder` may tell of ties in time.

    Raises:
        InputError: a file of the folder that tells of ties cannot be read.
    """
    return DataCheck(
        inspect_data(dataset, folder), measure_texts(dataset.item_texts, tokenizer), measure_floors(dataset)
    )


def _part(part: int, whole: int, kind: str) -> str:
    return f"{percent(part, whole)} of {whole:,} {kind}"


def _spread(distribution: Distribution) -> dict[str, str]:
    return {name: f"{getattr(distribution, field):,.1f}".removesuffix(".0") for name, field in SPREAD.items()}
