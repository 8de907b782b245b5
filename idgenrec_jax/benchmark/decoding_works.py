"""The decoding works beside ranking: the steps of a constrained search, with its trie, and writing IDs."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from idgenrec_jax.benchmark.peer import write_job
from idgenrec_jax.benchmark.ranking_works import nearest, spread
from idgenrec_jax.benchmark.static_trie import StaticTrie, static_candidates, static_trie
from idgenrec_jax.benchmark.synthetic_ids import synthetic_ids
from idgenrec_jax.benchmark.work import Disagreement, Work
from idgenrec_jax.data.held_out_batches import held_out_batches
from idgenrec_jax.decoding.beam import Candidates, best_candidates
from idgenrec_jax.decoding.top_k import blockwise_top_k
from idgenrec_jax.decoding.trie import Trie, build_trie
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.ids.generation import CandidateDecoder
from idgenrec_jax.ids.rounds import id_generation
from idgenrec_jax.models import operations

UNCONSTRAINED = "unconstrained"
STATIC = "STATIC"
ALL_TEXTS = "writing IDs"
TEXTS_OF_256 = "writing IDs, texts of 256"


def search_steps(experiment: Experiment, *, num_items: int | None, layout: str) -> Work:
    """Return the decoding steps of one batch of users, encoder included, with a trie of `layout` or with none.

    Beside the layouts of `build_trie` there are "unconstrained" and "STATIC".

    `num_items` makes up that many IDs in the shape of the run's; None takes the run's own. Without a trie as many
    candidates are selected from the whole vocabulary. The number of steps is that of the longest ID in every case. The
    softmax is over the vocabulary.
    """
    config, recommender = experiment.config, experiment.recommender
    real = experiment.ids.table.tokens
    ids = real if num_items is None else synthetic_ids(real, num_items)
    name, note = f"step, {len(ids):,} IDs, {layout}", ""
    trie: Trie | StaticTrie | None = None
    if layout == UNCONSTRAINED:
        name = "step, unconstrained"
    else:
        start = time.perf_counter()
        built = build_trie(
            ids,
            vocab_size=recommender.config.vocab_size,
            eos_token_id=recommender.config.eos_token_id,
            layout="csr" if layout == STATIC else layout,
        )
        trie = static_trie(built) if layout == STATIC else built
        note = f"trie built in {time.perf_counter() - start:.2f} s, {trie.nbytes / len(ids):.0f} bytes an item"
    depth = max(len(tokens) for tokens in real) + 1
    renderer = experiment.ids.renderer(max_history=config.data.max_history, evaluation=True)
    batches, _, _ = held_out_batches(
        renderer, "validation", template=0, batch_size=config.evaluation.batch_size, num_buckets=1
    )
    batch = experiment.place_batch(batches.batch(0))

    @jax.jit
    def decode(params: Any, trie: Trie | StaticTrie | None) -> Float[Array, "batch beams"]:
        model = nnx.merge(recommender.graphdef, params)
        encoded = model.encode(batch.prompt_tokens, batch.prompt_mask)
        beams = config.evaluation.num_beams
        shape = (encoded.shape[0], beams)
        cache = model.start_decoding(encoded, batch.prompt_mask, num_beams=beams, max_length=max(1, depth - 1))

        def advance(level: int | Int[Array, ""], carry: tuple, find: Callable[..., Candidates]) -> tuple:
            tokens, states, scores, cache = carry
            hidden, written = model.decode_step(tokens, level, cache)
            found = find(model.logits(hidden), states, scores)
            kept = jax.tree.map(lambda array: array[:, :beams], found)
            return kept.tokens, kept.states, kept.scores, cache.extend(written, level, kept.beams)

        first = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))
        scores = jnp.full(shape, -jnp.inf).at[:, 0].set(0.0)
        carry = (*first, scores, cache)
        if isinstance(trie, StaticTrie):
            # Every level of STATIC has a program of its own.
            for level in range(depth):
                of_level = partial(static_candidates, trie, level=level, num_candidates=2 * beams)
                carry = advance(level, carry, of_level)
            return carry[2]
        find = _any_candidates if trie is None else partial(best_candidates, trie, num_candidates=2 * beams)
        return jax.lax.fori_loop(0, depth, partial(advance, find=find), carry)[2]

    return Work(name, "step", depth, lambda: decode(recommender.params, trie), note=note)


def _any_candidates(
    logits: Float[Array, "batch beams vocab"], states: Int[Array, "batch beams"], scores: Float[Array, "batch beams"]
) -> Candidates:
    """The candidates that an unconstrained search selects; states are carried along unchanged."""
    totals = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True) + scores[..., None]
    best, indices = blockwise_top_k(totals.reshape(len(totals), -1), 2 * scores.shape[1])
    beams = indices // logits.shape[-1]
    return Candidates(best, beams, indices % logits.shape[-1], jnp.take_along_axis(states, beams, axis=1))


def id_writing(
    experiment: Experiment,
    settings: dict[str, Any],
    *,
    num_items: int,
    num_peer_items: int,
    peer_batch_size: int,
    name: str,
) -> Work | None:
    """Return the first stage of Algorithm 1 for `num_items` items, or None where no text has 256 tokens.

    By the `name` of the work they are spread over the catalogue, or over those of its items whose texts are nearest to
    256 tokens. The peer writes `num_peer_items` of them, spread in the same way, sorted by length. `settings` go into
    its job as they are (threads, device, dtype).
    """
    config, id_generator = experiment.config, experiment.id_generator
    generation = id_generation(config, id_generator.graphdef, experiment.inputs.tokenizer, experiment.mesh)
    lengths = np.asarray([len(text) for text in experiment.inputs.text_tokens])
    if name == TEXTS_OF_256:
        if lengths.max() < 256:
            return None
        chosen = nearest(lengths, 256, num_items)
    else:
        chosen = spread(len(lengths), num_items)
    texts = sorted((experiment.inputs.text_tokens[item] for item in chosen), key=len)
    compared = spread(len(texts), num_peer_items)
    min_length, max_length = 1, 11
    groups, steps = config.ids.num_groups, max_length - 1
    total = float(sum(len(text) for text in texts))
    written = len(texts) * groups * steps
    model = id_generator.config
    total_operations = (
        operations.encoder_operations(model, total, total / len(texts))
        + operations.cross_operations(model, total)
        + operations.decoder_operations(model, written, steps / 2, total / len(texts))
        + operations.output_operations(model, written)
    )

    def run() -> list[list[str]]:
        decoder = CandidateDecoder(generation, id_generator.params, texts)
        count = len(texts)
        return decoder.candidates(np.arange(count), np.full(count, min_length), np.ones(count))

    def job(folder: Path) -> None:
        fields = {
            "kind": "diverse_beam",
            "num_groups": groups,
            "batch_size": peer_batch_size,
            "diversity_penalty": 1.0,
            "no_repeat_ngram_size": config.ids.no_repeat_ngram_size,
            "min_length": min_length,
            "max_length": max_length,
        }
        write_job(
            folder,
            {**settings, **fields},
            models={"id_generator": (id_generator.graphdef, id_generator.params)},
            ragged={"texts": [texts[item] for item in compared]},
        )

    def compare(outputs: Mapping[str, np.ndarray]) -> str:
        theirs = [experiment.inputs.tokenizer.decode_batch(rows.tolist()) for rows in outputs["tokens"]]
        candidates = run()
        rows = zip([candidates[item] for item in compared], theirs, strict=True)
        pairs = [mine == other for ours, row in rows for mine, other in zip(ours, row, strict=True)]
        if np.mean(pairs) < 0.99:
            raise Disagreement(f"writing IDs: only {np.mean(pairs):.2%} of the peer's candidates are ours")
        return f"{np.mean(pairs):.2%} of {len(pairs)} candidates are the peer's"

    return Work(
        f"{name}, peer batch {peer_batch_size}",
        "item",
        len(texts),
        run,
        total_operations,
        operations.decoding_bytes(
            model,
            steps=steps * -(-len(texts) // generation.batch_size),
            users=generation.batch_size,
            source=total / len(texts),
        ),
        job=job,
        compare=compare,
        note=f"{groups} groups, texts of {total / len(texts):.0f} tokens on average, batch {generation.batch_size}",
    )
