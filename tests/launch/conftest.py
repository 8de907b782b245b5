"""Fixtures that all tests of the programs share; one undisturbed run serves as many of them as possible."""

import pytest
from program_runs import FinishedRun, Programs, write_data

from idgenrec_jax.data.sample import sample_tokenizer


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The programs, with a data folder and a tokenizer to run them on."""
    folder = tmp_path_factory.mktemp("launch")
    sample_tokenizer().save(folder / "tokenizer")
    return Programs(folder, write_data(folder / "data" / "shop"), folder / "tokenizer", folder / "compiled")


@pytest.fixture(scope="session")
def finished(programs):
    """One run trained to the end without a disturbance: ID phases first, two rounds."""
    workdir = programs.folder / "finished"
    result = programs.train(workdir)
    return FinishedRun(workdir, result.stdout, result.stderr)
