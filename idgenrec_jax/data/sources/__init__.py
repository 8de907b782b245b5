"""One converter per raw format, each to the data folder that `dataset.py` reads."""
