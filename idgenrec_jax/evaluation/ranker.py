"""Ranks the whole catalogue for every user, and the metrics of those rankings (docs/design.md, Protocol).

The catalogue comes as a trie (`catalogue_trie`), which the caller builds once for as many rankings as it likes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.config import EvaluationConfig
from idgenrec_jax.data.batches import PromptRenderer, held_out_batches
from idgenrec_jax.data.packing import round_up
from idgenrec_jax.decoding.beam import (
    MODEL_WIDTH_OF_NARROW_STEPS,
    BeamResult,
    available_results,
    constrained_beam_search,
    narrow_steps,
)
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.evaluation.metrics import ranking_metrics, target_ranks
from idgenrec_jax.processes import put, readable
from idgenrec_jax.progress import Progress
from idgenrec_jax.sharding import replicated_beside
from idgenrec_jax.training.recommender_loss import target_loss

NUM_BUCKETS = 4
CACHE_MULTIPLE = 4


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The ranked items of each evaluated user.

    `users` and `targets` are indices, `items` the recommended item indices best first (-1: fewer items than results),
    `scores` their log-probabilities divided by length**length_penalty. `loss` is the mean cross-entropy of the targets'
    tokens in nats.
    """

    users: Int[np.ndarray, " users"]
    targets: Int[np.ndarray, " users"]
    items: Int[np.ndarray, "users results"]
    scores: Float[np.ndarray, "users results"]
    loss: float

    def metrics(self) -> dict[str, float]:
        """Return every metric at the cut-offs that the number of results allows."""
        return ranking_metrics(self.ranks(), self.items.shape[1])

    def ranks(self) -> Int[np.ndarray, " users"]:
        """Return the place of each user's target, from 0; -1 where it was not recommended."""
        return target_ranks(self.items, self.scores, self.targets)


class Ranker:
    """Ranks users by constrained beam search; compiled once per prompt width."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        config: EvaluationConfig,
        *,
        place_batch: Callable[[Any], Any] = jax.device_put,
    ):
        """Prepare the jitted search for the recommender of this `graphdef`.

        `place_batch` puts a tree of numpy arrays on the devices.
        """
        self._config, self._place_batch = config, place_batch

        def search(params, prompt_tokens, prompt_mask, targets, trie: Trie, cache_length: int):
            model = nnx.merge(graphdef, params)
            encoded = model.encode(prompt_tokens, prompt_mask)
            loss = None if targets is None else target_loss(model, encoded, prompt_mask, *targets)
            cache = model.start_decoding(
                encoded, prompt_mask, num_beams=config.num_beams, max_length=cache_length
            )

            def step(tokens, position, cache):
                hidden, written = model.decode_step(tokens, position, cache)
                return model.logits(hidden), written

            found = constrained_beam_search(
                step,
                cache,
                trie,
                batch_size=prompt_tokens.shape[0],
                num_beams=config.num_beams,
                num_results=config.num_beams,
                start_token_id=model.config.decoder_start_token_id,
                length_penalty=config.length_penalty,
                narrow=narrow_steps(config.num_beams) if model.config.d_model >= MODEL_WIDTH_OF_NARROW_STEPS else (),
            )
            return found, loss

        self._search = jax.jit(search, static_argnames="cache_length")

    def search(
        self,
        params: Any,
        prompt_tokens: Int[Array | np.ndarray, "batch source"],
        prompt_mask: Bool[Array | np.ndarray, "batch source"],
        trie: Trie,
    ) -> tuple[Int[np.ndarray, "batch results"], Float[np.ndarray, "batch results"]]:
        """Return the items recommended after each prompt, best first, and their scores."""
        trie = put(trie, replicated_beside(params))
        found, _ = self._run(params, (prompt_tokens, prompt_mask), None, trie)
        return jax.device_get((found.items, found.scores))

    def traced_search(
        self,
        params: Any,
        prompt_tokens: Int[Array, "batch source"],
        prompt_mask: Bool[Array, "batch source"],
        trie: Trie,
    ) -> tuple[Int[Array, "batch results"], Float[Array, "batch results"]]:
        """`search` as part of a traced program; `trie` is a concrete one."""
        found, _ = self._search(params, prompt_tokens, prompt_mask, None, trie, _cache_length(trie))
        return found.items, found.scores

    def _run(self, params: Any, prompts: Any, targets: Any, trie: Trie) -> tuple[BeamResult, Array | None]:
        """The search, and the mean loss of the targets' tokens where targets are given."""
        prompts, targets = self._place_batch(prompts), self._place_batch(targets)
        return readable(self._search(params, *prompts, targets, trie, _cache_length(trie)))

    def rank(
        self,
        params: Any,
        renderer: PromptRenderer,
        trie: Trie,
        split: str,
        *,
        title: str,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Ranking:
        """Rank the whole catalogue for every user of a split ("validation" or "test"), under the first template.

        `trie` is that of the IDs and the template of `renderer`.

        `check_stop` is called between batches and may raise to end the work.
        """
        batches, users, targets = held_out_batches(
            renderer, split, template=0, batch_size=self._config.batch_size, num_buckets=NUM_BUCKETS
        )
        available_results(trie, self._config.num_beams)
        trie = put(trie, replicated_beside(params))
        items = np.full((len(users), self._config.num_beams), -1, np.int32)
        scores = np.full((len(users), self._config.num_beams), -np.inf, np.float32)
        progress = Progress(title, len(users), "user")
        done, losses, tokens = 0, 0.0, 0
        for step in range(len(batches)):
            batch, rows = batches.batch(step), batches.rows(step)
            # One program, so that the loss has its encoder states from the search.
            found, loss = self._run(
                params, (batch.prompt_tokens, batch.prompt_mask), (batch.target_tokens, batch.target_mask), trie
            )
            found, loss = jax.device_get((found, loss))
            items[rows], scores[rows] = found.items[: len(rows)], found.scores[: len(rows)]
            count = int(batch.target_mask.sum())
            losses, tokens = losses + float(loss) * count, tokens + count
            done += len(rows)
            progress.update(done)
            check_stop()
        progress.close()
        return Ranking(users.astype(np.int32), targets, items, scores, losses / tokens)


def _cache_length(trie: Trie) -> int:
    """Positions of a search's cache; a multiple, so that the tries of successive rounds share a compiled program."""
    # The last token is never read.
    return round_up(max(1, trie.depth - 1), CACHE_MULTIPLE)
