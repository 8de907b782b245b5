"""Prompt templates in tokens, around textual IDs.

A template is tokenised once, piece by piece around its fields, and is then filled with token lists. So an ID has the
same tokens in a prompt as in the ID table and the trie, whatever stands beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from idgenrec_jax.data.lines import shown
from idgenrec_jax.data.templates import FIELD, PromptTemplate
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError

SEPARATORS = (";", ",", "|", "/", ".", "-")
"""What may stand between two IDs of a history: the first that the tokenizer can spell does."""



class PromptWindow(NamedTuple):
    """The prompts of several targets of one user as one list of tokens.

    `numbers` says which item of the history each token belongs to, from 1; 0 stands before the history. `branches` is 0
    for what all targets may read; elsewhere the number of the item behind which the token stands, for the target that
    follows this item alone. `positions` is where the token stands in a prompt of its own.
    """

    tokens: list[int]
    numbers: list[int]
    branches: list[int]
    positions: list[int]


class PromptTokens:
    """A template in tokens, to be filled with the token lists of IDs."""

    def __init__(self, template: PromptTemplate, tokenizer: Tokenizer, dataset_name: str) -> None:
        """Tokenise the fixed text of the template once; {dataset} becomes `dataset_name`."""
        self.template = template
        self._pad_id, self._eos_id = tokenizer.pad_id, tokenizer.eos_id
        self._separator = _separator_tokens(tokenizer)
        self._pieces, input_texts = _split_into_pieces(template.input_text, tokenizer, dataset_name)
        self._fixed_length = len(_fixed_tokens(self._pieces)) + 1
        self._has_user = "user_id" in self._pieces
        self._has_history = "history" in self._pieces
        self._history_place = self._pieces.index("history") if self._has_history else len(self._pieces)
        after = self._pieces[self._history_place + 1 :]
        # With the end-of-sequence token.
        self._after_length = len(_fixed_tokens(after)) + self._has_history
        self._user_is_after = "user_id" in after
        target_pieces, target_texts = _split_into_pieces(template.target_text, tokenizer, dataset_name)
        self._texts = (*input_texts, *target_texts)
        middle = target_pieces.index("target")
        self._target_prefix = _fixed_tokens(target_pieces[:middle])
        self._target_suffix = _fixed_tokens(target_pieces[middle + 1 :])

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that were tokenised, those around fields: what a check of the tokenizer's spelling looks at."""
        return self._texts

    @property
    def pieces(self) -> list[str | list[int]]:
        """The prompt in order: "history" and "user_id" where these stand, the tokens of the text between them."""
        return list(self._pieces)

    @property
    def user_is_before(self) -> bool:
        """Whether the user ID stands in front of the history, or there is no history."""
        return self._has_user and not self._user_is_after

    @property
    def separator(self) -> list[int]:
        """The tokens between two items' IDs."""
        return list(self._separator)

    @property
    def target_prefix(self) -> tuple[int, ...]:
        """The tokens that the target has before the ID."""
        return self._target_prefix

    @property
    def target_suffix(self) -> tuple[int, ...]:
        """The tokens that the target has after the ID, the end-of-sequence token excluded."""
        return self._target_suffix

    def input_length(self, number_of_history_items: int) -> int:
        """Return how many tokens a prompt has beside its IDs: its fixed text, and the separators of so many items."""
        return self._fixed_length + len(self._separator) * max(0, number_of_history_items - 1)

    def render_input(
        self, history: Sequence[Sequence[int]], user_id: Sequence[int] | None, max_length: int
    ) -> list[int]:
        """Return the prompt, at most `max_length` tokens with the end-of-sequence token that it ends with.

        Where the history does not fit, its oldest items are dropped; the template and the user ID never are.

        Raises:
            InputError: the template with an empty history is longer than max_length, or needs a user ID it lacks.
        """
        return self.render_numbered(history, user_id, max_length)[0]

    def render_numbered(
        self, history: Sequence[Sequence[int]], user_id: Sequence[int] | None, max_length: int
    ) -> tuple[list[int], list[int]]:
        """Return the prompt of `render_input`, and of each token the number of the history item that it belongs to.

        It is 0 before the history, 1 for the oldest item kept, and one more than the last item's behind the history. A
        separator belongs to the item after it.
        """
        kept = self._number_that_fits([len(item) for item in history], user_id, max_length)
        before, items, after = self._split(history[len(history) - kept :], user_id)
        tokens, numbers = list(before), [0] * len(before)
        for number, item in enumerate(items, start=1):
            tokens += item
            numbers += [number] * len(item)
        return tokens + after, numbers + [kept + 1] * len(after)

    def render_window(
        self, history: Sequence[Sequence[int]], user_ids: Sequence[Sequence[int] | None], first: int
    ) -> "PromptWindow":
        """Return the prompts of the targets that follow the first `first`, `first` + 1, .. and all items, as one.

        What follows the history stands once for each of them, with the user ID of this target. In front of the history
        stands the first of the `user_ids`.
        """
        before, items, _ = self._split(history, user_ids[0])
        tokens, numbers = list(before), [0] * len(before)
        ends = [len(tokens)]
        for number, item in enumerate(items, start=1):
            tokens += item
            numbers += [number] * len(item)
            ends.append(len(tokens))
        branches, positions = [0] * len(tokens), list(range(len(tokens)))
        for number in range(first, len(items) + 1):
            after = self._split([], user_ids[number - first])[2]
            tokens += after
            numbers += [number] * len(after)
            branches += [number] * len(after)
            positions += range(ends[number], ends[number] + len(after))
        return PromptWindow(tokens, numbers, branches, positions)

    def window_lengths(
        self,
        id_tokens: Int[np.ndarray, " windows"],
        items: Int[np.ndarray, " windows"],
        targets: Int[np.ndarray, " windows"],
        user_tokens: tuple[Int[np.ndarray, " windows"] | int, Int[np.ndarray, " windows"] | int],
    ) -> Int[np.ndarray, " windows"]:
        """Return the tokens of `render_window` for so many items and targets; `id_tokens` are those of the items.

        `user_tokens` are those of the user ID of the first target, and of the user IDs of all targets together.
        """
        first, together = (tokens * self._has_user for tokens in user_tokens)
        users = together if self._user_is_after else first
        joined = id_tokens + len(self._separator) * np.maximum(items - 1, 0)
        before = self._fixed_length - self._after_length
        return before + joined * self._has_history + targets * self._after_length + users

    def _split(
        self, history: Sequence[Sequence[int]], user_id: Sequence[int] | None
    ) -> tuple[list[int], list[list[int]], list[int]]:
        """What stands before the history, its items, each with the separator before it, and what stands behind it.

        All of a template without a history stands before it.
        """
        sides: tuple[list[int], list[int]] = [], []
        for place, piece in enumerate(self._pieces):
            if piece != "history":
                sides[place > self._history_place].extend(self._fill(piece, user_id))
        sides[self._has_history].append(self._eos_id)
        separators = [self._separator if index else [] for index in range(len(history))]
        items = [[*separator, *item] for separator, item in zip(separators, history, strict=True)]
        return sides[0], items if self._has_history else [], sides[1]

    def render_slots(
        self, number_of_history_items: int, id_length: int, user_id: Sequence[int] | None, max_length: int
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the prompt of the ID phase, where soft IDs of `id_length` embeddings stand for the history items.

        It is (tokens, slot_item, slot_position, numbers), equally long. For a slot, tokens holds the padding token,
        slot_item the index into the history items that were kept (0 is the oldest kept) and slot_position its place in
        the ID, 0 to id_length - 1. For an ordinary token both are -1 and 0. The oldest items are dropped to fit.
        `numbers` are those of `render_numbered`.

        Raises:
            InputError: as `render_input`.
        """
        kept = self._number_that_fits([id_length] * number_of_history_items, user_id, max_length)
        before, items, after = self._split([[]] * kept, user_id)
        tokens, slot_item, slot_position = list(before), [-1] * len(before), [0] * len(before)
        numbers = [0] * len(before)
        for index, separator in enumerate(items):
            tokens += [*separator, *[self._pad_id] * id_length]
            slot_item += [-1] * len(separator) + [index] * id_length
            slot_position += [0] * len(separator) + list(range(id_length))
            numbers += [index + 1] * (len(separator) + id_length)
        return (
            tokens + after,
            slot_item + [-1] * len(after),
            slot_position + [0] * len(after),
            numbers + [kept + 1] * len(after),
        )

    def input_lengths(
        self,
        tokens_before: Int[np.ndarray, " prefixes"],
        firsts: Int[np.ndarray, " prompts"],
        ends: Int[np.ndarray, " prompts"],
        user_lengths: Int[np.ndarray, " prompts"] | None,
        max_length: int,
    ) -> tuple[Int[np.ndarray, " prompts"], Int[np.ndarray, " prompts"]]:
        """Return how many history items each prompt keeps, and its length in tokens, without rendering it.

        The history of a prompt is a stretch, from `firsts` up to but without `ends`, of a list of items of which the
        first n have `tokens_before[n]` tokens. The rule is that of `render_input` and `render_slots`.

        Raises:
            InputError: as `render_input`.
        """
        if not len(ends):
            return ends, ends
        users = user_lengths if self._has_user and user_lengths is not None else np.zeros_like(ends)
        fixed = self._fixed_length + users
        room = max_length - fixed
        # The longest user ID has the least room: where it has some, all have.
        self.room(None if user_lengths is None else int(users.max()), max_length)
        if not self._has_history:
            return np.zeros_like(ends), fixed
        separator = len(self._separator)

        def length_from(first: np.ndarray, chosen: np.ndarray | slice) -> np.ndarray:
            items = ends[chosen] - first
            return tokens_before[ends[chosen]] - tokens_before[first] + separator * np.maximum(items - 1, 0)

        first = firsts.copy()
        # The fewer items, the shorter the history: the first one to keep is found by halving.
        (cut,) = np.nonzero(length_from(first, slice(None)) > room)
        low, high = first[cut], ends[cut]
        while (low < high).any():
            middle = (low + high) // 2
            fits = length_from(middle, cut) <= room[cut]
            low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
        first[cut] = high
        return ends - first, fixed + length_from(first, slice(None))

    def room(self, user_length: int | None, max_length: int) -> int:
        """Return how many tokens a prompt has for its history; `user_length` is that of the user ID, if there is one.

        Raises:
            InputError: as `render_input`.
        """
        if not self._has_user:
            user_length = 0
        elif user_length is None:
            raise self._no_user_ids()
        room = max_length - self._fixed_length - user_length
        if room < 0:
            raise InputError(
                f"--config.data.max_prompt_length={max_length}: prompt template {shown(self.template.input_text)} "
                f"takes {max_length - room} tokens before any history; raise it or shorten the template"
            )
        return room

    def _fill(self, piece: str | list[int], user_id: Sequence[int] | None) -> Sequence[int]:
        """The tokens of a piece that is not the history."""
        if not isinstance(piece, str):
            return piece
        if user_id is None:
            raise self._no_user_ids()
        return user_id

    def _no_user_ids(self) -> InputError:
        return InputError(
            f"prompt template {shown(self.template.input_text)} has {{user_id}}, but there are no user IDs; set "
            "--config.data.user_ids=train_history or use templates without {user_id}"
        )

    def _number_that_fits(self, lengths: Sequence[int], user_id: Sequence[int] | None, max_length: int) -> int:
        """How many of the newest history items, of these token lengths, fit into a prompt of max_length tokens."""
        room = self.room(None if user_id is None else len(user_id), max_length)
        if not self._has_history:
            return 0
        kept = 0
        for length in reversed(lengths):
            room -= length + (len(self._separator) if kept else 0)
            if room < 0:
                break
            kept += 1
        return kept


def _separator_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens between two IDs: of the first of `SEPARATORS` that the tokenizer can spell.

    They are those inside "first; second", without the word boundary that every text begins with.
    """
    first, second = tokenizer.encode("a"), tokenizer.encode(" a")
    for separator in SEPARATORS:
        whole = tokenizer.encode(f"a{separator} a")
        inside = whole[len(first) : len(whole) - len(second)]
        stands_alone = whole[: len(first)] == first and whole[len(whole) - len(second) :] == second
        for tokens in ([inside] if stands_alone else []) + [tokenizer.encode(separator)]:
            # An unknown token, or none at all, would not tell where an ID ends.
            if tokenizer.decode(tokens).strip() == separator:
                return tokens
    raise InputError(
        f"--config.data.tokenizer: its vocabulary spells none of {' '.join(SEPARATORS)} to stand between the IDs of a "
        "prompt; use a tokenizer that has one of them"
    )


def _fixed_tokens(pieces: Sequence[str | list[int]]) -> tuple[int, ...]:
    """The tokens of the text between fields."""
    return tuple(token for piece in pieces if not isinstance(piece, str) for token in piece)


def _split_into_pieces(text: str, tokenizer: Tokenizer, dataset_name: str) -> tuple[list[str | list[int]], list[str]]:
    """A template in order, fields as their names and the text between them as tokens; and that text."""
    # The name of a folder may hold bytes that are no text, and braces that are no field.
    name = dataset_name.encode("utf-8", "replace").decode("utf-8")
    texts, fields = [""], []
    for index, part in enumerate(FIELD.split(text)):
        if index % 2 and part != "dataset":
            fields.append(part)
            texts.append("")
        else:
            texts[-1] += name if index % 2 else part
    pieces: list[str | list[int]] = []
    for between, field in zip(texts, [*fields, None], strict=True):
        tokens = tokenizer.encode(between) if between.strip() else []
        pieces += [tokens] if tokens else []
        pieces += [field] if field is not None else []
    return pieces, [between.strip() for between in texts if between.strip()]
