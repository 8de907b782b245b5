"""Compiled programs are kept on disk, so that a second process starts without compiling."""

import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Keep compiled programs between processes, in $XDG_CACHE_HOME/idgenrec_jax unless JAX is told another place.

    What took less than half a second to compile is not kept.
    """
    import jax

    # JAX makes the attributes of its options at run time, where mypy does not see them.
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if told or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idgenrec_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
