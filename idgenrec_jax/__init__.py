"""IDGenRec in JAX: generative recommendation with textual IDs."""

__version__ = "0.2.0"
