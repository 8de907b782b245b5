"""Fixtures of the tests that run trials."""

import pytest
from stand_in_training import STAND_IN

from idgenrec_jax.sweeps import local, trials


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A driver's working directory, in which launch.train is the stand-in."""
    folder = tmp_path / "launch"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "TRAIN_PROGRAM", "launch.train")
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.02)
    return tmp_path
