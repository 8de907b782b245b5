"""Shape checks for every test, in which all jaxtyping annotations are verified at run time, and a Slurm cluster."""

import os

import pytest
from jaxtyping import install_import_hook
from quick_compilation import compile_quickly
from slurm_cluster import slurm_cluster, why_not

compile_quickly()
install_import_hook("idgenrec_jax", "beartype.beartype")

SLOWEST_FILES = (
    "test_readme.py",
    "test_resume.py",
    "test_train_processes.py",
    "test_peer_worker.py",
    "test_benchmark.py",
    "test_train.py",
    "test_export.py",
    "test_sharding.py",
    "test_bad_input.py",
    "test_sweep.py",
    "test_sweep_slurm.py",
    "test_id_loss.py",
    "test_losses.py",
    "test_t5.py",
    "test_beam_parity.py",
    "test_diverse.py",
    "test_steps.py",
    "test_beam.py",
)
_ORDER = {name: place for place, name in enumerate(SLOWEST_FILES)}


def pytest_collection_modifyitems(items):
    """The slowest files first: of two workers, neither is left alone with one of them at the end."""
    items.sort(key=lambda item: _ORDER.get(item.path.name, len(_ORDER)))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder, empty when the session starts, that all its workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def slurm():
    """A Slurm cluster of one host, empty at first, that SLURM_CONF names to Slurm's commands."""
    if reason := why_not():
        pytest.skip(reason)
    with slurm_cluster() as configuration, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        yield
