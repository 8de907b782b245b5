"""Shape checks for every test: all jaxtyping annotations of the package are verified at run time."""

from jaxtyping import install_import_hook

install_import_hook("idgenrec_jax", "beartype.beartype")

SLOWEST_FILES = (
    "test_readme.py",
    "test_benchmark.py",
    "test_bad_input.py",
    "test_train.py",
    "test_resume.py",
    "test_losses.py",
    "test_peer_worker.py",
    "test_sharding.py",
    "test_export.py",
    "test_sweep.py",
)


def pytest_collection_modifyitems(items):
    """The slowest files first: of two workers, neither is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in SLOWEST_FILES)
