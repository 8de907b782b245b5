"""The IDs of a run, round by round: made by the generator or given in a file, and kept under `ids/`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool

from idgenrec_jax.config import Config
from idgenrec_jax.data.batches import PromptSource
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.ids.generation import IdGeneration, item_prompts
from idgenrec_jax.ids.table import IdTable, load_table, save_table
from idgenrec_jax.processes import from_main
from idgenrec_jax.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The templates of a run: those that training draws from, and the one that validation and test use."""

    training: tuple[PromptTokens, ...]
    evaluation: PromptTokens


def id_generation(
    config: Config, graphdef: nnx.GraphDef, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> IdGeneration:
    """Return ID generation by the T5 of `graphdef`, as the configuration wants it, split over a mesh where given."""
    return IdGeneration(
        graphdef,
        tokenizer,
        num_groups=config.ids.num_groups,
        penalties=tuple(float(penalty) for penalty in range(1, config.ids.max_penalty + 1)),
        min_lengths=tuple(1 + 10 * index for index in range(config.ids.num_lengths)),
        max_text_length=config.data.max_text_length,
        batch_size=config.ids.batch_size,
        fallback=config.ids.fallback,
        batch_sharding=None if mesh is None else batch_sharding(mesh),
    )


class RoundIds:
    """The current ID of every item, and of every user where prompts name users."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        graphdef: nnx.GraphDef,
        folder: str | Path,
        given: IdTable | None = None,
        mesh: Mesh | None = None,
    ):
        """Prepare ID generation by the T5 of `graphdef`, whose parameters lie on `mesh` where there is one.

        Tables are saved in `folder`, `given` are the user's IDs.
        """
        self.dataset, self.tokenizer, self.prompts, self.given = dataset, tokenizer, prompts, given
        self.text_tokens = item_prompts(
            dataset.item_texts, dataset.items, tokenizer, max_length=config.data.max_text_length
        )
        self.table: IdTable | None = None
        self.user_table: IdTable | None = None
        self._config, self._folder = config, Path(folder)
        self._generation = id_generation(config, graphdef, tokenizer, mesh)

    def source(self, *, max_history: int, evaluation: bool = False) -> PromptSource:
        """Return what prompts are written from now, with the training templates or the one of evaluation."""
        return PromptSource(
            dataset=self.dataset,
            templates=(self.prompts.evaluation,) if evaluation else self.prompts.training,
            item_ids=self.table.tokens,
            user_ids=None if self.user_table is None else self.user_table.tokens,
            eos_id=self.tokenizer.eos_id,
            max_history=max_history,
            max_prompt_length=self._config.data.max_prompt_length,
        )

    def no_embedding(self, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
        """Return which rows of the vocabulary leave no trace in a soft ID: pure punctuation."""
        marks = np.zeros(vocab_size, bool)
        marks[sorted(self.tokenizer.punctuation_ids)] = True
        return marks

    def load(self, round: int) -> None:
        """Make the saved IDs of a round the current ones."""
        self.table = load_table(self.path(round), self.dataset.items, self.tokenizer)
        if self._config.data.user_ids != "none":
            self.user_table = load_table(self.user_path(round), self.dataset.users, self.tokenizer)

    def regenerate(
        self, params: Any, round: int, *, on_progress: Callable[[int, int], None], given: IdTable | None = None
    ) -> None:
        """Make new IDs with the generator's `params` (items keep those of `given`, if any), and save them."""
        before = self.table
        self.table = given or self._generation.generate(
            params, self.dataset.items, self.dataset.item_texts, on_progress=on_progress
        )
        from_main(lambda: save_table(self.table, self.path(round)))
        if self._config.data.user_ids != "none":
            self.user_table = self._generation.generate(
                params, self.dataset.users, self._user_texts(), on_progress=on_progress
            )
            from_main(lambda: save_table(self.user_table, self.user_path(round)))
        if before is not None:
            changed = sum(old != new for old, new in zip(before.tokens, self.table.tokens, strict=True))
            logging.info("round %d: %d of %d item IDs changed", round, changed, len(self.table))

    def path(self, round: int) -> Path:
        """Return the file of a round's item IDs."""
        return self._folder / f"round_{round}.jsonl"

    def user_path(self, round: int) -> Path:
        """Return the file of a round's user IDs."""
        return self._folder / f"users_round_{round}.jsonl"

    def _user_texts(self) -> list[str]:
        """The IDs of each user's items: the training items, or the whole sequence for the published, leaking way."""
        whole = self._config.data.user_ids == "published"
        texts = []
        for user, sequence in enumerate(self.dataset.sequences):
            items = sequence if whole else self.dataset.training_sequence(user)
            texts.append(" ".join(self.table.texts[item] for item in items))
        return texts
