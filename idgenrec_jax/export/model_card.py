"""The model cards of an export: what the model is, from which data, how it was measured, how to use it."""

from collections.abc import Sequence

import numpy as np

from idgenrec_jax import run_files
from idgenrec_jax.data.prompts import SEPARATORS
from idgenrec_jax.data.renderer import PromptRenderer
from idgenrec_jax.evaluation.metrics import results_table
from idgenrec_jax.export.tokenizer_files import ExportedTokenizer
from idgenrec_jax.trained_run import RunIds, TrainedRun
from idgenrec_jax.workdir import described_results, described_run, protocol

COUNT = 10
"""Items that the card's code prints, where there are as many."""
# Byte-level tokenizers take a blank before an ID for a part of it; elsewhere a blank reads best.
_SEPARATORS = tuple(f"{separator}{blank}" for separator in SEPARATORS for blank in (" ", ""))
_COMPARED_HISTORIES = 1000

_HEAD = """---
library_name: transformers
pipeline_tag: {task}
tags: [recommendation, generative-retrieval, textual-ids, t5]
---

# {title}

{summary}

- data: {name}, {users} users, {items} items, {interactions} interactions
- trained with IDGenRec-JAX (method: IDGenRec, SIGIR 2024, arXiv 2403.19021); every field of its configuration is in
  `../MANIFEST.json`
- the state with the best validation NDCG@10: round {round}, after its {phase} phase

"""

_RECOMMENDER = """## Use

Prompts follow the template

```
{template}
```

where `{{history}}` is the IDs of the user's items, oldest first, {joined}. The answer is held to the IDs of the
catalogue, in `../item_ids.jsonl`.

{notes}```python
{modules}
from transformers import {imports}

model = T5ForConditionalGeneration.from_pretrained(".")
items = [json.loads(line) for line in open("../item_ids.jsonl", encoding="utf-8")]
allowed = {{}}
for item in items:
    for length, token in enumerate(item["target_tokens"]):
        allowed.setdefault(tuple(item["target_tokens"][:length]), set()).add(token)
name_of = {{tuple(item["target_tokens"]): item["item"] for item in items}}

{inputs}
beams = {beams}
found = model.generate(
    **inputs,
    num_beams=beams, num_return_sequences=beams, length_penalty={penalty}, do_sample=False,{renormalize}
    prefix_allowed_tokens_fn=lambda _, tokens: sorted(allowed.get(tuple(tokens.tolist()[1:]), {{{eos}}})),
)
names = []
for tokens in found.tolist():
    written = tokens[1 : tokens.index({eos}, 1) + 1] if {eos} in tokens[1:] else tokens[1:]
    name = name_of.get(tuple(written))
    # With few items in the catalogue, beams are left over that repeat an item or write none.
    if name is not None and name not in {left_out}:
        names.append(name)
print("\\n".join(names[:{count}]))
```
"""

_TEXT_INPUTS = """tokenizer = AutoTokenizer.from_pretrained(".")
prompt = {prompt!r}
inputs = tokenizer(prompt, return_tensors="pt")"""

_PIECE_INPUTS = """tokens_of = {{item["item"]: item["tokens"] for item in items}}
history = {history!r}
prompt = {before}
for number, name in enumerate(history):
    prompt += {separator} * (number > 0) + tokens_of[name]
prompt += {after}
inputs = {{"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}}"""

_CAUSAL_INPUTS = """tokens_of = {{item["item"]: item["tokens"] for item in items}}
history = {history!r}
# The tokens, and of each the number of its item: 0 before the history, 1 for the first item, and so on.
prompt = {before}
numbers = [0] * len(prompt)
for number, name in enumerate(history, start=1):
    prompt += {separator} * (number > 1) + tokens_of[name]
    numbers += [number] * (len(prompt) - len(numbers))
prompt += {after}
numbers = torch.tensor([numbers + [len(history) + 1] * (len(prompt) - len(numbers))])
# A token sees those of its own number and of lower ones. [batch, 1, tokens, tokens]
sees = numbers[:, None, None, :] <= numbers[:, None, :, None]
hooks = []
if int(transformers.__version__.split(".")[0]) < 5:
    # The T5 of transformers 4 takes no such mask. Its blocks do, as what is added to the logits of attention.
    added = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)
    for block in model.encoder.block:
        hooks.append(block.register_forward_pre_hook(lambda _, given: (given[0], added, *given[2:])))
    sees = None
encoded = model.encoder(input_ids=torch.tensor([prompt]), attention_mask=sees)
for hook in hooks:
    hook.remove()
inputs = {{"encoder_outputs": encoded, "attention_mask": torch.ones_like(numbers)}}"""

_CATALOGUE_NOTE = """**Softmax over the catalogue.** The model was trained with a softmax over the tokens that continue
an ID of the catalogue, not over its whole vocabulary. `renormalize_logits=True` makes it, behind the mask. The score of
an item is then its log-probability.
"""

_CAUSAL_NOTE = """**Causal history.** In training no item of a history saw a later one. The code gives the encoder the
mask that says so. Without it the model reads what it never learned to read.
"""

_SEEN_NOTE = """**Items of the history are left out.** The code asks for as many more beams, and drops these items from
what is found. So all scores are what they would be with them.
"""

_SEARCH_NOTE = """**Search.** The metrics below are of exact scores of all items. The code searches with beams, which
may miss an item.
"""

_GENERATOR = """## Use

It writes an ID for an item from the item's text, the words that tell it apart. To get unique IDs for a whole catalogue,
decode by Algorithm 1 of the paper, as `python -m launch.generate_ids --id_generator=FOLDER` of IDGenRec-JAX does.

```python
from transformers import AutoTokenizer, T5ForConditionalGeneration

model = T5ForConditionalGeneration.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
text = {example!r}
print(tokenizer.decode(model.generate(**tokenizer(text, return_tensors="pt"))[0], skip_special_tokens=True))
```
"""

_METRICS = """
## Metrics

{protocol}

```
{table}
```
"""


def recommender_card(
    run: TrainedRun,
    ids: RunIds,
    renderer: PromptRenderer,
    tokenizer: ExportedTokenizer,
    *,
    history: Sequence[int],
) -> str:
    """Return the card of the recommender in Markdown; its example is a user with the items `history`.

    The example's prompt is a text where the exported `tokenizer` makes the tokens of it that training had, for this and
    for many other histories. Elsewhere the card's code joins the tokens of the IDs itself.
    """
    evaluation = run.config.evaluation
    history = _that_fits(renderer, history)
    separator = _text_separator(run, ids, renderer, tokenizer, [*_some_histories(renderer), history])
    names = [ids.items.items[item] for item in history]
    removes = evaluation.seen_items == "remove"
    if separator is None or run.config.is_causal:
        joined = f"the tokens {ids.template.separator} between them"
        imports = "T5ForConditionalGeneration"
        before, after = _sides(ids, renderer)
        form = _CAUSAL_INPUTS if run.config.is_causal else _PIECE_INPUTS
        inputs = form.format(history=names, separator=ids.template.separator, before=before, after=after)
    else:
        joined = f"with `{separator}` between them"
        imports = "AutoTokenizer, T5ForConditionalGeneration"
        inputs = _TEXT_INPUTS.format(prompt=_prompt_text(run, ids, history, separator))
        if removes:
            inputs = f"history = {names!r}\n{inputs}"
    notes = {
        _CATALOGUE_NOTE: run.config.over_catalogue,
        _CAUSAL_NOTE: run.config.is_causal,
        _SEEN_NOTE: removes,
        _SEARCH_NOTE: evaluation.search == "exact",
    }
    use = _RECOMMENDER.format(
        template=_template_text(run, ids),
        joined=joined,
        notes="".join(f"{note}\n" for note, is_true in notes.items() if is_true),
        modules="import json, torch, transformers" if run.config.is_causal else "import json, torch",
        imports=imports,
        inputs=inputs,
        beams=f"{evaluation.num_beams} + len(set(history))" if removes else evaluation.num_beams,
        count=min(COUNT, evaluation.num_beams, len(ids.items)),
        penalty=evaluation.length_penalty,
        renormalize="\n    renormalize_logits=True," if run.config.over_catalogue else "",
        left_out="names + history" if removes else "names",
        eos=renderer.eos_id,
    )
    summary = "It reads a prompt with the textual IDs of a user's items and writes the ID of the next one."
    return _head(run, "text2text-generation", "Recommender", summary) + use + _metrics(run)


def id_generator_card(run: TrainedRun) -> str:
    """Return the card of the ID generator in Markdown."""
    summary = "It writes a short, readable textual ID for an item from the item's text."
    example = "title: Example Kettle, 1.7 litres; brand: Example"
    head = _head(run, "text2text-generation", "ID generator", summary)
    return head + _GENERATOR.format(example=example) + _metrics(run)


def _template_text(run: TrainedRun, ids: RunIds) -> str:
    return ids.template.template.input_text.replace("{dataset}", run.data_name)


def _prompt_text(run: TrainedRun, ids: RunIds, history: Sequence[int], separator: str) -> str:
    """The prompt of the first user, as a text."""
    user = "" if ids.users is None else ids.users.texts[0]
    texts = separator.join(ids.items.texts[item] for item in history)
    return _template_text(run, ids).replace("{user_id}", user).replace("{history}", texts)


def _sides(ids: RunIds, renderer: PromptRenderer) -> tuple[list[int], list[int]]:
    """The tokens of the first user's prompt before and behind its history, EOS included."""
    user = [] if renderer.user_ids is None else list(renderer.user_ids[0])
    sides: tuple[list[int], list[int]] = [], []
    is_behind = False
    for piece in ids.template.pieces:
        if piece == "history":
            is_behind = True
        else:
            sides[is_behind].extend(user if isinstance(piece, str) else piece)
    sides[is_behind].append(renderer.eos_id)
    return sides


def _text_separator(
    run: TrainedRun,
    ids: RunIds,
    renderer: PromptRenderer,
    tokenizer: ExportedTokenizer,
    histories: Sequence[Sequence[int]],
) -> str | None:
    """What to put between the texts of IDs so that prompts have the tokens of training; None where nothing does."""
    for separator in _SEPARATORS:
        if all(
            tokenizer.encode(_prompt_text(run, ids, history, separator))
            == renderer.prompt(0, np.asarray(history, np.int32), 0)
            for history in histories
        ):
            return separator
    return None


def _that_fits(renderer: PromptRenderer, history: Sequence[int]) -> list[int]:
    """The newest items of a history, those that a prompt holds."""
    kept = list(history[-renderer.max_history :])
    whole = renderer.prompt(0, np.asarray(kept, np.int32), 0)
    while kept and renderer.prompt(0, np.asarray(kept[1:], np.int32), 0) == whole:
        kept = kept[1:]
    return kept


def _some_histories(renderer: PromptRenderer) -> list[list[int]]:
    """Histories of all lengths that together have each item of the catalogue, or of its beginning where it is large."""
    items, length = len(renderer.item_ids), renderer.max_history
    starts = range(0, items, length)[:_COMPARED_HISTORIES]
    longest = [list(range(start, min(items, start + length))) for start in starts]
    shorter = [longest[number % len(longest)][:number] for number in range(1, length)]
    return [_that_fits(renderer, history) for history in [*longest, *shorter]]


def _head(run: TrainedRun, task: str, title: str, summary: str) -> str:
    data = described_run(run.workdir)["data"]
    return _HEAD.format(
        task=task,
        title=f"{title} for {data['name']}",
        summary=summary,
        round=run.selected["round"],
        phase=run.selected["phase"],
        **{name: data[name] for name in ("name", "users", "items", "interactions")},
    )


def _metrics(run: TrainedRun) -> str:
    """The section on metrics; empty for a run that is not finished."""
    if not (run.workdir / run_files.RESULTS).exists():
        return ""
    measured = protocol(run.config, run.split)
    leak = "leak into" if measured["leaks_held_out_items"] else "leave no trace in"
    words = (
        f"{measured['split']}; {measured['ranking']} ranked by {measured['search']} search, items seen before: "
        f"{measured['seen_items']}; {measured['num_beams']} beams, length penalty {measured['length_penalty']}; "
        f"softmax over the {measured['softmax']}; history: {measured['history']}; selection: {measured['selection']}; "
        f"user IDs: {measured['user_ids']}. Held-out items {leak} the prompts."
    )
    return _METRICS.format(protocol=words, table=results_table(described_results(run.workdir)))
