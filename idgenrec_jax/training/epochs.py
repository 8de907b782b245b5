"""The batches of every epoch of a run, those of the next epoch planned while one is trained on.

To plan an epoch takes the host one to ten seconds a million examples, in which an accelerator would stand still.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from idgenrec_jax.background import in_daemon_thread
from idgenrec_jax.config import Config
from idgenrec_jax.data.followers import Followers
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.packing import PackedBatches
from idgenrec_jax.data.recommender_batches import RecommenderBatches, recommender_epoch, training_shape
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.training.choice_softmax import ChoiceTable, choice_table
from idgenrec_jax.training.phases import CAUSAL, ID, RECOMMENDER, WARM_START
from idgenrec_jax.training.warm_start import WarmStart

_SECONDS_BETWEEN_CHECKS = 0.2
# An epoch that no run has: by it the examples are drawn that ID phases are measured on.
_MEASURED = 2**31
Batches = PackedBatches | RecommenderBatches | IdBatches
Planner = Callable[[int], Batches]


class Epochs:
    """The batches of epochs, which follow from the configuration, the IDs and the epoch's number alone."""

    def __init__(
        self,
        config: Config,
        ids: RoundIds,
        *,
        text_tokens: Sequence[Sequence[int]],
        warm_start_targets: Callable[[], Sequence[Sequence[int]]],
        row_multiple: int,
    ):
        """Prepare the epochs of a run with these `ids`; each part of a step has a multiple of `row_multiple` rows.

        `text_tokens` holds the tokens of each item's text, `warm_start_targets()` those that the warm start teaches to
        write for it; both include EOS.
        """
        self._config, self._ids, self._row_multiple = config, ids, row_multiple
        self._text_tokens, self._warm_start_targets = text_tokens, warm_start_targets
        self._supervised_multiple = row_multiple * config.training.gradient_accumulation
        # Per kind of phase, the round whose IDs its epochs have, and what plans one by its number.
        self._planners: dict[str, tuple[int, Planner]] = {}
        self._ahead: dict[tuple[str, int, int], Future] = {}

    def batches(
        self, kind: str, id_round: int, epoch: int, *, is_last: bool, check_stop: Callable[[], None] = lambda: None
    ) -> Batches:
        """Return the batches of an epoch of phases of this kind with the IDs of this round.

        Unless the epoch is the last before the IDs change, the next one is then planned in a thread of its own, which
        the end of the process does not wait for. What goes wrong there is raised where that epoch is asked for.
        `check_stop` is called a few times a second while an epoch is waited for, and may raise to end the wait.
        """
        planned = self._ahead.pop((kind, id_round, epoch), None)
        self._ahead.clear()
        # The planner is made in the thread, too: it reads every text, or measures thousands of prompts.
        planned = planned or in_daemon_thread(lambda: self._planner(kind, id_round)(epoch))
        while not wait([planned], timeout=_SECONDS_BETWEEN_CHECKS).done:
            check_stop()
        batches = planned.result()
        if not is_last:
            planner = self._planner(kind, id_round)
            self._ahead[kind, id_round, epoch + 1] = in_daemon_thread(lambda: planner(epoch + 1))
        return batches

    def _planner(self, kind: str, id_round: int) -> Planner:
        if self._planners.get(kind, (None,))[0] != id_round:
            make = {
                WARM_START: self._warm_start,
                CAUSAL: lambda: self._recommender(is_causal=True),
                RECOMMENDER: lambda: self._recommender(is_causal=False),
                ID: self._id,
            }[kind]
            self._planners[kind] = id_round, make()
        return self._planners[kind][1]

    def _warm_start(self) -> Planner:
        return WarmStart(
            self._text_tokens,
            self._warm_start_targets(),
            self._config.training,
            row_multiple=self._supervised_multiple,
        ).epoch

    def choices(self) -> ChoiceTable | None:
        """Return the choices that the current IDs leave, on the host; None where losses are over the vocabulary."""
        if not self._config.over_catalogue:
            return None
        return choice_table(self._ids.renderer(max_history=self._config.data.max_history).choices)

    def _recommender(self, *, is_causal: bool) -> Planner:
        training = self._config.training
        renderer = self._ids.renderer(max_history=self._config.data.max_history, is_causal=is_causal)
        shared = {"seed": training.seed, "batch_size": training.recommender_batch_size}
        shape = training_shape(renderer, row_multiple=self._supervised_multiple, **shared)
        count = training.recommender_examples_per_epoch
        return lambda epoch: recommender_epoch(renderer, epoch=epoch, num_examples=count, shape=shape, **shared)

    def measured_batches(self, id_length: int) -> IdBatches:
        """Return the training examples by which ID phases are measured, with the current IDs as targets.

        They are the same for every phase. `id_length` is the room for an ID in a history, in tokens.
        """
        planner = self._id(id_length, self._config.training.id_measured_examples)
        return planner(_MEASURED)

    def _id(self, id_length: int | None = None, num_examples: int | None = None) -> Callable[[int], IdBatches]:
        """What plans ID epochs; by default with soft IDs and as many examples as configured."""
        training = self._config.training
        renderer = self._ids.renderer(max_history=self._config.data.id_max_history)
        texts = self._text_tokens
        shared = {"seed": training.seed, "id_length": id_length or self._config.ids.soft_length}
        shape = id_shape(
            renderer,
            texts,
            batch_size=training.id_batch_size,
            items_per_batch=training.id_items_per_batch,
            row_multiple=self._row_multiple * training.id_chunks,
            **shared,
        )
        count = training.id_examples_per_epoch if num_examples is None else num_examples
        followers = Followers(renderer.dataset) if training.id_neighbour_weight else None
        return lambda epoch: IdBatches(
            renderer, texts, epoch=epoch, num_examples=count, shape=shape, followers=followers, **shared
        )
