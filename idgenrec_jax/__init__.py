"""IDGenRec in JAX: generative recommendation with textual IDs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idgenrec_jax.recommender import Recommender as Recommender

__version__ = "0.2.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public API when it is first used: it brings JAX with it, which takes seconds."""
    if name == "Recommender":
        from idgenrec_jax.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
