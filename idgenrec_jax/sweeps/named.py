"""The paper's ablations as sweeps, by name, each with three seeds."""

from collections.abc import Callable

from idgenrec_jax.sweeps.definition import Sweep, grid, together, with_seeds

SEEDS = (0, 1, 2)

# The presets `sample` and `tiny` have no ID phases.
_LEARNED = {"training.id_epochs": 1}
# An ID phase early, then most of the recommender epochs on its IDs.
_EARLY = _LEARNED | {
    "training.rounds": 1, "training.recommender_epochs": 6, "training.final_recommender_epochs": 30,
}  # fmt: skip
_FROZEN = {"training.rounds": 1, "training.recommender_epochs": 36, "training.id_epochs": 0}


def alternation() -> Sweep:
    """Frozen IDs, and what may be done for IDs to learn; all with 36 recommender epochs."""
    acceptance, neighbours = {"ids.acceptance_examples": 16}, {"training.id_neighbour_weight": 1.0}
    words = {"data.neighbour_items": 3}
    # An ID generator that knows its IDs by heart changes few of them at the presets' rates.
    strong = _EARLY | {"training.id_epochs": 4, "training.id_learning_rate": 1e-3}
    rows: Sweep = [
        _FROZEN,
        _FROZEN | _LEARNED,
        _EARLY,
        strong,
        strong | {"training.id_temperature": 0.1},
        strong | {"training.id_straight_through": True},
        strong | {"training.id_leash": 1.0},
        strong | acceptance,
        strong | neighbours,
        strong | neighbours | acceptance,
        _FROZEN | words,
        strong | words,
    ]
    return with_seeds(rows, SEEDS)


def cluster_words() -> Sweep:
    """IDs that begin with an item's own words, and with those of its cluster."""
    return with_seeds(grid({"training.warm_start_cluster_words": [0, 1, 2]}), SEEDS)


def order() -> Sweep:
    """Which of both models a round trains first."""
    orders = {"training.order": ["id_first", "recommender_first"]}
    return with_seeds([row | _LEARNED for row in grid(orders)], SEEDS)


def user_ids() -> Sweep:
    """Prompts without user IDs, with those of the training history, and with those of what was before each target."""
    return with_seeds(grid({"data.user_ids": ["none", "train_history", "prefix"]}), SEEDS)


def history() -> Sweep:
    """How many items of a history the recommender reads; the ID phase reads half as many."""
    lengths = {"data.max_history": [5, 10, 20], "data.id_max_history": [3, 5, 10]}
    return with_seeds([row | _LEARNED for row in together(lengths)], SEEDS)


def learning_rates() -> Sweep:
    """The learning rates of both models, the published one of the ID generator among them."""
    rates = {"training.recommender_learning_rate": [5e-4, 1e-3, 2e-3], "training.id_learning_rate": [1e-8, 1e-5, 1e-4]}
    return with_seeds([row | _LEARNED for row in grid(rates)], SEEDS)


def rounds() -> Sweep:
    """The same number of recommender epochs in one, two and four rounds."""
    epochs = {"training.rounds": [1, 2, 4], "training.recommender_epochs": [20, 10, 5]}
    return with_seeds([row | _LEARNED for row in together(epochs)], SEEDS)


NAMED: dict[str, Callable[[], Sweep]] = {
    made.__name__: made for made in (alternation, cluster_words, order, user_ids, history, learning_rates, rounds)
}
