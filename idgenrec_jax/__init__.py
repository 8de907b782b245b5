"""IDGenRec in JAX: generative recommendation with textual IDs."""
