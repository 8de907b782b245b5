"""Compiled programs are kept, in the place that the user or the package names."""

import pwd

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from idgenrec_jax.compilation_cache import use_compilation_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """JAX without a cache, as in a process of a user's own, and a home for one; all is as it was afterwards."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_also_where_something_was_compiled_before(no_cache):
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
    use_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.jit(lambda x: x * 5 + 1)(jnp.ones(7)).block_until_ready()
    assert list((no_cache / "idgenrec_jax" / "compiled").iterdir())


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (0.0, 0.0), (2.0, 2.0)])
def test_a_time_that_the_user_sets_stays(no_cache, before, after):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    use_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == after


def test_a_place_that_the_user_names_stays(no_cache):
    jax.config.update("jax_compilation_cache_dir", str(no_cache / "own"))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(no_cache / "own")


def test_a_user_without_a_home_keeps_nothing_and_is_told(no_cache, monkeypatch, caplog):
    """As in a container that runs under a number of no name."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with caplog.at_level("WARNING", logger="absl"):
        use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None and "set XDG_CACHE_HOME" in caplog.text
