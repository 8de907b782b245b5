"""The metrics by their definitions, one user at a time."""

import numpy as np


def plain_metrics(items, targets, cutoffs, gain_cutoffs, num_results):
    """Metrics of rows of `num_results` items, by their names."""
    result = {}
    for k in cutoffs:
        result[f"hr@{k}"] = sum(target in row[:k] for row, target in zip(items, targets, strict=True)) / len(items)
    for k in gain_cutoffs:
        gains = [
            1 / np.log2(row[:k].index(target) + 2) if target in row[:k] else 0.0
            for row, target in zip(items, targets, strict=True)
        ]
        result[f"ndcg@{k}"] = sum(gains) / len(items)
    reciprocal = [
        1 / (row.index(target) + 1) if target in row else 0.0 for row, target in zip(items, targets, strict=True)
    ]
    result[f"mrr@{num_results}"] = sum(reciprocal) / len(items)
    return result
