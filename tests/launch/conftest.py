"""Fixtures that all tests of the programs share; one undisturbed run serves as many of them as possible."""

import json
import shutil

import pytest
from program_runs import FinishedRun, Programs, made_once, write_data

from idgenrec_jax.data.sample import sample_tokenizer


@pytest.fixture(scope="session")
def programs(tmp_path_factory, shared_folder):
    """The programs, with a folder of this worker, and data, a tokenizer and compiled programs of all workers."""

    def make(folder):
        sample_tokenizer().save(folder / "tokenizer")
        write_data(folder / "data" / "shop")

    inputs = made_once(shared_folder / "inputs", make)
    return Programs(
        tmp_path_factory.mktemp("launch"), inputs / "data" / "shop", inputs / "tokenizer", shared_folder / "compiled"
    )


@pytest.fixture(scope="session")
def finished(programs, shared_folder):
    """One run trained to the end without a disturbance: ID phases first, two rounds.

    One worker trains it; each has a copy of its own, which tests may add files to.
    """

    def make(folder):
        result = programs.train(folder / "run")
        (folder / "printed.json").write_text(json.dumps([result.stdout, result.stderr]))

    trained = made_once(shared_folder / "finished", make)
    workdir = programs.folder / "finished"
    shutil.copytree(trained / "run", workdir)
    printed = json.loads((trained / "printed.json").read_text())
    return FinishedRun(workdir, *(text.replace(str(trained / "run"), str(workdir)) for text in printed))
