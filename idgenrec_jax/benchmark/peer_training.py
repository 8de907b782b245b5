"""The peer's training: the recommender's phase, and the ID phase as published."""

from typing import Any

import numpy as np
import torch
from peer_job import Job, batches

# transformers leaves such labels out of the loss.
NO_LABEL = -100
# Where the job does not say.
WEIGHT_DECAY, CLIP_NORM = 0.01, 1.0


class RecommenderTraining:
    """Supervised training on shuffled batches padded to their longest row, with dropout, clipping and fused AdamW.

    Outputs, of the first `num_compared` rows as given (a batch, where it is not given), without dropout, at the weights
    as loaded: `loss` (mean over the real target tokens, nats) and `gradient_norm`, float32 scalars.
    """

    def __init__(self, job: Job):
        """Load the model and make its optimizer."""
        self._job = job
        self._prompts, self._targets = job.rows("prompts"), job.rows("targets")
        self._load()

    def _load(self) -> None:
        self._model = self._job.load("recommender", dropout_rate=self._job["dropout_rate"])
        self._compiled = torch.compile(self._model, dynamic=True) if self._job["compile"] else self._model
        self._optimizer = _make_optimizer(self._model, self._job)
        self._is_trained = False

    def outputs(self) -> dict[str, np.ndarray]:
        """Return the loss and gradient norm of the first batch."""
        if self._is_trained:
            self._load()
        self._model.eval()
        first = np.arange(min(self._job.get("num_compared", self._job["batch_size"]), len(self._prompts)))
        return _loss_and_norm(self._model, self._loss(self._model, first))

    def run(self) -> int:
        """Train on at least `num_examples` examples, in whole batches, and return their number."""
        return self.trial(self._job["batch_size"], self._job["num_examples"])

    def trial(self, batch_size: int, count: int) -> int:
        """Train on at least `count` examples in batches of this size, and return their number."""
        self._is_trained = True
        self._model.train()
        rng = np.random.default_rng(self._job["seed"])
        torch.manual_seed(self._job["seed"])
        order, num_examples = np.empty(0, int), 0
        while num_examples < count:
            if not len(order):
                order = rng.permutation(len(self._prompts))
            batch, order = np.split(order, [batch_size])
            _descend(self._model, self._optimizer, self._loss(self._compiled, batch), self._job)
            num_examples += len(batch)
        return num_examples

    def _loss(self, model: Any, examples: np.ndarray) -> torch.Tensor:
        """The loss of the examples of these numbers, by the model or its compiled form."""
        tokens, mask = self._job.pad([self._prompts[example] for example in examples])
        labels, _ = self._job.pad([self._targets[example] for example in examples], fill=NO_LABEL)
        with self._job.autocast():
            return model(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss


_NO_ITEM = -1


class IdTraining:
    """The ID phase as published (IDGenRec, arXiv 2403.19021): the greedy loop, with its cache, is kept in the graph.

    Every item of every example's history is encoded anew, and all logits of the loop are stored. It differs from the
    publication in two ways. What is wrong there is right here: soft IDs are weighted with probabilities, labels have no
    padding, and positions are masked by what they are, not by a norm. What wastes time there does not here: prompts are
    put together by a gather. Histories are filled up with empty texts to the longest of the batch, as published, where
    the job says `pad_histories`. Examples come in the order given, again and again; there is no dropout.

    Outputs: those of RecommenderTraining, of the ID generator's gradient.
    """

    def __init__(self, job: Job):
        """Load both models, freeze the recommender, and make the ID generator's optimizer."""
        self._job = job
        self._texts, self._histories = job.rows("texts"), job.rows("histories")
        self._prompts, self._targets = job.rows("prompts"), job.rows("targets")
        self._slot_items = job.rows("prompts", "slot_item")
        self._slot_positions = job.rows("prompts", "slot_position")
        self._no_embedding = torch.from_numpy(job.array("no_embedding").astype(bool)).to(job.device)
        self._recommender = job.load("recommender").requires_grad_(False)
        self._load()

    def _load(self) -> None:
        self._id_generator = self._job.load("id_generator")
        self._optimizer = _make_optimizer(self._id_generator, self._job)
        self._is_trained = False

    def outputs(self) -> dict[str, np.ndarray]:
        """Return the loss and gradient norm of the first `num_compared` examples (a batch, where it is not given)."""
        if self._is_trained:
            self._load()
        first = np.arange(min(self._job.get("num_compared", self._job["batch_size"]), len(self._prompts)))
        return _loss_and_norm(self._id_generator, self._loss(first))

    def run(self) -> int:
        """Train for `num_steps` steps and return the number of examples."""
        self._is_trained = True
        in_order = batches(np.arange(len(self._prompts)), self._job["batch_size"])
        num_examples = 0
        for step in range(self._job["num_steps"]):
            batch = in_order[step % len(in_order)]
            _descend(self._id_generator, self._optimizer, self._loss(batch), self._job)
            num_examples += len(batch)
        return num_examples

    def _loss(self, examples: np.ndarray) -> torch.Tensor:
        """The frozen recommender's loss of the examples of these numbers, their histories spelled in soft IDs."""
        histories = [self._histories[example] for example in examples]
        if self._job.get("pad_histories", False):
            longest = max(map(len, histories))
            histories = [np.pad(items, (0, longest - len(items)), constant_values=_NO_ITEM) for items in histories]
        with self._job.autocast():
            soft_ids, carries = self._soft_ids(np.concatenate(histories))
            tokens, mask = self._job.pad([self._prompts[example] for example in examples])
            slot_item, _ = self._job.pad([self._slot_items[example] for example in examples], fill=-1)
            slot_position, _ = self._job.pad([self._slot_positions[example] for example in examples])
            first = np.cumsum([0, *map(len, histories)])[:-1]
            is_slot = slot_item >= 0
            row = torch.where(is_slot, slot_item + torch.from_numpy(first).to(slot_item)[:, None], 0)
            kept = mask.bool() & (carries[row, slot_position] | ~is_slot)
            # What is kept closes up, so that positions are those of a prompt without holes.
            longest = int(kept.sum(1).max())
            order = torch.argsort((~kept).int(), dim=1, stable=True)[:, :longest]
            row, position, tokens, is_slot, kept = (
                values.gather(1, order) for values in (row, slot_position, tokens, is_slot, kept)
            )
            embeddings = torch.where(is_slot[..., None], soft_ids[row, position], self._recommender.shared(tokens))
            labels, _ = self._job.pad([self._targets[example] for example in examples], fill=NO_LABEL)
            return self._recommender(
                inputs_embeds=embeddings, attention_mask=kept.long(), labels=labels, use_cache=False
            ).loss

    def _soft_ids(self, items: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings [items, id_length, d_model] of greedy IDs, with gradient, and which positions carry any."""
        id_generator, id_length = self._id_generator, self._job["id_length"]
        eos, pad = id_generator.config.eos_token_id, id_generator.config.pad_token_id
        no_text = self._texts[0][:0]
        tokens, mask = self._job.pad([no_text if item == _NO_ITEM else self._texts[item] for item in items])
        encoded = id_generator.encoder(input_ids=tokens, attention_mask=mask)
        last = torch.full_like(tokens[:, :1], id_generator.config.decoder_start_token_id)
        is_open = torch.ones_like(last, dtype=torch.bool)
        probabilities, carries, cache = [], [], None
        for _ in range(id_length):
            step = id_generator(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=last,
                past_key_values=cache,
                use_cache=True,
            )
            cache = step.past_key_values
            probabilities.append(step.logits[:, -1].softmax(-1))
            last = torch.where(is_open, step.logits[:, -1].argmax(-1, keepdim=True), pad)
            is_open = is_open & (last != eos)
            carries.append(is_open & (last != pad) & ~self._no_embedding[last])
            if not is_open.any():
                break
        soft_ids = torch.stack(probabilities, dim=1) @ self._recommender.shared.weight
        missing = id_length - len(carries)
        return (
            torch.nn.functional.pad(soft_ids, (0, 0, 0, missing)),
            torch.nn.functional.pad(torch.cat(carries, dim=1), (0, missing)),
        )


def _make_optimizer(model: torch.nn.Module, job: Job) -> torch.optim.Optimizer:
    """Fused AdamW without decay of the scales of layer norms."""
    groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups["layer_norm" not in name].append(parameter)
    weight_decay = job.get("weight_decay", WEIGHT_DECAY)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=job["learning_rate"],
        fused=True,
    )


def _descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, job: Job) -> None:
    """One step of the optimizer on `loss`, the gradient clipped to the norm `clip_norm`."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), job.get("clip_norm", CLIP_NORM))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _loss_and_norm(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, np.ndarray]:
    """The value of a loss and the norm of its gradient in all parameters of the model, which keeps no gradient."""
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    model.zero_grad(set_to_none=True)
    return {name: np.asarray(value.item(), np.float32) for name, value in (("loss", loss), ("gradient_norm", norm))}
