"""The ranking works: users ranked by constrained beam search, and by the exact score of every item."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from idgenrec_jax.benchmark.exhaustive import SCORE_TOLERANCE, Exhaustive, exact_plan
from idgenrec_jax.benchmark.peer import differences, write_job
from idgenrec_jax.benchmark.work import Disagreement, Work
from idgenrec_jax.data.held_out_batches import HeldOutBatch, held_out_batches
from idgenrec_jax.data.prefix_tree import prefix_tree
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.experiment import Experiment
from idgenrec_jax.models import operations

ALL_PROMPTS = "constrained ranking"
PROMPTS_OF_128 = "constrained ranking, prompts of 128"
LONGEST_PROMPTS = "constrained ranking, longest prompts"
RANKINGS = (ALL_PROMPTS, PROMPTS_OF_128, LONGEST_PROMPTS)
COMPARED = 4
"""Users whose rankings are compared with exhaustive scores, where the peer's search is another."""
PEER_BATCH_SIZES = {"cpu": (4, 8, 16), "cuda": (16, 64, 256)}
"""Users in a batch that the peer tries, by its device."""


class _Users(NamedTuple):
    """Users in whole batches, as (batch, how many of its rows are users), and their prompts one after the other."""

    renderer: PromptRenderer
    ready: list[tuple[HeldOutBatch, int]]
    prompts: list[list[int]]

    @property
    def mean_length(self) -> float:
        """Tokens of a prompt on average."""
        return float(np.mean([len(prompt) for prompt in self.prompts]))


def ranking(experiment: Experiment, settings: dict[str, Any], *, users: int, name: str) -> Work | None:
    """Return the ranking of about `users` validation users in whole batches, or None where no prompt has 128 tokens.

    By the `name` of the work they are spread over all lengths of prompts or over the longest tenth, or are those whose
    prompts are nearest to 128 tokens. `settings` go into the peer's job as they are (threads, device, dtype).

    The peer's search is that of a softmax over the vocabulary, which reads whole histories and keeps items that were
    seen. Where ours is the same, items and scores are compared. Elsewhere a few users are: our items and scores with
    exhaustive scores, the peer's scores with those that its items have for us in its search.
    """
    chosen = _choose_users(experiment, users, name)
    if chosen is None:
        return None
    renderer, ready, prompts = chosen
    config, params, model = experiment.config, experiment.recommender.params, experiment.recommender.config
    trie = experiment.trie(renderer)
    beams, length = config.evaluation.num_beams, chosen.mean_length
    is_peers = not (config.over_catalogue or config.is_causal or config.evaluation.seen_items == "remove")
    steps = float(np.mean(renderer.way_lengths[: trie.num_items]))
    read = len(prompts) * length
    # All beams are one at the first token.
    written = len(prompts) * (1 + beams * (steps - 1))
    logits, columns = written, None
    if config.over_catalogue:
        choices = max(1.0, float(np.mean(np.diff(renderer.choices.starts)[: trie.num_items])))
        logits, columns = len(prompts) * (1 + beams * (choices - 1)), len(renderer.choices.tokens)
    total_operations = (
        operations.encoder_operations(model, read, length)
        + operations.cross_operations(model, read)
        + operations.decoder_operations(model, written, steps / 2, length)
        + operations.output_operations(model, logits, columns)
    )
    items = [renderer.target(item, 0)[:-1] for item in range(trie.num_items)]

    def run() -> tuple[np.ndarray, np.ndarray]:
        return _search(experiment, ready, trie)

    def job(folder: Path) -> None:
        fields = {
            "kind": "constrained_beam",
            "num_beams": beams,
            "num_compared": len(prompts) if is_peers else min(COMPARED, len(prompts)),
            "batch_size": PEER_BATCH_SIZES[settings["device"]][0],
            "length_penalty": config.evaluation.length_penalty,
            # With the start token and EOS.
            "max_length": max(map(len, items)) + 2,
        }
        write_job(
            folder,
            {**settings, **fields},
            models={"recommender": (experiment.recommender.graphdef, params)},
            ragged={"prompts": prompts, "items": items},
        )

    def compare(outputs: Mapping[str, np.ndarray]) -> str:
        if is_peers:
            return _compare_searches(*run(), outputs, SCORE_TOLERANCE[config.recommender.compute_dtype])
        exhaustive = Exhaustive(experiment, renderer)
        (batch, count), compared = ready[0], len(outputs["items"])
        found = _search(experiment, [(batch, count)], trie)
        ours = exhaustive.compare(batch, *(array[:compared] for array in found))
        return f"{ours}; {exhaustive.compare_peer(prompts[:compared], outputs)}"

    differs = differences(renderer)
    if config.evaluation.seen_items == "remove":
        differs += ("seen items are left out of our rankings, not of the peer's",)
    return Work(
        name,
        "user",
        len(prompts),
        run,
        total_operations,
        operations.decoding_bytes(
            model,
            steps=len(ready) * steps,
            users=config.evaluation.batch_size,
            source=length,
            columns=columns,
        ),
        job=job,
        compare=compare,
        note=(
            f"{beams} beams, prompts of {length:.0f} tokens on average, {trie.num_items} items, batch "
            f"{config.evaluation.batch_size}; the floor counts {written / len(prompts):.1f} decoder positions a user, "
            f"and at {logits / len(prompts):.1f} of them {columns or model.vocab_size} logits"
        ),
        differences=differs,
        peer_batch_sizes=PEER_BATCH_SIZES[settings["device"]],
    )


def exact_ranking(experiment: Experiment, *, users: int) -> Work:
    """Return the ranking of about `users` validation users by the exact scores of all items, in whole batches.

    The floor counts every prefix that has a choice at it or below it once for each user, with one logit for each of a
    choice's continuations; over the vocabulary it counts all prefixes, with all logits.
    """
    chosen = _choose_users(experiment, users, ALL_PROMPTS)
    assert chosen is not None
    renderer, ready, prompts = chosen
    config, model = experiment.config, experiment.recommender.config
    plan = exact_plan(experiment, renderer)
    tree = prefix_tree(
        [renderer.target(item, 0)[:-1] for item in range(plan.num_items)],
        vocab_size=model.vocab_size,
        eos_token_id=renderer.eos_id,
        prune=config.over_catalogue,
    )
    count, length, children = len(prompts), chosen.mean_length, tree.num_children
    with_edges = children[children > 1] if config.over_catalogue else children
    logits = int(with_edges.sum()) if config.over_catalogue else tree.num_nodes * model.vocab_size
    total_operations = (
        operations.encoder_operations(model, count * length, length)
        + operations.cross_operations(model, count * length)
        + count
        * operations.tree_operations(
            model,
            positions=tree.num_nodes,
            outputs=len(with_edges),
            edges=logits,
            length=float(tree.depths().mean()) + 1.0,
            source=length,
        )
    )
    return Work(
        "exact ranking",
        "user",
        count,
        lambda: _search(experiment, ready, plan),
        total_operations,
        note=(
            f"prompts of {length:.0f} tokens on average, {plan.num_items} items, batch {config.evaluation.batch_size}; "
            f"the floor counts {tree.num_nodes} decoder positions and {logits} logits a user; {plan.num_positions} "
            "positions are computed"
        ),
    )


def _choose_users(experiment: Experiment, users: int, name: str) -> _Users | None:
    config = experiment.config
    renderer = experiment.ids.renderer(max_history=config.data.max_history, evaluation=True)
    batches, _, _ = held_out_batches(
        renderer,
        "validation",
        template=0,
        batch_size=config.evaluation.batch_size,
        with_seen=config.evaluation.seen_items == "remove",
    )
    count = max(1, users // config.evaluation.batch_size)
    if name == PROMPTS_OF_128:
        lengths: Int[np.ndarray, " batches"] = np.asarray(
            [batches.batch(step).prompt_mask.sum(1).max() for step in range(len(batches))]
        )
        if lengths.max() < 128:
            return None
        chosen = nearest(lengths, 128, count)
    else:
        first = len(batches) - -(-len(batches) // 10) if name == LONGEST_PROMPTS else 0
        chosen = [first + step for step in spread(len(batches) - first, count)]
    ready = [(batches.batch(step), len(batches.rows(step))) for step in chosen]
    prompts = [
        batch.prompt_tokens[row][batch.prompt_mask[row]].tolist() for batch, rows in ready for row in range(rows)
    ]
    return _Users(renderer, ready, prompts)


def _search(
    experiment: Experiment, ready: list[tuple[HeldOutBatch, int]], catalogue: Trie | CataloguePlan
) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores of all users, best first."""
    found = []
    for batch, count in ready:
        arrays = experiment.ranker.search(
            experiment.recommender.params,
            batch.prompt_tokens,
            batch.prompt_mask,
            catalogue,
            prompt_items=batch.prompt_items,
            seen=batch.seen,
        )
        found.append(tuple(array[:count] for array in arrays))
    items, scores = zip(*found, strict=True)
    return np.concatenate(items), np.concatenate(scores)


def _compare_searches(
    items: np.ndarray, scores: np.ndarray, outputs: Mapping[str, np.ndarray], tolerance: float
) -> str:
    """Compare two results of the same search."""
    same = float((items == outputs["items"]).mean())
    real = (items >= 0) & (outputs["items"] >= 0)
    error = float(np.abs(scores - outputs["scores"])[real].max())
    if not (same >= 0.99 and error <= tolerance):
        raise Disagreement(
            f"ranking: {same:.2%} of the peer's items are ours at the same rank, scores differ by up to {error:.1e}"
        )
    return f"{same:.2%} of {items.size} ranks hold the peer's item, scores within {error:.1e}"


def spread(available: int, count: int) -> list[int]:
    """Return the middles of `count` equal parts of 0 .. available - 1; all of it where there are no more."""
    count = min(count, available)
    return [(2 * index + 1) * available // (2 * count) for index in range(count)]


def nearest(lengths: Int[np.ndarray, " available"], length: int, count: int) -> list[int]:
    """Return the places of the `count` lengths nearest to `length`, nearest first."""
    return np.argsort(np.abs(lengths - length), kind="stable")[:count].tolist()
