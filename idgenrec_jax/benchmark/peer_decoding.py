"""The peer's searches: `generate` of transformers, constrained to the valid IDs or in diverse groups."""

import numpy as np
import torch
import transformers
from peer_job import Job, JobError, batches

LAST_WITH_GROUP_BEAMS = (4, 56)
# A beam without an item stands at -1e9 in transformers, or at its quotient by the length.
NO_ITEM_BELOW = -1e6


class ConstrainedBeam:
    """Beam search over the valid IDs by `generate`, with a dictionary from each prefix to the tokens allowed after it.

    Outputs, of the first `num_compared` prompts (all, where it is not given): `items` int32 [prompts, beams], best
    first, -1 where there is none; `scores` float32, -inf where none.
    """

    def __init__(self, job: Job):
        """Load the model and build the dictionary."""
        self._job = job
        self._model = job.load("recommender").to(job.dtype)
        config = self._model.config
        self._eos = config.eos_token_id
        self._prompts = job.rows("prompts")
        self._items = {}
        children: dict[tuple[int, ...], set[int]] = {}
        for index, row in enumerate(job.rows("items")):
            item = tuple(row.tolist())
            self._items[item] = index
            ended = (config.decoder_start_token_id, *item, self._eos)
            for length in range(1, len(ended)):
                children.setdefault(ended[:length], set()).add(ended[length])
        # Tensors made once save transformers a conversion, on a GPU also a transfer, for every beam of every step.
        allowed = torch.tensor([token for tokens in children.values() for token in sorted(tokens)], device=job.device)
        sizes = [len(tokens) for tokens in children.values()]
        self._allowed = dict(zip(children, allowed.split(sizes), strict=True))
        self._only_eos = torch.tensor([self._eos], device=job.device)

    def outputs(self) -> dict[str, np.ndarray]:
        """Return the items and scores of the prompts that are compared."""
        compared = self._prompts[: self._job.get("num_compared", len(self._prompts))]
        found = [self._search(rows) for rows in batches(compared, self._job["batch_size"])]
        items = np.concatenate([items for items, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        items[scores < NO_ITEM_BELOW] = -1
        return {"items": items, "scores": np.where(items < 0, -np.inf, scores).astype(np.float32)}

    def run(self) -> int:
        """Search for all prompts and return their number."""
        for rows in batches(self._prompts, self._job["batch_size"]):
            self._search(rows)
        return len(self._prompts)

    def trial(self, batch_size: int, count: int) -> int:
        """Search for `count` prompts, spread over all, in batches of this size, and return their number."""
        chosen = np.linspace(0, len(self._prompts) - 1, min(count, len(self._prompts))).astype(int)
        for rows in batches([self._prompts[prompt] for prompt in chosen], batch_size):
            self._search(rows)
        return len(chosen)

    def _search(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Items int32 and scores float32 [prompts, beams] of one batch."""
        num_beams = self._job["num_beams"]
        sequences, scores = _generate(
            self._job,
            self._model,
            rows,
            num_beams,
            prefix_allowed_tokens_fn=lambda _, prefix: self._allowed.get(tuple(prefix.tolist()), self._only_eos),
            length_penalty=float(self._job["length_penalty"]),
            early_stopping=False,
        )
        found = []
        for row in sequences.tolist():
            end = row.index(self._eos) if self._eos in row else len(row)
            found.append(self._items.get(tuple(row[1:end]), -1))
        return np.array(found, np.int32).reshape(-1, num_beams), scores.reshape(-1, num_beams)


class DiverseBeam:
    """Group beam search by `generate` with one beam a group.

    Outputs: `tokens` int32 [texts, groups, max_length - 1] (no start token, padding after EOS); `scores` float32.
    """

    def __init__(self, job: Job):
        """Load the model; JobError where transformers has no group beam search any more."""
        version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        if version > LAST_WITH_GROUP_BEAMS:
            raise JobError(
                f"transformers {transformers.__version__} has no group beam search; name an interpreter that has "
                "transformers 4.56.2 with --peer_python"
            )
        self._job = job
        self._model = job.load("id_generator").to(job.dtype)
        self._texts = job.rows("texts")

    def outputs(self) -> dict[str, np.ndarray]:
        """Return the sequences and scores of all texts."""
        found = [self._search(rows) for rows in batches(self._texts, self._job["batch_size"])]
        return {name: np.concatenate([arrays[name] for arrays in found]) for name in ("tokens", "scores")}

    def run(self) -> int:
        """Search for all texts and return their number."""
        for rows in batches(self._texts, self._job["batch_size"]):
            self._search(rows)
        return len(self._texts)

    def _search(self, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one batch."""
        num_groups, max_length = self._job["num_groups"], self._job["max_length"]
        sequences, scores = _generate(
            self._job,
            self._model,
            rows,
            num_groups,
            num_beam_groups=num_groups,
            diversity_penalty=float(self._job["diversity_penalty"]),
            length_penalty=float(self._job.get("length_penalty", 1.0)),
            min_length=self._job["min_length"],
            no_repeat_ngram_size=self._job.get("no_repeat_ngram_size", 0),
        )
        found = sequences[:, 1:].astype(np.int32)
        padding = ((0, 0), (0, max_length - 1 - found.shape[1]))
        found = np.pad(found, padding, constant_values=self._model.config.pad_token_id)
        return {
            "tokens": found.reshape(-1, num_groups, max_length - 1),
            "scores": scores.reshape(-1, num_groups),
        }


def _generate(
    job: Job, model: transformers.T5ForConditionalGeneration, rows: list[np.ndarray], num_beams: int, **rules: object
) -> tuple[np.ndarray, np.ndarray]:
    """The sequences of every beam of one batch, int64, and their scores, float32."""
    tokens, mask = job.pad(rows)
    with torch.inference_mode():
        found = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_length=job["max_length"],
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_scores=True,
            **rules,
        )
    return found["sequences"].cpu().numpy(), found["sequences_scores"].float().cpu().numpy()
