"""The metrics that these tests know by their definitions; others that the table has are tested beside their files."""

import pytest

from idgenrec_jax.evaluation.metrics import METRICS

DEFINED_HERE = {"hr", "ndcg", "mrr"}


@pytest.fixture(autouse=True)
def only_metrics_defined_here(monkeypatch):
    """Leave no other metric in the table, so that whole dictionaries of metrics can be compared."""
    for name in METRICS.keys() - DEFINED_HERE:
        monkeypatch.delitem(METRICS, name)
