"""The IDs of a run, round by round: made by the ID generator or given in a file, and kept under `ids/`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from idgenrec_jax import run_files
from idgenrec_jax.config import Config
from idgenrec_jax.data.choices import Choices
from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.renderer import PromptRenderer, TargetTexts
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.ids.candidates import Candidate, with_old_ids
from idgenrec_jax.ids.generation import IdGeneration
from idgenrec_jax.ids.neighbours import generator_texts
from idgenrec_jax.ids.prefix_ids import PrefixIds, load_prefix_ids, prefix_texts, save_prefix_ids
from idgenrec_jax.ids.table import MAX_ID_TOKENS, IdTable, load_table, save_table
from idgenrec_jax.processes import from_main
from idgenrec_jax.progress import progress_of_unknown
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
        no_repeat_ngram_size=config.ids.no_repeat_ngram_size,
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
        mesh: Mesh | None = None,
    ):
        """Prepare ID generation by the T5 of `graphdef`, whose parameters lie on `mesh` where there is one.

        Tables are saved in `folder`, the run's.
        """
        self._dataset, self._tokenizer, self._prompts = dataset, tokenizer, prompts
        self._table: IdTable | None = None
        self._found_choices: dict[TargetTexts, Choices] = {}
        self.user_table: IdTable | None = None
        self.prefix_ids: PrefixIds | None = None
        self._config, self._folder = config, Path(folder)
        self._texts = generator_texts(dataset, tokenizer, config)
        self._generation = id_generation(config, graphdef, tokenizer, mesh)

    @property
    def table(self) -> IdTable:
        """The items' IDs; RuntimeError before there are any."""
        if self._table is None:
            raise RuntimeError("no IDs yet: load a round, or regenerate them")
        return self._table

    @table.setter
    def table(self, table: IdTable) -> None:
        self._table, self._found_choices = table, {}

    def renderer(
        self, *, max_history: int, evaluation: bool = False, is_causal: bool | None = None
    ) -> PromptRenderer:
        """Return what prompts are written from now, with the training templates or the one of evaluation.

        `is_causal` is whether histories are; None: as those of the trained recommender are.
        """
        return PromptRenderer(
            dataset=self._dataset,
            templates=(self._prompts.evaluation,) if evaluation else self._prompts.training,
            item_ids=self.table.tokens,
            user_ids=self.prefix_ids if self.user_table is None else self.user_table.tokens,
            user_ids_by_prefix=self.prefix_ids is not None,
            eos_id=self._tokenizer.eos_id,
            max_history=max_history,
            max_prompt_length=self._config.data.max_prompt_length,
            over_catalogue=self._config.over_catalogue,
            is_causal=self._config.is_causal if is_causal is None else is_causal,
            found_choices=self._found_choices,
        )

    def load(self, round: int) -> None:
        """Make the saved IDs of a round the current ones."""
        self.table = load_table(self.path(round), self._dataset.items, self._tokenizer)
        if self._config.data.user_ids == "prefix":
            self.prefix_ids = load_prefix_ids(self.user_path(round), self._dataset)
        elif self._config.data.user_ids != "none":
            self.user_table = load_table(self.user_path(round), self._dataset.users, self._tokenizer)

    def new_table(self, params: Any, *, title: str, check_stop: Callable[[], None]) -> IdTable:
        """Return the IDs that the ID generator writes with these `params`; those of the run stay as they are.

        `title` begins the line of progress; `check_stop` may raise to end the work.
        """
        with progress_of_unknown(f"{title}: writing IDs", "text", check=check_stop) as report:
            return self._generation.generate(params, self._dataset.items, self._texts, on_progress=report)

    def candidates(self, params: Any, *, title: str, check_stop: Callable[[], None]) -> list[list[Candidate]]:
        """Return each item's current ID, and behind it what else the ID generator writes for the item, best first."""
        with progress_of_unknown(f"{title}: writing IDs", "text", check=check_stop) as report:
            written = self._generation.write(params, self._dataset.items, self._texts, on_progress=report)
        return with_old_ids(self.table, written, self._tokenizer)

    def keep(
        self, table: IdTable, round: int, params: Any, *, title: str, check_stop: Callable[[], None]
    ) -> None:
        """Make a table the current IDs and save it as that of a round; write the users' IDs with `params`."""
        before = self._table
        self.table = table
        from_main(lambda: save_table(table, self.path(round)))
        if self._config.data.user_ids != "none":
            with progress_of_unknown(f"{title}: writing users' IDs", "text", check=check_stop) as report:
                self._write_user_ids(round, params, report)
        if before is not None:
            changed = sum(old != new for old, new in zip(before.tokens, table.tokens, strict=True))
            logging.info("round %d: %d of %d item IDs changed", round, changed, len(table))

    def _write_user_ids(self, round: int, params: Any, report: Callable[[int, int], None]) -> None:
        """Write and save the users' IDs."""
        dataset, generation = self._dataset, self._generation
        if self._config.data.user_ids == "prefix":
            texts = prefix_texts(dataset, self.table.texts, self._config.data.max_history)
            (places,) = np.nonzero([bool(text) for text in texts])
            told = [texts[place] for place in places]
            # One candidate is enough where no ID must be unique.
            written = dataclasses.replace(generation, num_groups=1).write(params, told, told, on_progress=report)
            # Where it has no words, the user is called by the item before.
            chosen = [of_prefix[0] if of_prefix else text for of_prefix, text in zip(written, told, strict=True)]
            tokens = self._tokenizer.encode_batch(chosen)
            found: list[tuple[int, ...]] = [()] * len(texts)
            for place, of_prefix in zip(places, tokens, strict=True):
                found[place] = tuple(of_prefix[:MAX_ID_TOKENS])
            self.prefix_ids = prefix_ids = tuple(found)
            from_main(lambda: save_prefix_ids(prefix_ids, dataset, self.user_path(round)))
        else:
            self.user_table = table = generation.generate(params, dataset.users, self._user_texts(), on_progress=report)
            from_main(lambda: save_table(table, self.user_path(round)))

    def path(self, round: int) -> Path:
        """Return the file of a round's item IDs."""
        return self._folder / run_files.item_ids(round)

    def user_path(self, round: int) -> Path:
        """Return the file of a round's user IDs."""
        return self._folder / run_files.user_ids(round)

    def _user_texts(self) -> list[str]:
        """The IDs of each user's items: the training items, or the whole sequence for the published, leaking way."""
        whole = self._config.data.user_ids == "published"
        texts = []
        for user, sequence in enumerate(self._dataset.sequences):
            items = sequence if whole else self._dataset.training_sequence(user)
            texts.append(" ".join(self.table.texts[item] for item in items))
        return texts
