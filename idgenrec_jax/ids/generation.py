"""Textual IDs for a whole catalogue: candidates from the ID generator, decoded in batches, for Algorithm 1."""

import bisect
import functools
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from idgenrec_jax.data.spelling import check_spelling
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.data.words import WordSplitter
from idgenrec_jax.errors import InputError
from idgenrec_jax.ids.candidate_search import EncodedTexts, decode_batch, encode_batch
from idgenrec_jax.ids.keywords import field_names, fields_of
from idgenrec_jax.ids.table import IdTable, clean_to_words, without_repeats
from idgenrec_jax.ids.uniqueness import PENALTIES, assign_unique_ids
from idgenrec_jax.processes import put, readable

LENGTH_BUCKETS = (32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Lengths, in tokens with EOS, that item texts are padded to; each one in use is compiled for (see `IdGeneration`)."""

# Tokens of a text whose encoding takes about as long as the decoding of its candidates.
_DECODING_TOKENS = 250
_BATCHES_IN_FLIGHT = 2
_LOGGER = logging.getLogger(__name__)


def item_prompts(
    texts: Sequence[str], names: Sequence[str], tokenizer: Tokenizer, *, max_length: int
) -> list[list[int]]:
    """What the ID generator reads for each item: the first tokens of its text, and EOS, `max_length` together at most.

    A blank text is replaced by the item's name. Warns of what the tokenizer cannot write. Raises InputError if texts
    and names differ in number, or if the tokenizer leaves nothing of the texts.
    """
    if len(names) != len(texts):
        raise InputError(f"{len(names)} names and {len(texts)} texts; expected one text for each name")
    described = [text if text.strip() else name for name, text in zip(names, texts, strict=True)]
    tokens = tokenizer.encode_batch(described)
    check_spelling(described, tokenizer, "texts that IDs are written from", tokens=tokens)
    return [row[: max_length - 1] + [tokenizer.eos_id] for row in tokens]


@dataclass(frozen=True, eq=False)
class IdGeneration:
    """Writes the IDs of catalogues with a T5, the ID generator.

    - `graphdef`: the ID generator's, from `nnx.split(model, nnx.Param)`.
    - `num_groups`: groups of diverse beam search. Each has one beam, so an item has as many candidates a stage.
    - `penalties`, `min_lengths`: the stages (see `assign_unique_ids`). A candidate of minimum length m has at most
      m + 10 tokens, with the decoder's start token and EOS.
    - `no_repeat_ngram_size`: no candidate has a sequence of this many tokens twice, and a word that recurs is left out
      of it (0: both may recur, as published).
    - `fallback`: what happens to items that no stage makes unique. "error" raises InputError, "suffix" puts a number
      behind their ID.
    - `batch_size`: texts decoded at once. They have one minimum length and one padded length, and any penalties.
    - `batch_divisors`: a batch has `batch_size` rows divided by one of these, rounded up. What does not fill a whole
      batch goes into smaller ones, so that less than half of each but the smallest is padding.
    - `max_text_length`: tokens of a text, with EOS, that the ID generator reads.
    - `length_buckets`: lengths, in tokens, that texts may be padded to.
    - `bucket_overhead`: texts that could be decoded while the programs of a bucket are compiled. A bucket that does not
      spare as much is not used.
    - `length_penalty`: as for transformers' `generate`.
    - `encoded_budget_bytes`: encoder outputs kept for retries, in bytes on each device (0: none). A text takes its
      padded length times d_model numbers: 512 KiB for T5-small, 256 tokens and float32. They stay on the device, for
      to bring them to the host and back takes about as long as to encode them anew.
    - `batch_sharding`: places the rows of a batch on a mesh. `batch_size` must then be a multiple of the parts.

    Batch sizes, buckets, budget and mesh do not change the IDs: they only say what is computed together. With S padded
    lengths in use, D different batch sizes and L minimum lengths, at most S * D encoders and S * D * L decoders are
    compiled, however many catalogues are written with weights of the same shape.

    Raises InputError for settings outside their range.
    """

    graphdef: nnx.GraphDef
    tokenizer: Tokenizer
    _: KW_ONLY
    num_groups: int = 10
    penalties: tuple[float, ...] = PENALTIES
    min_lengths: tuple[int, ...] = (1, 11)
    no_repeat_ngram_size: int = 0
    fallback: str = "error"
    batch_size: int = 64
    batch_divisors: tuple[int, ...] = (1, 4, 16)
    max_text_length: int = 256
    length_buckets: tuple[int, ...] = LENGTH_BUCKETS
    bucket_overhead: int = 64
    length_penalty: float = 1.0
    encoded_budget_bytes: int = 2**30
    batch_sharding: NamedSharding | None = None

    def __post_init__(self):
        positive = {"num_groups": 1, "batch_size": 1, "max_text_length": 2}
        may_be_zero = ("bucket_overhead", "encoded_budget_bytes", "no_repeat_ngram_size")
        for name, low in (positive | dict.fromkeys(may_be_zero, 0)).items():
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {low}")
        for name in ("penalties", "min_lengths", "length_buckets", "batch_divisors"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] <= 0:
                raise InputError(f"{name}={values}: expected one or more positive numbers, each above the one before")
        if self.batch_divisors[0] != 1:
            raise InputError(f"batch_divisors={self.batch_divisors}: expected 1 as the first, for full batches")
        if self.batch_size % self._num_parts:
            raise InputError(f"batch_size={self.batch_size}: expected a multiple of the {self._num_parts} mesh parts")
        if self.fallback not in ("error", "suffix"):
            raise InputError(f"fallback={self.fallback!r}: expected 'error' or 'suffix'")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The numbers of rows that batches have, in ascending order."""
        parts = self._num_parts
        return tuple(sorted({-(-self.batch_size // (divisor * parts)) * parts for divisor in self.batch_divisors}))

    @property
    def _num_parts(self) -> int:
        """How many parts the rows of a batch are split into on the mesh."""
        if self.batch_sharding is None:
            return 1
        devices = self.batch_sharding.num_devices
        return devices // self.batch_sharding.shard_shape((devices,))[0]

    def generate(
        self,
        params: Any,
        names: Sequence[str],
        texts: Sequence[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> IdTable:
        """Gives every item a unique ID written from its text (Algorithm 1).

        `params`: the ID generator's, from `nnx.split(model, nnx.Param)`; dropout is off. Equal texts are decoded once a
        stage; an item whose text is blank is described by its name, and a warning counts these. Rows of a batch do not
        see one another, so the IDs do not depend on what is decoded together. `on_progress` is called with (texts
        decoded so far, texts known so far to need it); retries raise the second number. Raises InputError for items
        without a unique ID (fallback "error").
        """
        decoder, clean = self._decoder(params, names, texts, on_progress)
        plain = None
        if self.fallback == "suffix":
            fields = field_names(texts)
            plain = [_first_words(text, fields, clean) or name for name, text in zip(names, texts, strict=True)]
        assignments = assign_unique_ids(
            decoder.candidates,
            len(names),
            tokenizer=self.tokenizer,
            item_names=names,
            penalties=self.penalties,
            min_lengths=self.min_lengths,
            fallback_texts=plain,
            clean=clean,
        )
        return IdTable(
            tuple(names),
            tuple(assignment.text for assignment in assignments),
            tuple(assignment.tokens for assignment in assignments),
        )

    def write(
        self,
        params: Any,
        names: Sequence[str],
        texts: Sequence[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[str]]:
        """Return the candidates of every item at the first stage of Algorithm 1, best first, cleaned to words.

        Arguments are those of `generate`.
        """
        decoder, clean = self._decoder(params, names, texts, on_progress)
        stage = (np.full(len(names), value) for value in (self.min_lengths[0], self.penalties[0]))
        written = decoder.candidates(np.arange(len(names)), *stage)
        return [list(filter(None, dict.fromkeys(map(clean, of_item)))) for of_item in written]

    def _decoder(
        self, params: Any, names: Sequence[str], texts: Sequence[str], on_progress: Callable[[int, int], None] | None
    ) -> tuple["CandidateDecoder", Callable[[str], str]]:
        """What decodes the candidates of a catalogue, and what cleans them to words."""
        prompts = item_prompts(texts, names, self.tokenizer, max_length=self.max_text_length)
        blank = [name for name, text in zip(names, texts, strict=True) if not text.strip()]
        if blank:
            message = "%d of %d texts are blank, the first is that of %r; their IDs are written from the names"
            _LOGGER.warning(message, len(blank), len(texts), blank[0])
        clean = clean_to_words
        if self.no_repeat_ngram_size:
            clean = functools.partial(without_repeats, splitter=WordSplitter(texts))
        return CandidateDecoder(self, params, prompts, on_progress), clean


class _Request(NamedTuple):
    """One text, by its number, to be decoded at one stage of Algorithm 1."""

    text: int
    min_length: int
    penalty: float


class CandidateDecoder:
    """The ID generator's candidates for the items of one catalogue, at any stage of Algorithm 1."""

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
        self._text_of_item = [number_of[key] for key in keys]
        self._prompts = list(number_of)
        self._padded_lengths = self._plan_lengths()
        self._num_items = Counter(self._text_of_item)
        self._remembered: dict[_Request, list[str]] = {}
        self._encoded = EncodedTexts(generation.encoded_budget_bytes)

    def candidates(
        self, items: Int[np.ndarray, " n"], min_lengths: Int[np.ndarray, " n"], penalties: Float[np.ndarray, " n"]
    ) -> list[list[str]]:
        """For each of the items its decoded texts, best first, at its own stage.

        Equal texts at the same stage are decoded once. What was decoded for a text that several items share is
        remembered for later calls, at most one list of short texts for each such text and stage.
        """
        numbers = [self._text_of_item[item] for item in items]
        requests = [_Request(*row) for row in zip(numbers, min_lengths.tolist(), penalties.tolist(), strict=True)]
        decoded = {request: self._remembered[request] for request in requests if request in self._remembered}
        missing = sorted(set(requests) - decoded.keys())
        self._wanted += len(missing)
        self._encoded.begin(request.text for request in missing)
        in_flight: deque[tuple[list[_Request], Array]] = deque()
        # One batch is decoded on the device while the one before is turned into text here.
        for batch, length in self._batches(missing):
            in_flight.append((batch, self._decode(batch, length)))
            if len(in_flight) == _BATCHES_IN_FLIGHT:
                self._collect(*in_flight.popleft(), decoded)
        while in_flight:
            self._collect(*in_flight.popleft(), decoded)
        self._remembered.update((request, decoded[request]) for request in missing if self._num_items[request.text] > 1)
        return [decoded[request] for request in requests]

    def _batches(self, requests: list[_Request]) -> list[tuple[list[_Request], int]]:
        """Batches of one minimum length each, with the length that their texts are padded to."""
        groups: dict[tuple[int, int], list[_Request]] = {}
        for request in requests:
            groups.setdefault((request.min_length, self._padded_lengths[request.text]), []).append(request)
        batches = []
        for (_, length), group in sorted(groups.items()):
            start = 0
            while start < len(group):
                size = self._batch_size(len(group) - start)
                batches.append((group[start : start + size], length))
                start += size
        return batches

    def _batch_size(self, remaining: int) -> int:
        """Rows of the next batch: as few as hold all texts that remain, or the number below if half would be empty."""
        sizes = self._generation.batch_sizes
        place = min(bisect.bisect_left(sizes, remaining), len(sizes) - 1)
        return sizes[place - 1] if place and 2 * remaining <= sizes[place] else sizes[place]

    def _plan_lengths(self) -> list[int]:
        """The length that each distinct text is padded to; beyond all buckets the longest text allowed."""
        generation = self._generation
        longest = generation.max_text_length
        buckets = [*(bucket for bucket in generation.length_buckets if bucket < longest), longest]
        places = [bisect.bisect_left(buckets, len(prompt)) for prompt in self._prompts]
        counts = np.bincount(places)
        # least[n]: the cost of the texts of the first n buckets, of which start[n] .. n - 1 are padded to the last.
        least, start = [0.0], [0]
        for end in range(1, len(counts) + 1):
            cost = buckets[end - 1] + _DECODING_TOKENS
            options = [
                least[first] + (counts[first:end].sum() + generation.bucket_overhead) * cost for first in range(end)
            ]
            start.append(int(np.argmin(options)))
            least.append(options[start[-1]])
        length_of_place, end = [0] * len(counts), len(counts)
        while end:
            length_of_place[start[end] : end] = [buckets[end - 1]] * (end - start[end])
            end = start[end]
        return [length_of_place[place] for place in places]

    def _fill(self, rows: list) -> list:
        """The rows of a batch with the first repeated behind them, up to the smallest number of rows in use."""
        size = next(size for size in self._generation.batch_sizes if size >= len(rows))
        return rows + rows[:1] * (size - len(rows))

    def _decode(self, batch: list[_Request], length: int) -> Int[Array, "batch groups target"]:
        """Starts the decode of one batch, after encoding those of its texts whose encoder output is not kept."""
        generation = self._generation
        encoded = self._encode(sorted({request.text for request in batch}), length)
        rows = self._fill(batch)
        tokens = decode_batch(
            generation.graphdef,
            self._params,
            tuple(encoded[request.text] for request in rows),
            self._put(np.asarray([len(self._prompts[request.text]) for request in rows], np.int32)),
            self._put(np.asarray([request.penalty for request in rows], np.float32)),
            num_groups=generation.num_groups,
            min_length=batch[0].min_length,
            length_penalty=generation.length_penalty,
            no_repeat_ngram_size=generation.no_repeat_ngram_size,
            sharding=generation.batch_sharding,
        )
        return readable(tokens)

    def _encode(self, numbers: list[int], length: int) -> dict[int, Float[Array, "source d_model"]]:
        """The encoder outputs of texts, padded to `length`: those kept, and the others from the encoder."""
        generation = self._generation
        encoded = {number: self._encoded.kept[number] for number in numbers if number in self._encoded.kept}
        missing = [number for number in numbers if number not in encoded]
        if missing:
            rows = self._fill(missing)
            tokens = np.full((len(rows), length), generation.tokenizer.pad_id, np.int32)
            for row, number in zip(tokens, rows, strict=True):
                row[: len(self._prompts[number])] = self._prompts[number]
            lengths = np.asarray([len(self._prompts[number]) for number in rows], np.int32)
            outputs = encode_batch(
                generation.graphdef,
                self._params,
                self._put(tokens),
                self._put(lengths),
                sharding=generation.batch_sharding,
            )
            for number, output in zip(missing, outputs[: len(missing)], strict=True):
                encoded[number] = output
                self._encoded.keep(number, output)
        return encoded

    def _put(self, rows: np.ndarray) -> Array:
        """The array on the device, or with its rows split over the mesh."""
        return put(rows, self._generation.batch_sharding)

    def _collect(self, batch: list[_Request], result: Int[Array, "batch groups target"], decoded: dict) -> None:
        """Waits for one batch and adds its texts to `decoded`."""
        tokens = jax.device_get(result)[: len(batch)]
        texts = self._generation.tokenizer.decode_batch(tokens.reshape(-1, tokens.shape[2]).tolist())
        groups = tokens.shape[1]
        for row, request in enumerate(batch):
            decoded[request] = texts[row * groups : (row + 1) * groups]
        self._done += len(batch)
        if self._on_progress is not None:
            self._on_progress(self._done, self._wanted)


def _first_words(text: str, names: frozenset[str], clean: Callable[[str], str]) -> str:
    """At most eight cleaned words of the first field's value, of fields called `names`, or of a plain text."""
    _, value = fields_of(text, names)[0]
    return " ".join(clean(value).split(" ")[:8])
