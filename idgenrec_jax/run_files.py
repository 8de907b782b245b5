"""Every file name of a run's folder, and the metric that selects its best state."""

from pathlib import Path

CONFIG = "config.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB = "wandb.json"
"""The run in Weights & Biases, and how many of the records it has."""
RESULTS = "results.json"
RANKS = "target_ranks.json"
"""The place of each user's target in the validation and the test ranking, from 0; -1 where it was not recommended."""
PROMPTS = "prompts.txt"
TOKENIZER = "tokenizer"
IDS = "ids"
LOCK = "lock"
"""Held (flock) by the process that trains; its text says which one."""
LATEST_CHECKPOINTS = Path("checkpoints") / "latest"
BEST_CHECKPOINTS = Path("checkpoints") / "best"
LEASH_CHECKPOINTS = Path("checkpoints") / "leash"
"""The ID generator before the ID phase that a leash holds it to."""
CHECKPOINT_NAMES = {"id_generator": "generator", "recommender": "recommender"}
"""What a checkpoint calls the arrays of either model; runs of the first versions are read by it, too."""

SELECTION_METRIC = "ndcg@10"
SELECTION_CUTOFF = 10


def item_ids(round: int) -> Path:
    """Return the file of a round's item IDs."""
    return Path(IDS) / f"round_{round}.jsonl"


def user_ids(round: int) -> Path:
    """Return the file of a round's user IDs."""
    return Path(IDS) / f"users_round_{round}.jsonl"


def evaluation(split: str) -> str:
    """Return the file of what `launch.evaluate` found on a split."""
    return f"evaluation_{split}.json"
