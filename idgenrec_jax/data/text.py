"""Tokenizers: any Hugging Face fast tokenizer behind the few operations that this project needs.

A folder that holds a tokenizer.json is read by the `tokenizers` library alone, which starts in milliseconds; anything
else (a name on the hub, a folder with only a sentencepiece model) goes through transformers. Code that a folder brings
along is never run.
"""

import importlib.util
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from idgenrec_jax.data.words import has_word
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer, expand_home, read_json, write_json

_FLAG = "--config.data.tokenizer"
_REMEDY = "give a folder that holds tokenizer.json, or the name of a Hugging Face model when online"
_ADD_TOKENS = (
    'name tokens of its vocabulary as "pad_token" and "eos_token" in tokenizer_config.json, or add some with '
    'transformers: tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>"}), then '
    "tokenizer.save_pretrained(folder)"
)


class Tokenizer:
    """Text to token lists and back.

    Text is only ever text: "</s>" in an item's description becomes ordinary (or unknown) tokens, never the end of a
    sequence. No end-of-sequence token is added by `encode`. Otherwise tokens are those of transformers; decoded text
    is left as it is, without transformers' cosmetic removal of blanks before punctuation. `spelling.check_spelling`
    finds what a tokenizer cannot write.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad_token: str, eos_token: str) -> None:
        """Wrap a tokenizer of the `tokenizers` library, in which the two tokens become special if they are not.

        Raises ValueError unless both are in the vocabulary and padding, end and unknown tokens are different ones.
        """
        backend.no_truncation()
        backend.no_padding()
        pad_id, eos_id = backend.token_to_id(pad_token), backend.token_to_id(eos_token)
        if pad_id is None or eos_id is None:
            missing = pad_token if pad_id is None else eos_token
            raise ValueError(f"the vocabulary has no token {missing!r}")
        unknown_id = _unknown_id(backend)
        for name, index in (("end-of-sequence", eos_id), ("unknown", unknown_id)):
            if index == pad_id:
                raise ValueError(f"{pad_token!r} is both the padding and the {name} token")
        if eos_id == unknown_id:
            raise ValueError(f"{eos_token!r} is both the end-of-sequence and the unknown token")
        added = backend.get_added_tokens_decoder()
        for index, token in ((pad_id, pad_token), (eos_id, eos_token)):
            if index not in added or not added[index].special:
                backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
        self._backend = backend
        self._pad_token, self._eos_token = pad_token, eos_token
        self._pad_id, self._eos_id, self._unknown_id = pad_id, eos_id, unknown_id

    @classmethod
    def load(cls, folder_or_name: str | Path) -> "Tokenizer":
        """Return the tokenizer in a Hugging Face folder, or that of a model on the hub, by its name.

        Raises:
            InputError: nothing is there, it is no fast tokenizer, or it has no padding or end-of-sequence token of its
                own.
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
                f"{_FLAG}={folder_or_name}: {error}; padding and the end of a sequence need a token of their own: "
                f"{_ADD_TOKENS}"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Return the tokenizer that `to_json` has written, of which padding and end are those of T5."""
        return cls(tokenizers.Tokenizer.from_str(text), pad_token="<pad>", eos_token="</s>")

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return self._pad_id

    @property
    def eos_id(self) -> int:
        """The token that ends a sequence."""
        return self._eos_id

    @property
    def unknown_id(self) -> int | None:
        """The token of what the vocabulary cannot spell; None where it has none, and such characters vanish."""
        return self._unknown_id

    @property
    def unknown_token(self) -> str | None:
        """How the vocabulary spells `unknown_id`."""
        return None if self._unknown_id is None else self._backend.id_to_token(self._unknown_id)

    @cached_property
    def size(self) -> int:
        """One more than the last token, added ones included; a model's embedding table may have more rows."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that stand for no text: padding, end of sequence, unknown, sentinels."""
        added = self._backend.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        return frozenset(special if self.unknown_id is None else special | {self.unknown_id})

    @cached_property
    def _never_in_text(self) -> frozenset[int]:
        """The special tokens that no text may give; what it cannot spell gives unknown ones."""
        return self.special_ids - {self.unknown_id}

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        """Matches the spelling of any special token."""
        spellings = [self._backend.id_to_token(index) for index in sorted(self.special_ids)]
        return re.compile("|".join(re.escape(spelling) for spelling in spellings if spelling))

    @cached_property
    def punctuation_ids(self) -> frozenset[int]:
        """The tokens whose text has no letter, no digit and no mark of one, special ones excluded."""
        ordinary = [index for index in self._backend.get_vocab().values() if index not in self.special_ids]
        texts = self._backend.decode_batch([[index] for index in ordinary])
        # U+FFFD is one byte of a character that spreads over several tokens: it may well be part of a word.
        return frozenset(
            index
            for index, text in zip(ordinary, texts, strict=True)
            if "\ufffd" not in text and not has_word(text)
        )

    def equals(self, other: "Tokenizer") -> bool:
        """Tell whether another tokenizer has the same tokens, special ones included, for every text."""
        mine, its = json.loads(self._backend.to_str()), json.loads(other._backend.to_str())
        # What is put around a text is left to whoever asks: `encode` never does.
        for description in (mine, its):
            description.pop("post_processor", None)
        return mine == its and (self.pad_id, self.eos_id) == (other.pad_id, other.eos_id)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without an end-of-sequence token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode` of every text, computed in parallel threads.

        Raises:
            InputError: the vocabulary has neither the tokens of a text nor an unknown one to stand for them.
        """
        texts = [self._without_special_tokens(text) for text in texts]
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        # The tokenizers library raises plain Exception.
        except Exception as error:
            raise InputError(
                f"{_FLAG}: the tokenizer cannot write every text ({_first_line(error)}); add the unknown token that "
                f"its tokenizer.json names to the vocabulary there, or {_REMEDY}"
            ) from error
        return [
            tokens if self._never_in_text.isdisjoint(tokens) else self._encode_as_text(text)
            for text, tokens in zip(texts, (encoding.ids for encoding in encodings), strict=True)
        ]

    def unknown_parts(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the parts of each text that become unknown tokens, in order."""
        texts = [self._without_special_tokens(text) for text in texts]
        return [
            [
                text[start:end].strip()
                for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if token == self.unknown_id
            ]
            for text, encoding in zip(
                texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True
            )
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of the tokens; special tokens and rows beyond the vocabulary are skipped."""
        return self._backend.decode([int(token) for token in tokens], skip_special_tokens=True)

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Return `decode` of every token sequence, computed in parallel threads."""
        tokens = [[int(token) for token in sequence] for sequence in sequences]
        return self._backend.decode_batch(tokens, skip_special_tokens=True)

    def _without_special_tokens(self, text: str) -> str:
        """The text with a blank inside whatever is spelt like a special token.

        Escaping them in the backend is not enough: T5's vocabulary has them as ordinary pieces as well.
        """
        return self._special_text.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _encode_as_text(self, text: str) -> list[int]:
        """The tokens of a text that has a special token only after normalisation, as fullwidth or capital letters."""
        for _ in range(8):
            encoding = self._backend.encode(text, add_special_tokens=False)
            places = [
                place for token, place in zip(encoding.ids, encoding.offsets, strict=True)
                if token in self._never_in_text
            ]  # fmt: skip
            if not places:
                return encoding.ids
            for start, end in reversed(places):
                span = text[start:end]
                start += len(span) - len(span.lstrip())
                text = f"{text[:start]}{text[start] if end - start > 1 else ''} {text[start + 1 :]}"
        # A normaliser that takes blanks out again.
        return [token for token in encoding.ids if token not in self._never_in_text]

    def to_json(self) -> str:
        """Return what stands in its tokenizer.json."""
        return self._backend.to_str()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load` and transformers' AutoTokenizer read.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"pad_token": self._pad_token, "eos_token": self._eos_token}
        if self.unknown_token is not None:
            config["unk_token"] = self.unknown_token
        with atomic_writer(folder / "tokenizer.json") as file:
            file.write(self.to_json() + "\n")
        write_json(folder / "tokenizer_config.json", config)


def _unknown_id(backend: tokenizers.Tokenizer) -> int | None:
    """The token that the model of a tokenizer writes for what it does not know."""
    model = json.loads(backend.to_str())["model"]
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else backend.token_to_id(token)


def _load_from_file(folder: Path) -> tuple[tokenizers.Tokenizer, str, str]:
    """The tokenizer of folder/tokenizer.json, and the padding and end tokens that its configuration names."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The tokenizers library raises plain Exception for every fault of the file.
    except Exception as error:
        reason = _first_line(error)
        raise InputError(f"{_FLAG}={folder}: tokenizer.json cannot be read ({reason}); {_REMEDY}") from error
    tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = _read_object(folder / name)
        for key in tokens:
            value = config.get(key) or tokens[key]
            value = value.get("content") if isinstance(value, dict) else value
            if not isinstance(value, str):
                raise InputError(f"{folder / name}: field {key} is {config[key]!r}, expected a token; correct the file")
            tokens[key] = value
    return backend, tokens["pad_token"], tokens["eos_token"]


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a tokenizer's folder; empty where there is no such file."""
    if not path.is_file():
        return {}
    config = read_json(path, remedy="save the tokenizer again")
    if not isinstance(config, dict):
        raise InputError(f"{path}: found a JSON {type(config).__name__}, expected an object; save the tokenizer again")
    return config


def _load_with_transformers(folder_or_name: str) -> tuple[tokenizers.Tokenizer, str, str]:
    """The fast tokenizer that transformers finds for a folder or a name, and its padding and end tokens."""
    # About a second to import, and rarely needed.
    from transformers import AutoTokenizer, T5Tokenizer

    folder = Path(folder_or_name)
    loader: type[AutoTokenizer | T5Tokenizer] = AutoTokenizer
    if (folder / "spiece.model").is_file():
        if importlib.util.find_spec("sentencepiece") is None:
            raise InputError(f"{_FLAG}={folder}: reading spiece.model needs sentencepiece; pip install sentencepiece")
        named = [_read_object(folder / name) for name in ("config.json", "tokenizer_config.json")]
        if not any({"model_type", "tokenizer_class"} & config.keys() for config in named):
            # Nothing says what it is, and this project is about T5.
            loader = T5Tokenizer
    try:
        tokenizer = loader.from_pretrained(folder_or_name, trust_remote_code=False)
    # What a folder may hold is without end, and so is what transformers raises for it.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{_FLAG}={folder_or_name}: its tokenizer is code of its own, which is never run here; load it with "
                f"transformers where you trust it and call save_pretrained, which writes tokenizer.json for a fast "
                f"tokenizer, or {_REMEDY}"
            ) from error
        reason = _first_line(error).rstrip(".")
        raise InputError(f"{_FLAG}={folder_or_name}: no tokenizer found ({reason}); {_REMEDY}") from error
    if not tokenizer.is_fast:
        raise InputError(
            f"{_FLAG}={folder_or_name}: {type(tokenizer).__name__} is no fast tokenizer, and transformers has none for "
            f"this model; use a T5 or mT5 with its own tokenizer, or {_REMEDY}"
        )
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise InputError(f"{_FLAG}={folder_or_name}: the tokenizer names no {name}; {_ADD_TOKENS}")
    return tokenizer.backend_tokenizer, str(tokenizer.pad_token), str(tokenizer.eos_token)


def _first_line(error: Exception) -> str:
    """The first line of an error's text that is not blank; the error's kind where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
