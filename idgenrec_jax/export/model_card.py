"""The model cards of an export: what the model is, from which data, how it was measured, how to use it."""

from pathlib import Path
from typing import Any

from idgenrec_jax import run_files
from idgenrec_jax.evaluation.metrics import metrics_table
from idgenrec_jax.files import read_json
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.recommender import TrainedRun
from idgenrec_jax.workdir import described_run

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

where `{{history}}` is the IDs of the user's items, oldest first, separated by `;`. The answer is held to the IDs of the
catalogue, in `../item_ids.jsonl`:

```python
import json, torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

model = T5ForConditionalGeneration.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
items = [json.loads(line) for line in open("../item_ids.jsonl", encoding="utf-8")]
allowed = {{}}
for item in items:
    for length, token in enumerate(item["target_tokens"]):
        allowed.setdefault(tuple(item["target_tokens"][:length]), set()).add(token)
name_of = {{tuple(item["target_tokens"]): item["item"] for item in items}}

prompt = {example!r}
found = model.generate(
    **tokenizer(prompt, return_tensors="pt"),
    num_beams={beams}, num_return_sequences=10, length_penalty={penalty}, do_sample=False,
    prefix_allowed_tokens_fn=lambda _, tokens: sorted(allowed.get(tuple(tokens.tolist()[1:]), {{{eos}}})),
)
for tokens in found.tolist():
    written = tokens[1 : tokens.index({eos}, 1) + 1] if {eos} in tokens[1:] else tokens[1:]
    print(name_of.get(tuple(written)))
```
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


def recommender_card(run: TrainedRun, ids: RoundIds, workdir: Path) -> str:
    """Return the card of the recommender in Markdown."""
    config = run.config
    renderer = ids.renderer(max_history=config.data.max_history, evaluation=True)
    (template,) = renderer.templates
    items = renderer.dataset.training_sequence(0)[-config.data.max_history :]
    history = "; ".join(ids.table.texts[item] for item in items)
    text = template.template.input_text.replace("{dataset}", renderer.dataset.name)
    user = "" if renderer.user_ids is None else run.tokenizer.decode(list(renderer.user_ids[0]))
    use = _RECOMMENDER.format(
        template=text,
        example=text.replace("{history}", history).replace("{user_id}", user),
        beams=config.evaluation.num_beams,
        penalty=config.evaluation.length_penalty,
        eos=renderer.eos_id,
    )
    summary = "It reads a prompt with the textual IDs of a user's items and writes the ID of the next one."
    return _head(run, workdir, "text2text-generation", "Recommender", summary) + use + _metrics(workdir)


def id_generator_card(run: TrainedRun, workdir: Path) -> str:
    """Return the card of the ID generator in Markdown."""
    summary = "It writes a short, readable textual ID for an item from the item's text."
    example = "title: Example Kettle, 1.7 litres; brand: Example"
    head = _head(run, workdir, "text2text-generation", "ID generator", summary)
    return head + _GENERATOR.format(example=example) + _metrics(workdir)


def _head(run: TrainedRun, workdir: Path, task: str, title: str, summary: str) -> str:
    data = described_run(workdir)["data"]
    return _HEAD.format(
        task=task,
        title=f"{title} for {data['name']}",
        summary=summary,
        round=run.selected["round"],
        phase=run.selected["phase"],
        **{name: data[name] for name in ("name", "users", "items", "interactions")},
    )


def _metrics(workdir: Path) -> str:
    """The section on metrics; empty for a run that is not finished."""
    if not (workdir / run_files.RESULTS).exists():
        return ""
    results: dict[str, Any] = read_json(workdir / run_files.RESULTS, remedy="delete the workdir and train again")
    protocol = results["protocol"]
    leak = "leak into" if protocol["leaks_held_out_items"] else "leave no trace in"
    words = (
        f"{protocol['split']}; {protocol['ranking']} ranked; {protocol['num_beams']} beams, length penalty "
        f"{protocol['length_penalty']}; selection: {protocol['selection']}; user IDs: {protocol['user_ids']}. Held-out "
        f"items {leak} the prompts."
    )
    rows = {"validation": results["validation"], "test": results["test"]}
    rows |= {f"popularity, {split}": results["popularity"][split] for split in ("validation", "test")}
    return _METRICS.format(protocol=words, table=metrics_table(rows, list(results["test"])))
