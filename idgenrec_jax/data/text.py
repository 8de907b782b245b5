"""Tokenizers: any Hugging Face fast tokenizer behind the few operations that this project needs.

A folder that holds a tokenizer.json is read by the `tokenizers` library alone, which starts in milliseconds; anything
else (a name on the hub, a folder with only a sentencepiece model) goes through transformers.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, expand_home, read_json, write_json

_FLAG = "--config.data.tokenizer"
_REMEDY = "give a folder that holds tokenizer.json, or the name of a Hugging Face model when online"


class Tokenizer:
    """Text to token lists and back.

    Text is only ever text: "</s>" in an item's description becomes ordinary (or unknown) tokens, never the end of a
    sequence. No end-of-sequence token is added by `encode`. Otherwise tokens are those of transformers; decoded text
    is left as it is, without transformers' cosmetic removal of blanks before punctuation.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad_token: str, eos_token: str) -> None:
        """Wraps a tokenizer of the `tokenizers` library; the two tokens must be in its vocabulary (ValueError)."""
        backend.no_truncation()
        backend.no_padding()
        pad_id, eos_id = backend.token_to_id(pad_token), backend.token_to_id(eos_token)
        if pad_id is None or eos_id is None:
            missing = pad_token if pad_id is None else eos_token
            raise ValueError(f"the vocabulary has no token {missing!r}")
        self._backend = backend
        self._pad_token, self._eos_token = pad_token, eos_token
        self._pad_id, self._eos_id = pad_id, eos_id

    @classmethod
    def load(cls, folder_or_name: str | Path) -> "Tokenizer":
        """Loads from a Hugging Face folder, or by the name of a model on the hub.

        Raises:
            InputError: nothing is there, it is no fast tokenizer, or it has no padding or end-of-sequence token.
        """
        folder_or_name = expand_home(folder_or_name)
        folder = Path(folder_or_name)
        if (folder / "tokenizer.json").is_file():
            backend, pad_token, eos_token = _load_from_file(folder)
        elif not folder.is_dir() and str(folder_or_name).count("/") > 1:
            raise InputError(f"{_FLAG}={folder_or_name}: no such folder; {_REMEDY}")
        else:
            backend, pad_token, eos_token = _load_with_transformers(str(folder_or_name))
        try:
            return cls(backend, pad_token=pad_token, eos_token=eos_token)
        except ValueError as error:
            raise InputError(
                f"{_FLAG}={folder_or_name}: {error}; padding and the end of a sequence need a token of their own"
            ) from error

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return self._pad_id

    @property
    def eos_id(self) -> int:
        """The token that ends a sequence."""
        return self._eos_id

    @property
    def size(self) -> int:
        """The number of tokens, added ones included; a model's embedding table may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that stand for no text: padding, end of sequence, unknown, sentinels."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special) | {self.pad_id, self.eos_id}

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        """Matches the spelling of any special token."""
        spellings = [re.escape(self._backend.id_to_token(index)) for index in sorted(self.special_ids)]
        return re.compile("|".join(spellings))

    @cached_property
    def punctuation_ids(self) -> frozenset[int]:
        """The tokens whose text has no letter and no digit, special ones excluded."""
        ordinary = [index for index in self._backend.get_vocab().values() if index not in self.special_ids]
        texts = self._backend.decode_batch([[index] for index in ordinary])
        # U+FFFD is one byte of a character that spreads over several tokens: it may well be part of a word.
        return frozenset(
            index
            for index, text in zip(ordinary, texts, strict=True)
            if not any(character.isalnum() or character == "\ufffd" for character in text)
        )

    def equals(self, other: "Tokenizer") -> bool:
        """Tell whether another tokenizer has the same tokens, special ones included, for every text."""
        mine, its = json.loads(self._backend.to_str()), json.loads(other._backend.to_str())
        # What is put around a text is left to whoever asks: `encode` never does.
        for description in (mine, its):
            description.pop("post_processor", None)
        return mine == its and (self.pad_id, self.eos_id) == (other.pad_id, other.eos_id)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without an end-of-sequence token."""
        return self._backend.encode(self._without_special_tokens(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, in parallel threads."""
        texts = [self._without_special_tokens(text) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens; special tokens and rows beyond the vocabulary are skipped."""
        return self._backend.decode([int(token) for token in tokens], skip_special_tokens=True)

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of every token sequence, in parallel threads."""
        tokens = [[int(token) for token in sequence] for sequence in sequences]
        return self._backend.decode_batch(tokens, skip_special_tokens=True)

    def _without_special_tokens(self, text: str) -> str:
        """The text with a blank inside whatever is spelt like a special token.

        Escaping them in the backend is not enough: T5's vocabulary has them as ordinary pieces as well.
        """
        return self._special_text.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load` and transformers' AutoTokenizer read.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"pad_token": self._pad_token, "eos_token": self._eos_token}
        serialised = self._backend.to_str()
        unknown = json.loads(serialised)["model"].get("unk_id")
        if unknown is not None:
            config["unk_token"] = self._backend.id_to_token(int(unknown))
        with atomic_writer(folder / "tokenizer.json") as file:
            file.write(serialised + "\n")
        write_json(folder / "tokenizer_config.json", config)


def _load_from_file(folder: Path) -> tuple[tokenizers.Tokenizer, str, str]:
    """The tokenizer of folder/tokenizer.json, and the padding and end tokens that its configuration names."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The tokenizers library raises plain Exception for every fault of the file.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{_FLAG}={folder}: tokenizer.json cannot be read ({reason}); {_REMEDY}") from error
    tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            config = read_json(path, remedy="save the tokenizer again")
            for key in tokens:
                value = config.get(key) or tokens[key]
                tokens[key] = value["content"] if isinstance(value, dict) else value
    return backend, tokens["pad_token"], tokens["eos_token"]


def _load_with_transformers(folder_or_name: str) -> tuple[tokenizers.Tokenizer, str, str]:
    """The fast tokenizer that transformers finds for a folder or a name, and its padding and end tokens."""
    # About a second to import, and rarely needed.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_or_name)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{_FLAG}={folder_or_name}: no tokenizer found ({reason.rstrip('.')}); {_REMEDY}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{_FLAG}={folder_or_name}: transformers has no fast tokenizer for it; {_REMEDY}")
    return tokenizer.backend_tokenizer, str(tokenizer.pad_token), str(tokenizer.eos_token)
