"""New IDs that must earn their place: an old ID stays unless the frozen recommender predicts better with another.

Of each item's candidates, and its old ID, the recommender's loss is taken on the same training examples: some in whose
histories the item stands, with the candidate in its place there and the current IDs elsewhere. That is what an ID phase
trains for, measured on the words themselves instead of a mixture of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.choices import TargetChoices, place_choices
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.held_out_batches import bucket_widths, pad_rows
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.ids.candidates import Candidate
from idgenrec_jax.ids.table import IdTable
from idgenrec_jax.training.catalogue_loss import held_out_losses
from idgenrec_jax.training.choice_softmax import ChoiceTable
from idgenrec_jax.training.segments import causal_mask, on_device

_SEED = 6
_TEMPLATE = 0
_WIDTHS = 4


class Scored(NamedTuple):
    """An item's candidates, its old ID first, and the recommender's mean loss with each, in nats per target.

    The losses are empty where no training history holds the item: nothing speaks for another ID then.
    """

    candidates: tuple[Candidate, ...]
    losses: Float[np.ndarray, " candidates"]


class _Prompt(NamedTuple):
    """A training example in which one candidate stands in the place of one item."""

    item: int
    candidate: int
    user: int
    position: int


class CandidateScorer:
    """The recommender's loss with candidates for items' IDs; compiled once per width of prompts."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        *,
        batch_size: int,
        place_batch: Callable[[Any], Any] = jax.device_put,
        read: Callable[[Any], Any] = jax.device_get,
    ):
        """Prepare the loss for the recommender of this `graphdef`, for so many prompts at once."""
        self._batch_size, self._place_batch, self._read = batch_size, place_batch, read

        def losses(
            params: Any,
            tokens: Int[Array, "batch source"],
            mask: Bool[Array, "batch source"],
            items: Int[Array, "batch source"] | None,
            targets: Int[Array, "batch target"],
            target_choices: TargetChoices,
            choices: ChoiceTable,
        ) -> Float[Array, " batch"]:
            model = nnx.merge(graphdef, params)
            tokens, mask, items = on_device((tokens, mask, items))
            encoded = model.encode(tokens, mask if items is None else causal_mask(mask[:, None, :], items))
            return held_out_losses(model, encoded, mask, targets, target_choices, choices)

        self._losses = jax.jit(losses)

    def score(
        self,
        params: Any,
        renderer: PromptRenderer,
        choices: ChoiceTable,
        candidates: Sequence[Sequence[Candidate]],
        *,
        num_examples: int,
        seed: Sequence[int],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Scored]:
        """Return every item's candidates with their losses; the first of each is the ID that it has in `renderer`.

        An item's candidates are compared on the same examples, up to `num_examples`, drawn by `seed`.
        """
        occurrences = examples_with_items(renderer.dataset, renderer.max_history)
        rng = np.random.default_rng([*seed, _SEED])
        prompts: list[_Prompt] = []
        for item, (of_item, examples) in enumerate(zip(candidates, occurrences, strict=True)):
            if len(of_item) < 2 or not len(examples):
                continue
            chosen = rng.choice(len(examples), size=min(num_examples, len(examples)), replace=False)
            prompts += [
                _Prompt(item, candidate, *examples[example].tolist())
                for example in np.sort(chosen)
                for candidate in range(len(of_item))
            ]
        losses = self._losses_of(params, renderer, choices, candidates, prompts, on_progress)
        sums = [np.zeros(len(of_item)) for of_item in candidates]
        counts = [np.zeros(len(of_item)) for of_item in candidates]
        for prompt, loss in zip(prompts, losses.tolist(), strict=True):
            sums[prompt.item][prompt.candidate] += loss
            counts[prompt.item][prompt.candidate] += 1
        return [
            Scored(tuple(of_item), total / count if count.any() else np.zeros(0))
            for of_item, total, count in zip(candidates, sums, counts, strict=True)
        ]

    def _losses_of(
        self,
        params: Any,
        renderer: PromptRenderer,
        choices: ChoiceTable,
        candidates: Sequence[Sequence[Candidate]],
        prompts: Sequence[_Prompt],
        on_progress: Callable[[int, int], None],
    ) -> Float[np.ndarray, " prompts"]:
        """The loss of each prompt, computed in batches of prompts of similar length."""
        result = np.zeros(len(prompts))
        if not prompts:
            return result
        rendered = [_render(renderer, prompt, candidates[prompt.item][prompt.candidate]) for prompt in prompts]
        lengths = np.asarray([len(tokens) for tokens, _ in rendered])
        widths = bucket_widths(lengths, _WIDTHS)
        order, done = np.argsort(lengths, kind="stable"), 0
        bucket_of = np.searchsorted(np.asarray(widths), lengths)
        for bucket, width in enumerate(widths):
            members = order[bucket_of[order] == bucket]
            for start in range(0, len(members), self._batch_size):
                rows = members[start : start + self._batch_size]
                batch = self._batch(renderer, [prompts[row] for row in rows], [rendered[row] for row in rows], width)
                losses = self._losses(params, *self._place_batch(batch), choices)
                result[rows] = self._read(losses)[: len(rows)]
                done += len(rows)
                on_progress(done, len(prompts))
        return result

    def _batch(
        self,
        renderer: PromptRenderer,
        prompts: Sequence[_Prompt],
        rendered: Sequence[tuple[list[int], list[int]]],
        width: int,
    ) -> tuple[Any, ...]:
        """The arrays of one batch: prompts, their mask and items, targets and their choices."""
        size = self._batch_size
        items = [int(renderer.dataset.sequences[prompt.user][prompt.position]) for prompt in prompts]
        ways = [[(0, renderer.way(item, _TEMPLATE))] for item in items]
        return (
            *pad_rows([tokens for tokens, _ in rendered], size, width),
            pad_rows([numbers for _, numbers in rendered], size, width)[0] if renderer.is_causal else None,
            pad_rows([renderer.decoded(item, _TEMPLATE) for item in items], size, renderer.target_width())[0],
            place_choices(renderer.choices, ways, size, renderer.most_choices),
        )


def _render(renderer: PromptRenderer, prompt: _Prompt, candidate: Candidate) -> tuple[list[int], list[int]]:
    """The tokens of a prompt with a candidate in place of its item, and the numbers of the items they belong to."""
    history = renderer.dataset.sequences[prompt.user][: prompt.position][-renderer.max_history :].tolist()
    ids = [candidate.tokens if item == prompt.item else renderer.item_ids[item] for item in history]
    user_id = renderer.user_id(prompt.user, prompt.position)
    return renderer.templates[_TEMPLATE].render_numbered(ids, user_id, renderer.max_prompt_length)


def examples_with_items(dataset: Dataset, max_history: int) -> list[Int[np.ndarray, "examples 2"]]:
    """Return, for each item, the (user, position) of every training example whose history holds it.

    The history is the last `max_history` items before the position.
    """
    found: list[set[tuple[int, int]]] = [set() for _ in dataset.items]
    for user in range(len(dataset.users)):
        sequence = dataset.training_sequence(user).tolist()
        for place, item in enumerate(sequence):
            for position in range(place + 1, min(place + max_history + 1, len(sequence))):
                found[item].add((user, position))
    return [np.asarray(sorted(of_item), np.int64).reshape(-1, 2) for of_item in found]


def accepted_table(old: IdTable, scored: Sequence[Scored]) -> IdTable:
    """Return the table in which each item, in order, has its best candidate that is free and beats its old ID.

    A candidate that some item has in the old table is never free for another, so that every item can keep what it has.
    """
    taken = dict(zip(old.tokens, range(len(old.items)), strict=True))
    chosen = []
    for item, (candidates, losses) in enumerate(scored):
        better = [place for place in np.argsort(losses, kind="stable").tolist() if losses[place] < losses[0]]
        place = next((place for place in better if candidates[place].tokens not in taken), 0)
        chosen.append(candidates[place] if place else Candidate(old.texts[item], old.tokens[item]))
        taken.setdefault(chosen[-1].tokens, item)
    return IdTable(
        old.items, tuple(candidate.text for candidate in chosen), tuple(candidate.tokens for candidate in chosen)
    )
