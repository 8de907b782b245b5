"""What was done to raw data, written beside it as dataset_card.json."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgenrec_jax.data.dataset_card import PLAIN_TEXTS
from idgenrec_jax.errors import InputError

TIE_RULE = "interactions of a user with equal times are ordered by a hash of user and item"


@dataclass(frozen=True)
class Split:
    """What is held out: a name, a description for results.json, and the two moments of a split by time, in seconds."""

    name: str
    description: str
    moments: list[float] | None = None


@dataclass(frozen=True)
class PreparationCard:
    """What was done to the raw data.

    `interactions_by_filter` counts what each filter has left, in order. `exact_repeats` have user, item and time of one
    before; `repeats` only user and item, and `duplicates` says which of them stay. `tied_interactions` share user and
    time with another; None where the files hold no times.
    """

    source: str
    reason: str
    notes: list[str]
    command: str
    files: list[dict[str, Any]]
    downloaded: dict[str, Any]
    licence: str
    interactions_by_filter: dict[str, int]
    exact_repeats: int
    repeats: int
    duplicates: str
    user_core: int
    item_core: int
    bad_lines: int
    first_bad_lines: list[str]
    users: int
    items: int
    interactions: int
    tied_interactions: int | None
    order: str
    text_fields: list[str]
    items_without_text: int
    split: Split
    tie_rule: str = TIE_RULE
    texts: str = PLAIN_TEXTS

    def summary(self) -> str:
        """Return some lines for the screen: what came out, what was dropped, how ties were broken."""
        read = self.interactions_by_filter["read"]
        exact_share, share = (count / max(1, read) for count in (self.exact_repeats, self.repeats))
        fate = "kept" if self.duplicates == "keep" else "dropped"
        lines = [
            f"{self.users} users, {self.items} items, {self.interactions} of {read} interactions "
            f"(--user_core={self.user_core} --item_core={self.item_core})",
            "interactions left by each filter: "
            + ", ".join(f"{name} {count}" for name, count in self.interactions_by_filter.items()),
            f"before the core: {self.exact_repeats} exact repeats (same user, item and time; {exact_share:.1%}) "
            f"dropped; {self.repeats} repeats of user and item at other times ({share:.1%}) {fate} "
            f"(--duplicates={self.duplicates})",
        ]
        if self.tied_interactions is None:
            lines.append(f"order: {self.order}")
        else:
            lines.append(f"{self.tied_interactions} of them share user and time with another: {self.tie_rule}")
        if self.bad_lines:
            lines.append(f"{self.bad_lines} faulty records left out, the first: " + "; ".join(self.first_bad_lines))
        lines.append(f"split: {self.split.description}")
        lines.append(f"text: {', '.join(self.text_fields) or 'none'}; {self.items_without_text} items without any")
        return "\n".join(lines)


def checksums(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return name, size in bytes and SHA-256 of files.

    Raises:
        InputError: one cannot be read.
    """
    found = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return found
