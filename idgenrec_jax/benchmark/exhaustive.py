"""What our outputs are compared with where no peer's are like them: scores of all items, losses target by target.

The losses are computed from the logits of the whole vocabulary. What follows a prefix is looked up in plain
dictionaries: nothing of the training's loss is used, which is compared with them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.benchmark.work import Disagreement
from idgenrec_jax.data.held_out_batches import HeldOutBatch, pad_rows
from idgenrec_jax.data.recommender_batches import Target
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.decoding.catalogue import best_items, score_items
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.evaluation.ranker import PromptBatch
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.models.create import Model
from idgenrec_jax.models.t5 import shift_right
from idgenrec_jax.training.segments import causal_mask

SCORE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Nats by which two scores of an item may differ, by the dtype of the arithmetic."""
_TOP = 10
# Prompts whose logits are held at once.
_TOGETHER = 8


def exact_plan(experiment: Experiment, renderer: PromptRenderer) -> CataloguePlan:
    """Return the plan by which all items of `renderer` are scored, whatever search is configured."""
    evaluation = dataclasses.replace(experiment.config.evaluation, search="exact")
    config = dataclasses.replace(experiment.config, evaluation=evaluation)
    plan = dataclasses.replace(experiment, config=config).catalogue(renderer)
    assert isinstance(plan, CataloguePlan)
    return plan


class Exhaustive:
    """The scores of a recommender's items, each computed as the probability of its tokens."""

    def __init__(self, experiment: Experiment, renderer: PromptRenderer):
        """Prepare the plan of all items of `renderer`, that of evaluation."""
        self._renderer, self._params = renderer, experiment.recommender.params
        self._length_penalty = experiment.config.evaluation.length_penalty
        self._tolerance = SCORE_TOLERANCE[experiment.config.recommender.compute_dtype]
        self._plan = exact_plan(experiment, renderer)
        graphdef = experiment.recommender.graphdef

        def score_all(params: Any, prompts: PromptBatch, plan: CataloguePlan) -> Float[Array, "batch items"]:
            model = nnx.merge(graphdef, params)
            encoded = model.encode(prompts.tokens, prompts.encoder_mask())
            return score_items(model, encoded, jnp.asarray(prompts.mask), plan, self._length_penalty)

        def score_some(
            params: Any,
            prompts: Int[Array, "users source"],
            prompt_mask: Bool[Array, "users source"],
            targets: Int[Array, "users*beams target"],
            mask: Bool[Array, "users*beams target"],
        ) -> Float[Array, " users*beams"]:
            model = nnx.merge(graphdef, params)
            # [users, source, ...] -> [users * beams, source, ...]
            encoded, prompt_mask = (
                jnp.repeat(array, len(targets) // len(prompts), axis=0)
                for array in (model.encode(prompts, prompt_mask), prompt_mask)
            )
            hidden = model.decode(shift_right(targets, model.config.decoder_start_token_id), encoded, prompt_mask)
            log_probs = jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32), axis=-1)
            own = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
            return jnp.where(mask, own, 0.0).sum(1) / mask.sum(1) ** self._length_penalty

        self._score_all, self._score_some = jax.jit(score_all), jax.jit(score_some)

    def compare(
        self, batch: HeldOutBatch, items: Int[np.ndarray, "users beams"], scores: Float[np.ndarray, "users beams"]
    ) -> str:
        """Compare what was found for the first users of a batch with the scores of all items, and say how they agree.

        Raises:
            Disagreement: the score of an item that was found is another.
        """
        prompts = PromptBatch(batch.prompt_tokens, batch.prompt_mask, batch.prompt_items, batch.seen)
        some = jax.tree.map(lambda rows: rows[: len(items)], prompts)
        exact = self._score_all(self._params, some, self._plan)
        best, _ = jax.device_get(best_items(exact, some.seen, None, _TOP))
        found = items >= 0
        own = np.take_along_axis(np.asarray(exact), np.where(found, items, 0), axis=1)
        error = float(np.abs(own - scores)[found].max())
        if not error <= self._tolerance:
            raise Disagreement(f"ranking: scores differ from the exhaustive ones by up to {error:.1e}")
        tops = [(row[:_TOP], top[top >= 0]) for row, top in zip(items, best.items, strict=True)]
        share = float(np.mean([np.isin(top, row).mean() for row, top in tops]))
        return (
            f"beam search finds {share:.1%} of the exact top {_TOP} of {len(items)} users, its scores within "
            f"{error:.1e} of the exhaustive ones"
        )

    def compare_peer(self, prompts: Sequence[Sequence[int]], outputs: Mapping[str, np.ndarray]) -> str:
        """Compare the peer's scores with those of its items over the vocabulary, and say how they agree.

        Raises:
            Disagreement: a score is another, or what the peer found is no ranking of items.
        """
        items, scores = outputs["items"], outputs["scores"]
        expected = min(items.shape[1], self._plan.num_items)
        for row in items:
            if len(np.unique(row[row >= 0])) < expected:
                raise Disagreement(f"ranking: the peer found {row.tolist()}, expected {expected} different items")
        found = items >= 0
        # In free places stands any item.
        targets = [self._renderer.target(int(item), 0) for item in np.where(found, items, 0).flat]
        own = self._score_some(
            self._params,
            *pad_rows(prompts, len(prompts), max(map(len, prompts))),
            *pad_rows(targets, len(targets), max(map(len, targets))),
        )
        error = float(np.abs(np.asarray(own).reshape(items.shape) - scores)[found].max())
        if not error <= self._tolerance:
            raise Disagreement(f"ranking: the peer's scores differ from ours over the vocabulary by up to {error:.1e}")
        return (
            f"the peer's {expected} items a user are valid, its scores within {error:.1e} of ours over the vocabulary"
        )


def mean_item_loss(model: Model, renderer: PromptRenderer, targets: Sequence[Target]) -> float:
    """Return the loss of the targets under the softmax of `renderer`: in nats an item, or a token of the vocabulary."""
    numbered = [renderer.numbered_prompt(target.user, target.history, target.template) for target in targets]
    whole = [renderer.target(target.item, target.template) for target in targets]
    prompts = pad_rows([tokens for tokens, _ in numbered], len(targets), max(len(tokens) for tokens, _ in numbered))
    items, _ = pad_rows([items for _, items in numbered], *prompts[0].shape)
    tokens, mask = pad_rows(whole, len(targets), max(map(len, whole)))
    continued = {target.template: _continuations(renderer, target.template) for target in targets}

    @jax.jit
    def log_probs(
        params: Any,
        prompt: Int[Array, "rows source"],
        prompt_mask: Bool[Array, "rows source"],
        items: Int[Array, "rows source"],
        tokens: Int[Array, "rows target"],
    ) -> Float[Array, "rows target vocab"]:
        t5 = nnx.merge(model.graphdef, params)
        # [rows, source] -> [rows, source, source]
        sees = jnp.broadcast_to(prompt_mask[:, None, :], (*prompt.shape, prompt.shape[1]))
        encoded = t5.encode(prompt, causal_mask(sees, items if renderer.is_causal else None))
        hidden = t5.decode(shift_right(tokens, t5.config.decoder_start_token_id), encoded, prompt_mask)
        return jax.nn.log_softmax(t5.logits(hidden).astype(jnp.float32), axis=-1)

    total = 0.0
    for start in range(0, len(targets), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        found = np.asarray(log_probs(model.params, *(array[some] for array in (*prompts, items, tokens))), np.float64)
        for row, target in enumerate(targets[some]):
            allowed = continued[target.template] if renderer.over_catalogue else None
            total -= _log_prob(found[row], whole[start + row], allowed)
    return total / (len(targets) if renderer.over_catalogue else int(mask.sum()))


def _continuations(renderer: PromptRenderer, template: int) -> dict[tuple[int, ...], list[int]]:
    """The tokens that follow each prefix of a target under a template."""
    found: dict[tuple[int, ...], set[int]] = {}
    for item in range(len(renderer.item_ids)):
        target = renderer.target(item, template)
        for length, token in enumerate(target):
            found.setdefault(tuple(target[:length]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


def _log_prob(
    log_probs: Float[np.ndarray, "target vocab"],
    target: Sequence[int],
    continued: dict[tuple[int, ...], list[int]] | None,
) -> float:
    """The log-probability of one target; with `continued`, over what may follow at each of its tokens."""
    total = 0.0
    for place, token in enumerate(target):
        total += float(log_probs[place, token])
        if continued is not None:
            total -= float(np.logaddexp.reduce(log_probs[place, continued[tuple(target[:place])]]))
    return total
