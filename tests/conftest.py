"""Shape checks for every test: all jaxtyping annotations of the package are verified at run time."""

from jaxtyping import install_import_hook

install_import_hook("idgenrec_jax", "beartype.beartype")
