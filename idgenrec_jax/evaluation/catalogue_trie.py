"""What the recommender may write, from the IDs and the evaluation template, in the form that a search needs."""

from typing import Any

from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.decoding.catalogue_plan import CataloguePlan, catalogue_plan
from idgenrec_jax.decoding.trie import Trie, build_trie


def catalogue_trie(
    renderer: PromptRenderer, *, vocab_size: int, pad_token_id: int, layout: str, over_catalogue: bool
) -> Trie:
    """Return the trie of every item's target under the first template of `renderer`, which ends with EOS.

    `vocab_size` counts the rows of the recommender's table; `layout` is one of `decoding.trie.LAYOUTS`;
    `over_catalogue` says whether the recommender's softmax is over the catalogue.

    Raises:
        InputError: two items have the same target, or a target holds padding or EOS before its end.
    """
    return build_trie(
        _targets(renderer),
        vocab_size=vocab_size,
        eos_token_id=renderer.eos_id,
        pad_token_id=pad_token_id,
        layout=layout,
        over_catalogue=over_catalogue,
    )


def exact_catalogue(
    renderer: PromptRenderer, *, vocab_size: int, pad_token_id: int, over_catalogue: bool
) -> CataloguePlan:
    """Return the plan by which every item's target under the first template of `renderer` is scored.

    Arguments and errors are those of `catalogue_trie`.
    """
    return catalogue_plan(
        _targets(renderer),
        vocab_size=vocab_size,
        eos_token_id=renderer.eos_id,
        pad_token_id=pad_token_id,
        over_catalogue=over_catalogue,
    )


def searched_catalogue(
    search: str, renderer: PromptRenderer, *, vocab_size: int, pad_token_id: int, layout: str, over_catalogue: bool
) -> Trie | CataloguePlan:
    """Return what the ranker needs for a search, one of `config.SEARCHES`: the trie, or the plan to score every item.

    The other arguments and the errors are those of `catalogue_trie`.
    """
    fields: dict[str, Any] = {
        "vocab_size": vocab_size, "pad_token_id": pad_token_id, "over_catalogue": over_catalogue
    }  # fmt: skip
    if search == "beam":
        return catalogue_trie(renderer, layout=layout, **fields)
    return exact_catalogue(renderer, **fields)


def _targets(renderer: PromptRenderer) -> list[list[int]]:
    """The target of every item under the first template, without EOS."""
    return [renderer.target(item, 0)[:-1] for item in range(len(renderer.item_ids))]
