"""The batches of every epoch of a run, those of the next epoch planned while one is trained on.

To plan an epoch takes the host one to ten seconds a million examples, in which an accelerator would stand still.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from idgenrec_jax.background import in_daemon_thread
from idgenrec_jax.config import Config
from idgenrec_jax.data.batches import recommender_epoch, training_shape
from idgenrec_jax.data.id_batches import IdBatches, id_shape
from idgenrec_jax.data.packing import PackedBatches
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.training.phases import ID, RECOMMENDER, WARM_START
from idgenrec_jax.training.warm_start import WarmStart


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
        # What all epochs of one kind with the same IDs share: their shape, or the words of the warm start.
        self._shared: dict[tuple[str, int], Any] = {}
        self._ahead: dict[tuple[str, int, int], Future] = {}

    def batches(self, kind: str, id_round: int, epoch: int, *, is_last: bool) -> PackedBatches | IdBatches:
        """Return the batches of an epoch of phases of this kind with the IDs of this round.

        Unless the epoch is the last before the IDs change, the next one is then planned in a thread of its own, which
        the end of the process does not wait for. What goes wrong there is raised where that epoch is asked for.
        """
        planned = self._ahead.pop((kind, id_round, epoch), None)
        self._ahead.clear()
        batches = self._plan(kind, id_round, epoch) if planned is None else planned.result()
        if not is_last:
            following = kind, id_round, epoch + 1
            self._ahead[following] = in_daemon_thread(lambda: self._plan(*following))
        return batches

    def _plan(self, kind: str, id_round: int, epoch: int) -> PackedBatches | IdBatches:
        plan = {WARM_START: self._warm_start, RECOMMENDER: self._recommender, ID: self._id}[kind]
        return plan((kind, id_round), epoch)

    def _warm_start(self, key: tuple[str, int], epoch: int) -> PackedBatches:
        make = self._share(
            key,
            lambda: WarmStart(
                self._text_tokens,
                self._warm_start_targets(),
                self._config.training,
                row_multiple=self._supervised_multiple,
            ),
        )
        return make.epoch(epoch)

    def _recommender(self, key: tuple[str, int], epoch: int) -> PackedBatches:
        training = self._config.training
        renderer = self._ids.renderer(max_history=self._config.data.max_history)
        shared = {"seed": training.seed, "batch_size": training.recommender_batch_size}
        shape = self._share(key, lambda: training_shape(renderer, row_multiple=self._supervised_multiple, **shared))
        count = training.recommender_examples_per_epoch
        return recommender_epoch(renderer, epoch=epoch, num_examples=count, shape=shape, **shared)

    def _id(self, key: tuple[str, int], epoch: int) -> IdBatches:
        training = self._config.training
        renderer = self._ids.renderer(max_history=self._config.data.id_max_history)
        texts = self._text_tokens
        shared = {"seed": training.seed, "id_length": self._config.ids.soft_length}
        shape = self._share(
            key,
            lambda: id_shape(
                renderer,
                texts,
                batch_size=training.id_batch_size,
                items_per_batch=training.id_items_per_batch,
                row_multiple=self._row_multiple * training.id_chunks,
                **shared,
            ),
        )
        return IdBatches(
            renderer, texts, epoch=epoch, num_examples=training.id_examples_per_epoch, shape=shape, **shared
        )

    def _share(self, key: tuple[str, int], make: Callable[[], Any]) -> Any:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
