"""Textual IDs for a whole catalogue: candidates from the ID generator, decoded in batches, for Algorithm 1."""

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.decoding.diverse import diverse_beam_search
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.table import IdTable, clean_to_words
from idgenrec_jax.ids.uniqueness import PENALTIES, assign_unique_ids

LENGTH_BUCKETS = (32, 64, 128, 256, 512)
"""Lengths, in tokens with EOS, that item texts are padded to; each one in use costs one compilation."""

_LENGTH_SPAN = 10
_BATCHES_IN_FLIGHT = 2
_LOGGER = logging.getLogger(__name__)


def item_prompts(
    texts: Sequence[str], names: Sequence[str], tokenizer: Tokenizer, *, max_length: int
) -> list[list[int]]:
    """What the generator reads for each item: the first tokens of its text, and EOS, `max_length` together at most.

    A blank text is replaced by the item's name. Raises InputError if texts and names differ in number.
    """
    if len(names) != len(texts):
        raise InputError(f"{len(names)} names and {len(texts)} texts; expected one text for each name")
    described = [text if text.strip() else name for name, text in zip(names, texts, strict=True)]
    return [tokens[: max_length - 1] + [tokenizer.eos_id] for tokens in tokenizer.encode_batch(described)]


@dataclass(frozen=True, eq=False)
class IdGeneration:
    """Writes the IDs of catalogues with a T5, the ID generator.

    `graphdef`: the generator's, from `nnx.split(model, nnx.Param)`. `num_groups`: groups of diverse beam search, of one
    beam each, hence candidates per item and stage. `penalties`, `min_lengths`: the stages (see `assign_unique_ids`); a
    candidate of minimum length m has at most m + 10 tokens, the decoder's start token and EOS among them. `fallback`:
    "error" raises InputError for items that no stage makes unique, "suffix" puts a number behind their ID.
    `batch_size`: texts decoded at once. `max_text_length`: tokens of a text, with EOS, that the generator reads.
    `length_buckets`: lengths that texts are padded to. `length_penalty`: as for transformers' `generate`.
    `batch_sharding`: places the tokens of a batch [batch, length] on a mesh. Raises InputError for settings outside
    their range.
    """

    graphdef: nnx.GraphDef
    tokenizer: Tokenizer
    _: KW_ONLY
    num_groups: int = 10
    penalties: tuple[float, ...] = PENALTIES
    min_lengths: tuple[int, ...] = (1, 11)
    fallback: str = "error"
    batch_size: int = 64
    max_text_length: int = 256
    length_buckets: tuple[int, ...] = LENGTH_BUCKETS
    length_penalty: float = 1.0
    batch_sharding: jax.sharding.Sharding | None = None

    def __post_init__(self):
        for name, low in (("num_groups", 1), ("batch_size", 1), ("max_text_length", 2)):
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {low}")
        for name in ("penalties", "min_lengths", "length_buckets"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] <= 0:
                raise InputError(f"{name}={values}: expected one or more positive numbers, each above the one before")
        if self.fallback not in ("error", "suffix"):
            raise InputError(f"fallback={self.fallback!r}: expected 'error' or 'suffix'")

    def generate(
        self,
        params: Any,
        names: Sequence[str],
        texts: Sequence[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> IdTable:
        """Gives every item a unique ID written from its text (Algorithm 1).

        `params`: the generator's, from `nnx.split(model, nnx.Param)`; dropout is off. Equal texts are decoded once; an
        item whose text is blank is described by its name, and a warning counts these. Rows of a batch do not see one
        another, so the IDs do not depend on the batch size. `on_progress` is called with (texts decoded so far, texts
        known so far to need it); retries raise the second number. Raises InputError for items without a unique ID
        (fallback "error").
        """
        prompts = item_prompts(texts, names, self.tokenizer, max_length=self.max_text_length)
        blank = [name for name, text in zip(names, texts, strict=True) if not text.strip()]
        if blank:
            message = "%d of %d texts are blank, the first is that of %r; their IDs are written from the names"
            _LOGGER.warning(message, len(blank), len(texts), blank[0])
        decoder = CandidateDecoder(self, params, prompts, on_progress)
        plain = [_first_words(text) or name for name, text in zip(names, texts, strict=True)]
        assignments = assign_unique_ids(
            decoder.candidates,
            len(names),
            tokenizer=self.tokenizer,
            item_names=names,
            penalties=self.penalties,
            min_lengths=self.min_lengths,
            fallback_texts=plain if self.fallback == "suffix" else None,
        )
        return IdTable(
            tuple(names),
            tuple(assignment.text for assignment in assignments),
            tuple(assignment.tokens for assignment in assignments),
        )


class CandidateDecoder:
    """The generator's candidates for the items of one catalogue, at any stage of Algorithm 1."""

    def __init__(
        self,
        generation: IdGeneration,
        params: Any,
        prompts: Sequence[Sequence[int]],
        on_progress: Callable[[int, int], None] | None = None,
    ):
        """Keeps the distinct `prompts` (one per item, with EOS); nothing is decoded yet."""
        self._generation, self._params, self._on_progress = generation, params, on_progress
        self._done = self._wanted = 0
        keys = [tuple(prompt) for prompt in prompts]
        number_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(keys))}
        self._prompt_of_item = np.asarray([number_of[key] for key in keys], dtype=np.int64)
        self._prompts = list(number_of)

    def candidates(self, items: Int[np.ndarray, "n"], min_length: int, penalty: float) -> list[list[str]]:
        """For each of the items its decoded texts at this stage, best first; equal texts are decoded once."""
        prompt_of_item = self._prompt_of_item[items]
        distinct = np.unique(prompt_of_item)
        self._wanted += len(distinct)
        decoded: dict[int, list[str]] = {}
        in_flight: deque[tuple[list[int], Array]] = deque()
        # One batch is decoded on the device while the one before is turned into text here.
        for numbers, length in self._batches(distinct):
            in_flight.append((numbers, self._decode(numbers, length, min_length, penalty)))
            if len(in_flight) == _BATCHES_IN_FLIGHT:
                self._collect(*in_flight.popleft(), decoded)
        while in_flight:
            self._collect(*in_flight.popleft(), decoded)
        return [decoded[number] for number in prompt_of_item]

    def _batches(self, numbers: Int[np.ndarray, "n"]) -> list[tuple[list[int], int]]:
        """Batches of text numbers, each with the length they are padded to."""
        buckets: dict[int, list[int]] = {}
        for number in numbers.tolist():
            buckets.setdefault(self._padded_length(len(self._prompts[number])), []).append(number)
        size = self._generation.batch_size
        return [
            (bucket[start : start + size], length)
            for length, bucket in sorted(buckets.items())
            for start in range(0, len(bucket), size)
        ]

    def _padded_length(self, length: int) -> int:
        """The smallest bucket that holds `length` tokens; beyond all buckets the longest text allowed."""
        longest = self._generation.max_text_length
        return next((bucket for bucket in self._generation.length_buckets if length <= bucket < longest), longest)

    def _decode(
        self, numbers: list[int], length: int, min_length: int, penalty: float
    ) -> Int[Array, "batch groups target"]:
        """Starts the decode of one batch; rows without a text repeat the first one, so that all shapes are equal."""
        generation = self._generation
        tokens = np.full((generation.batch_size, length), generation.tokenizer.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row in range(len(tokens)):
            prompt = self._prompts[numbers[row] if row < len(numbers) else numbers[0]]
            tokens[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = True
        return _decode_batch(
            generation.graphdef,
            self._params,
            jax.device_put(tokens, generation.batch_sharding),
            jax.device_put(mask, generation.batch_sharding),
            jax.device_put(np.float32(penalty)),
            jax.device_put(np.int32(min_length)),
            num_groups=generation.num_groups,
            max_length=min_length + _LENGTH_SPAN,
            length_penalty=generation.length_penalty,
        )

    def _collect(self, numbers: list[int], result: Int[Array, "batch groups target"], decoded: dict) -> None:
        """Waits for one batch and adds its texts to `decoded` under their numbers."""
        tokens = jax.device_get(result)[: len(numbers)]
        texts = self._generation.tokenizer.decode_batch(tokens.reshape(-1, tokens.shape[2]).tolist())
        groups = tokens.shape[1]
        for row, number in enumerate(numbers):
            decoded[number] = texts[row * groups : (row + 1) * groups]
        self._done += len(numbers)
        if self._on_progress is not None:
            self._on_progress(self._done, self._wanted)


@functools.partial(jax.jit, static_argnames=("graphdef", "num_groups", "max_length", "length_penalty"))
def _decode_batch(
    graphdef: nnx.GraphDef,
    params: Any,
    tokens: Int[Array, "batch source"],
    mask: Bool[Array, "batch source"],
    penalty: Float[Array, ""],
    min_length: Int[Array, ""],
    *,
    num_groups: int,
    max_length: int,
    length_penalty: float,
) -> Int[Array, "batch groups target"]:
    """Diverse beam search with one beam a group over one batch; compiled once per shape and maximum length."""
    model = nnx.merge(graphdef, params)
    config = model.config
    cache = model.start_decoding(model.encode(tokens, mask), mask, num_beams=num_groups, max_length=max_length)

    def step(beam_tokens, position, cache):
        hidden, cache = model.decode_step(beam_tokens, position, cache)
        return model.logits(hidden), cache

    result = diverse_beam_search(
        step,
        cache,
        batch_size=tokens.shape[0],
        num_beams=num_groups,
        num_groups=num_groups,
        diversity_penalty=penalty,
        min_length=min_length,
        max_length=max_length,
        vocab_size=config.vocab_size,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        start_token_id=config.decoder_start_token_id,
        length_penalty=length_penalty,
    )
    return result.tokens


def _first_words(text: str) -> str:
    """At most eight words of the first field's value, as in `title: ...; brand: ...`, or of a plain text."""
    head, colon, rest = text.partition(": ")
    if colon and len(head.split()) == 1:
        text = rest.partition("; ")[0]
    return " ".join(clean_to_words(text).split()[:8])
