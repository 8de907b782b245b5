"""The recommender's loss computed target by target, each with its own prompt, from the logits of the whole vocabulary.

What follows a prefix is looked up in plain dictionaries. Nothing of the training's loss is used here, which is compared
with it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.batches import PromptRenderer, pad_rows
from idgenrec_jax.data.recommender_batches import Target
from idgenrec_jax.models.create import Model
from idgenrec_jax.models.t5 import shift_right
from idgenrec_jax.training.segments import causal_mask

_TOGETHER = 8


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
