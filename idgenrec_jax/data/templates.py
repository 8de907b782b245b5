"""Prompt templates: our own, and a user's file of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from idgenrec_jax.data.lines import named, read_lines, shown
from idgenrec_jax.errors import InputError, nearest

FIELDS = ("user_id", "history", "target", "dataset")
GROUPS = ("seen", "unseen")

FIELD = re.compile(r"\{([^{}]*)\}")
_LAYOUT = "task; seen|unseen; input template; target template"
_OWN_TEMPLATES = (
    # (group, input without a user ID, input with one)
    ("seen", "after {history} comes", "for {user_id} after {history} comes"),
    ("seen", "bought {history} and next", "{user_id} bought {history} and next"),
    ("seen", "history {history} predict", "user {user_id} history {history} predict"),
    ("seen", "{history} leads to", "{user_id} chose {history} leading to"),
    ("seen", "given {history} recommend", "given {history} recommend to {user_id}"),
    ("seen", "complete the list {history}", "complete the list of {user_id} {history}"),
    ("seen", "who owns {history} wants", "{user_id} owns {history} and wants"),
    ("seen", "{dataset} order {history} then", "{dataset} order of {user_id} {history} then"),
    ("seen", "continue {history}", "continue for {user_id} {history}"),
    ("seen", "suggest what follows {history}", "suggest to {user_id} what follows {history}"),
    ("unseen", "so far {history} one more", "{user_id} so far {history} one more"),
    ("unseen", "pick an item to go with {history}", "pick an item for {user_id} to go with {history}"),
)


@dataclass(frozen=True)
class PromptTemplate:
    """What the recommender reads (`input_text`) and writes (`target_text`), with fields in braces.

    Fields are {user_id}, {history}, {target} and {dataset}. `group` is "seen" (trained on) or "unseen" (evaluated).

    Raises:
        ValueError: the template breaks a rule of `_fault`; the message says which and what to do.
    """

    task: str
    group: str
    input_text: str
    target_text: str

    def __post_init__(self) -> None:
        fault = _fault(self.group, self.input_text, self.target_text)
        if fault:
            raise ValueError(fault)

    @property
    def fields(self) -> frozenset[str]:
        """The names of all fields in the input and the target text."""
        return frozenset(FIELD.findall(self.input_text) + FIELD.findall(self.target_text))


def default_templates(with_user_ids: bool, *, user_is_behind: bool = False) -> list[PromptTemplate]:
    """Return our own ten seen and two unseen templates; short, because every token of a prompt costs time.

    Those with a user ID have it where the language wants it, or always behind the history.
    """
    texts = [
        (group, without if not with_user_ids else f"{without} for {{user_id}}" if user_is_behind else with_user)
        for group, without, with_user in _OWN_TEMPLATES
    ]
    return [PromptTemplate("sequential", group, text, "{target}") for group, text in texts]


def template_texts(templates: Iterable[PromptTemplate]) -> list[str]:
    """Return the input and target texts of templates, a blank in the place of every field."""
    return [FIELD.sub(" ", text) for one in templates for text in (one.input_text, one.target_text)]


def load_templates(path: str | Path) -> list[PromptTemplate]:
    """Return the templates of a prompt file, in order.

    A line is `task; seen|unseen; input template; target template`, or a comment that starts with `#`.

    Raises:
        InputError: a line has not four parts, or breaks a rule of `PromptTemplate`; it is named with its file. Or no
            template is "seen".
    """
    templates = []
    for number, line in read_lines(path, f"write one template a line: {_LAYOUT}"):
        if line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(";")]
        if len(parts) != 4:
            raise InputError(f"{path}:{number}: {len(parts)} parts where 4 are expected; write {_LAYOUT}")
        try:
            templates.append(PromptTemplate(*parts))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if not any(template.group == "seen" for template in templates):
        raise InputError(f"{path}: no template is marked seen, so there is none to train with; mark at least one")
    return templates


def _fault(group: str, input_text: str, target_text: str) -> str | None:
    """What is wrong with a template and how to mend it, or None."""
    if group not in GROUPS:
        return f"group is {shown(group)}; write seen (trained on) or unseen (only evaluated)"
    for text in (input_text, target_text):
        names = FIELD.findall(text)
        for name in names:
            if name not in FIELDS:
                meant, known = nearest(name, FIELDS), ", ".join(f"{{{field}}}" for field in FIELDS)
                return f"unknown field {{{named(name)}}}; did you mean {{{meant}}}? Fields are {known}"
            if name != "dataset" and names.count(name) > 1:
                return f"field {{{name}}} stands twice in {shown(text)}; use it once"
        if "{" in FIELD.sub("", text) or "}" in FIELD.sub("", text):
            return f"a brace without its partner in {shown(text)}; braces only go around fields"
    inputs, targets = set(FIELD.findall(input_text)), set(FIELD.findall(target_text))
    if "target" in inputs:
        return "the input template contains {target}: the model would be told the answer; remove it"
    if not inputs & {"history", "user_id"}:
        return "the input template has neither {history} nor {user_id}: nothing to predict from; add one"
    if "target" not in targets:
        return "the target template has no {target}; it must contain the item to predict"
    for name in ("history", "user_id"):
        if name in targets:
            return f"the target template contains {{{name}}}; only {{target}} and {{dataset}} may stand there"
    return None
