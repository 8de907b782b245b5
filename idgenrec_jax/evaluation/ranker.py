"""Ranks the whole catalogue for every user, and the metrics of those rankings (docs/design.md, Protocol).

The catalogue comes as a trie, in which beam search finds the best items, or as a plan, by which every item is scored
(`catalogue_trie`). The caller builds it once for as many rankings as it likes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.config import Config
from idgenrec_jax.data.choices import TargetChoices
from idgenrec_jax.data.held_out_batches import held_out_batches
from idgenrec_jax.data.packing import round_up
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.decoding.beam import (
    MODEL_WIDTH_OF_NARROW_STEPS,
    BeamResult,
    available_results,
    constrained_beam_search,
    narrow_steps,
)
from idgenrec_jax.decoding.catalogue import best_items, score_items
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.evaluation.metrics import ranking_metrics, target_ranks
from idgenrec_jax.models.t5 import T5
from idgenrec_jax.processes import put, readable
from idgenrec_jax.progress import Progress
from idgenrec_jax.sharding import constrain, replicated_beside
from idgenrec_jax.training.catalogue_loss import held_out_losses
from idgenrec_jax.training.choice_softmax import ChoiceTable, choice_table
from idgenrec_jax.training.recommender_loss import target_loss
from idgenrec_jax.training.segments import causal_mask, on_device

CACHE_MULTIPLE = 4


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The ranked items of each target: of each evaluated user, or of each time that a user has a target.

    `users` and `targets` are indices, `items` the recommended item indices best first (-1: fewer items than results),
    `scores` their log-probabilities divided by length**length_penalty. `loss` is the mean cross-entropy of the targets'
    tokens in nats; over the catalogue, of the targets in nats per item. `places`, where every item was scored, is each
    target's place among all of them, from 0; -1 where it was removed.
    """

    users: Int[np.ndarray, " targets"]
    targets: Int[np.ndarray, " targets"]
    items: Int[np.ndarray, "targets results"]
    scores: Float[np.ndarray, "targets results"]
    loss: float
    places: Int[np.ndarray, " targets"] | None = None

    def metrics(self) -> dict[str, float]:
        """Return every metric at the cut-offs that the number of results allows."""
        return ranking_metrics(self.ranks(), self.items.shape[1])

    def ranks(self) -> Int[np.ndarray, " targets"]:
        """Return the place of each target, from 0; -1 where it was not found. Ties count against it."""
        return target_ranks(self.items, self.scores, self.targets) if self.places is None else self.places


class PromptBatch(NamedTuple):
    """What users are ranked by, one a row.

    `items` is the number of the history item that each token belongs to: 0 before the history, 1 and so on for its
    items, one more than the last behind it. It is given where the recommender reads a history causally, otherwise None.
    `seen` holds the numbers of items that are left out of the ranking, -1 in free places; None: there are none.
    """

    tokens: Int[Array | np.ndarray, "batch source"]
    mask: Bool[Array | np.ndarray, "batch source"]
    items: Int[Array | np.ndarray, "batch source"] | None = None
    seen: Int[Array | np.ndarray, "batch seen"] | None = None

    def encoder_mask(self) -> Bool[Array, "batch source"] | Bool[Array, "batch source source"]:
        """Return which tokens, or for each token which others, the encoder looks at."""
        mask, items = on_device((self.mask, self.items))
        # [batch, source] -> [batch, 1, source] -> [batch, source, source]
        return mask if items is None else causal_mask(mask[:, None, :], items)


class _Found(NamedTuple):
    """The ranking of a batch of users; `loss` and `places` where targets were given, `places` of exact search alone."""

    best: BeamResult
    loss: Array | None
    places: Int[Array, " batch"] | None


class Ranker:
    """Ranks users by constrained beam search or by exact scores; compiled once per prompt width."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: Config,
        *,
        place_batch: Callable[[Any], Any] = jax.device_put,
    ):
        """Prepare the jitted searches for the recommender of this `graphdef`.

        `place_batch` puts a tree of numpy arrays on the devices.
        """
        self._config, self._place_batch = config, place_batch
        num_beams, length_penalty = config.evaluation.num_beams, config.evaluation.length_penalty

        def read(params, prompts: PromptBatch, targets, choices: ChoiceTable | None):
            model = nnx.merge(graphdef, params)
            encoded = model.encode(prompts.tokens, prompts.encoder_mask())
            if targets is None:
                return model, encoded, None
            _, tokens, mask, of_targets = targets
            prompt_mask = on_device(prompts.mask)
            return model, encoded, _mean_loss(model, encoded, prompt_mask, tokens, mask, of_targets, choices)

        def search(params, prompts: PromptBatch, targets, trie: Trie, choices: ChoiceTable | None, cache_length: int):
            model, encoded, loss = read(params, prompts, targets, choices)
            cache = model.start_decoding(encoded, prompts.mask, num_beams=num_beams, max_length=cache_length)
            # Once, before the loop. [vocab, d_model] -> [columns, d_model]
            table = None if trie.tokens is None else constrain(model.output_table[trie.tokens], "rows width")

            def step(tokens, position, cache):
                hidden, written = model.decode_step(tokens, position, cache)
                return model.logits(hidden, table), written

            found = constrained_beam_search(
                step,
                cache,
                trie,
                batch_size=prompts.tokens.shape[0],
                num_beams=num_beams,
                num_results=num_beams,
                start_token_id=model.config.decoder_start_token_id,
                length_penalty=length_penalty,
                narrow=narrow_steps(num_beams) if model.config.d_model >= MODEL_WIDTH_OF_NARROW_STEPS else (),
                seen=on_device(prompts.seen),
            )
            return _Found(found, loss, None)

        def score(params, prompts: PromptBatch, targets, plan: CataloguePlan, choices: ChoiceTable | None):
            model, encoded, loss = read(params, prompts, targets, choices)
            scores = score_items(model, encoded, on_device(prompts.mask), plan, length_penalty)
            best, places = best_items(
                scores, on_device(prompts.seen), None if targets is None else targets[0], num_beams
            )
            return _Found(best, loss, places)

        def loss_alone(params, prompts: PromptBatch, targets, choices: ChoiceTable | None):
            return read(params, prompts, targets, choices)[2]

        self._search, self._score = jax.jit(search, static_argnames="cache_length"), jax.jit(score)
        self._loss = jax.jit(loss_alone)

    def search(
        self,
        params: Any,
        prompt_tokens: Int[Array | np.ndarray, "batch source"],
        prompt_mask: Bool[Array | np.ndarray, "batch source"],
        catalogue: Trie | CataloguePlan,
        *,
        prompt_items: Int[Array | np.ndarray, "batch source"] | None = None,
        seen: Int[Array | np.ndarray, "batch seen"] | None = None,
    ) -> tuple[Int[np.ndarray, "batch results"], Float[np.ndarray, "batch results"]]:
        """Return the items recommended after each prompt, best first, and their scores.

        `prompt_items` and `seen` are those of `PromptBatch`. The first is needed where the recommender is causal. The
        second is needed where seen items are removed.
        """
        catalogue = put(catalogue, replicated_beside(params))
        prompts = PromptBatch(prompt_tokens, prompt_mask, prompt_items, seen)
        best = self._run(params, prompts, None, catalogue, None).best
        return jax.device_get((best.items, best.scores))

    def traced_search(
        self,
        params: Any,
        prompt_tokens: Int[Array, "batch source"],
        prompt_mask: Bool[Array, "batch source"],
        trie: Trie,
        *,
        prompt_items: Int[Array, "batch source"] | None = None,
        seen: Int[Array, "batch seen"] | None = None,
    ) -> tuple[Int[Array, "batch results"], Float[Array, "batch results"]]:
        """`search` as part of a traced program; `trie` is a concrete one."""
        prompts = self._checked(PromptBatch(prompt_tokens, prompt_mask, prompt_items, seen), trie)
        best = self._search(params, prompts, None, trie, None, _cache_length(trie)).best
        return best.items, best.scores

    def _run(
        self,
        params: Any,
        prompts: PromptBatch,
        targets: Any,
        catalogue: Trie | CataloguePlan,
        choices: ChoiceTable | None,
    ) -> _Found:
        """The search; `targets` are their items, their tokens, which of these are real, and their choices."""
        prompts, targets = self._place_batch(self._checked(prompts, catalogue)), self._place_batch(targets)
        if isinstance(catalogue, CataloguePlan):
            return readable(self._score(params, prompts, targets, catalogue, choices))
        return readable(self._search(params, prompts, targets, catalogue, choices, _cache_length(catalogue)))

    def _checked(self, prompts: PromptBatch, catalogue: Trie | CataloguePlan) -> PromptBatch:
        """The prompts, if they and the catalogue are as configured; otherwise the ranking would be wrong.

        Raises:
            ValueError: they are not.
        """
        config = self._config
        wanted = {
            "a trie over the catalogue": (catalogue.over_catalogue, config.over_catalogue),
            "the items of prompts": (prompts.items is not None, config.is_causal),
            "the items seen": (prompts.seen is not None, config.evaluation.seen_items == "remove"),
        }
        for name, (found, expected) in wanted.items():
            if found != expected:
                raise ValueError(f"{name}: {'not ' if expected else ''}given, which is not as the run is configured")
        return prompts

    def rank(
        self,
        params: Any,
        renderer: PromptRenderer,
        catalogue: Trie | CataloguePlan,
        split: str,
        *,
        title: str,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Ranking:
        """Rank the whole catalogue for every target of a split ("validation" or "test"), under the first template.

        `catalogue` is that of the IDs and the template of `renderer`. `check_stop` is called between batches and may
        raise to end the work.
        """
        batches, users, targets = held_out_batches(
            renderer,
            split,
            template=0,
            batch_size=self._config.evaluation.batch_size,
            with_seen=self._config.evaluation.seen_items == "remove",
        )
        available_results(catalogue.num_items, self._config.evaluation.num_beams)
        catalogue = put(catalogue, replicated_beside(params))
        choices = put(choice_table(renderer.choices), replicated_beside(params)) if catalogue.over_catalogue else None
        items = np.full((len(users), self._config.evaluation.num_beams), -1, np.int32)
        scores = np.full((len(users), self._config.evaluation.num_beams), -np.inf, np.float32)
        places = np.full(len(users), -1, np.int32) if isinstance(catalogue, CataloguePlan) else None
        progress = Progress(title, len(users), "user" if len(np.unique(users)) == len(users) else "target")
        done, losses, counted = 0, 0.0, 0
        for step in range(len(batches)):
            batch, rows = batches.batch(step), batches.rows(step)
            target_items = np.pad(targets[rows], (0, len(batch.target_mask) - len(rows)))
            # One program, so that the loss has its encoder states from the search.
            found = self._run(
                params,
                PromptBatch(batch.prompt_tokens, batch.prompt_mask, batch.prompt_items, batch.seen),
                (target_items, batch.target_tokens, batch.target_mask, batch.choices),
                catalogue,
                choices,
            )
            found = jax.device_get(found)
            items[rows], scores[rows] = found.best.items[: len(rows)], found.best.scores[: len(rows)]
            if places is not None:
                places[rows] = found.places[: len(rows)]
            count = len(rows) if catalogue.over_catalogue else int(batch.target_mask.sum())
            losses, counted = losses + float(found.loss) * count, counted + count
            done += len(rows)
            progress.update(done)
            check_stop()
        progress.close()
        return Ranking(users.astype(np.int32), targets, items, scores, losses / counted, places)

    def loss(self, params: Any, renderer: PromptRenderer, split: str) -> float:
        """Return the mean loss of a split's targets, as `Ranking.loss`, without ranking anything."""
        over_catalogue = renderer.over_catalogue
        batches, _, targets = held_out_batches(
            renderer, split, template=0, batch_size=self._config.evaluation.batch_size
        )
        choices = put(choice_table(renderer.choices), replicated_beside(params)) if over_catalogue else None
        losses, counted = 0.0, 0
        for step in range(len(batches)):
            batch, rows = batches.batch(step), batches.rows(step)
            items = np.pad(targets[rows], (0, len(batch.target_mask) - len(rows)))
            placed = self._place_batch(
                (
                    PromptBatch(batch.prompt_tokens, batch.prompt_mask, batch.prompt_items),
                    (items, batch.target_tokens, batch.target_mask, batch.choices),
                )
            )
            count = len(rows) if over_catalogue else int(batch.target_mask.sum())
            loss = float(jax.device_get(readable(self._loss(params, *placed, choices))))
            losses, counted = losses + loss * count, counted + count
        return losses / counted


def _mean_loss(
    model: T5,
    encoded: Float[Array, "batch source d_model"],
    prompt_mask: Bool[Array, "batch source"],
    target_tokens: Int[Array, "batch target"],
    target_mask: Bool[Array, "batch target"],
    target_choices: TargetChoices | None,
    choices: ChoiceTable | None,
) -> Float[Array, ""]:
    """The mean loss of the targets' tokens or, over the catalogue, of the targets."""
    if choices is None:
        return target_loss(model, encoded, prompt_mask, target_tokens, target_mask)
    # Over the catalogue every batch has them.
    assert target_choices is not None
    losses = held_out_losses(model, encoded, prompt_mask, target_tokens, target_choices, choices)
    # Rows that only fill up the batch have no choices, and no loss. [batch] -> []
    return losses.sum() / target_mask.any(axis=1).sum()


def _cache_length(trie: Trie) -> int:
    """Positions of a search's cache; a multiple, so that the tries of successive rounds share a compiled program."""
    # The last token is never read.
    return round_up(max(1, trie.depth - 1), CACHE_MULTIPLE)
