"""How well a ranking is: metrics, the ranker that makes it, and whether two of them differ."""
