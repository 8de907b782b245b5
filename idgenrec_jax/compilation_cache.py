"""Compiled programs are kept on disk, so that a second process starts without compiling."""

import os

from absl import logging

_DEFAULT_SECONDS = 1.0
"""JAX's own, from which it is seen that nobody has set another."""


def use_compilation_cache() -> None:
    """Keep compiled programs between processes, in $XDG_CACHE_HOME/idgenrec_jax unless JAX is told another place.

    What took less than half a second to compile is not kept, unless JAX is told another time. For a user without a home
    nothing is; a warning says so.
    """
    import jax

    # By name: a type checker does not see these settings.
    names = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
    is_set, is_on = (getattr(jax.config, name) for name in names)
    if is_set or not is_on:
        return
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        logging.warning("no home folder is known: compiled programs are not kept; set XDG_CACHE_HOME to a folder")
        return
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "idgenrec_jax", "compiled"))
    seconds = "jax_persistent_cache_min_compile_time_secs"
    if getattr(jax.config, seconds) == _DEFAULT_SECONDS:
        jax.config.update(seconds, 0.5)
