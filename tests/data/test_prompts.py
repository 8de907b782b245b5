"""Prompt templates: the user's file with its faults, our own, and their tokens."""

import pytest

from idgenrec_jax.data.prompts import PromptTemplate, PromptTokens, default_templates, load_templates
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.errors import InputError

IDS = [[11, 12, 13], [21, 22], [31], [41, 42, 43, 44]]


def tokens_of(input_text, target_text="{target}"):
    return PromptTokens(PromptTemplate("sequential", "seen", input_text, target_text), sample_tokenizer(), "sample")


def encode(text):
    return sample_tokenizer().encode(text)


def test_a_prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(
        "# task; group; input; target\n"
        "sequential; seen; after {history} comes; {target}\n\n"
        "straightforward; unseen; what does {user_id} want in {dataset}; item {target}\n"
    )
    first, second = load_templates(path)
    assert first == PromptTemplate("sequential", "seen", "after {history} comes", "{target}")
    assert second.fields == {"user_id", "dataset", "target"} and second.group == "unseen"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("t; seen; {history}", "3 parts where 4 are expected; write task; seen|unseen; input template; target t"),
        ("t; seen; {history}; {target}; x", "5 parts where 4 are expected; write task; seen|unseen; "),
        ("t; train; {history}; {target}", "group is 'train'; write seen (trained on) or unseen (only evaluated)"),
        ("t; seen; {histori}; {target}", "unknown field {histori}; did you mean {history}? Fields are {user_id}, "),
        ("t; seen; {history} {}; {target}", "unknown field {}; did you mean {"),
        ("t; seen; {history}; {targets}", "unknown field {targets}; did you mean {target}?"),
        ("t; seen; {history} {history}; {target}", "field {history} stands twice in '{history} {history}'; use"),
        ("t; seen; {history; {target}", "a brace without its partner in '{history'; braces only go around fields"),
        ("t; seen; {history} {target}; {target}", "the input template contains {target}: the model would be told"),
        ("t; seen; what next in {dataset}; {target}", "the input template has neither {history} nor {user_id}: "),
        ("t; seen; {history}; item", "the target template has no {target}; it must contain the item to predict"),
        ("t; seen; {history}; {history} {target}", "the target template contains {history}; only {target}"),
        ("t; seen; {history}; {user_id} {target}", "the target template contains {user_id}; only {target}"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.txt"
    path.write_text(f"t; seen; {{history}}; {{target}}\n{line}\n")
    with pytest.raises(InputError) as caught:
        load_templates(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_a_file_without_templates_to_train_with(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("t; unseen; {history}; {target}\n")
    with pytest.raises(InputError, match="no template is marked seen.*mark at least one"):
        load_templates(path)
    path.write_text("")
    with pytest.raises(InputError, match="the file is empty; write one template a line: task; seen|unseen"):
        load_templates(path)
    with pytest.raises(InputError, match="no such file; write one template a line"):
        load_templates(tmp_path / "none.txt")


@pytest.mark.parametrize("with_user_ids", [False, True])
def test_our_own_templates(with_user_ids):
    templates = default_templates(with_user_ids)
    assert [template.group for template in templates] == ["seen"] * 10 + ["unseen"] * 2
    assert len({template.input_text for template in templates}) == 12
    for template in templates:
        assert ("user_id" in template.fields) == with_user_ids and {"history", "target"} <= template.fields
        prompt = PromptTokens(template, sample_tokenizer(), load_sample().name)
        rendered = prompt.render_input([], [] if with_user_ids else None, 100)
        assert len(rendered) <= 8, "prompt length costs time"
        assert 2 not in rendered, "the sample's tokenizer knows every word of our templates"


def test_rendering_joins_ids_with_separators():
    prompt = tokens_of("{dataset} shopper {user_id} chose {history} then")
    separator = encode("a; a")[1:-1]
    expected = [*encode("sample shopper"), 7, 8, *encode("chose"), 11, 12, 13, *separator, 21, 22, *encode("then"), 1]
    assert prompt.render_input(IDS[:2], [7, 8], 100) == expected
    assert prompt.target_prefix == () and prompt.target_suffix == ()


def test_text_around_the_target():
    prompt = tokens_of("{history}", "an item of {dataset} : {target} .")
    assert list(prompt.target_prefix) == encode("an item of sample :") and list(prompt.target_suffix) == encode(".")


def test_the_oldest_items_are_dropped_first():
    prompt = tokens_of("after {history} comes")
    full = prompt.render_input(IDS, None, 100)
    for length in range(len(encode("after comes")) + 1, len(full) + 1):
        rendered = prompt.render_input(IDS, None, length)
        kept = [prompt.render_input(IDS[start:], None, 100) for start in range(len(IDS) + 1)]
        assert rendered == next(candidate for candidate in kept if len(candidate) <= length)
    assert prompt.render_input(IDS, None, len(full)) == full


def test_a_template_that_does_not_fit_even_without_history():
    prompt = tokens_of("suggest to {user_id} what follows {history}")
    shortest = len(encode("suggest to what follows")) + 3
    assert len(prompt.render_input(IDS, [7, 8], shortest)) == shortest
    for render in (
        lambda: prompt.render_input(IDS, [7, 8], shortest - 1),
        lambda: prompt.render_slots(3, 2, [7, 8], shortest - 1),
    ):
        with pytest.raises(InputError) as caught:
            render()
        message = str(caught.value)
        assert message.startswith(f"--config.data.max_prompt_length={shortest - 1}: prompt template 'suggest to ")
        assert f"takes {shortest} tokens before any history; raise it or shorten the template" in message


def test_a_template_with_a_user_id_needs_one():
    with pytest.raises(InputError, match="set --config.data.user_ids=train_history or use templates without"):
        tokens_of("{user_id} {history}").render_input(IDS, None, 100)


def test_a_template_without_history_ignores_it():
    prompt = tokens_of("what does {user_id} want")
    assert prompt.render_input(IDS, [7], 100) == prompt.render_input([], [7], 100)
    assert prompt.render_slots(4, 3, [7], 100)[1] == [-1] * len(prompt.render_input([], [7], 100))


@pytest.mark.parametrize("max_length", [5, 9, 14, 19, 100])
@pytest.mark.parametrize("with_user_ids", [False, True])
def test_slots_filled_with_ids_give_the_discrete_prompt(with_user_ids, max_length):
    history = [[10 * item + position for position in range(4)] for item in range(5)]
    user_id = [7] if with_user_ids else None
    for template in default_templates(with_user_ids)[:10]:
        prompt = PromptTokens(template, sample_tokenizer(), "sample")
        if len(prompt.render_input([], user_id, 100)) > max_length:
            continue
        tokens, slot_item, slot_position = prompt.render_slots(len(history), 4, user_id, max_length)
        assert len(tokens) == len(slot_item) == len(slot_position) <= max_length
        kept = history[len(history) - 1 - max(slot_item) :]
        filled = [
            token if item < 0 else kept[item][position]
            for token, item, position in zip(tokens, slot_item, slot_position, strict=True)
        ]
        assert filled == prompt.render_input(history, user_id, max_length)
        assert all(token == 0 for token, item in zip(tokens, slot_item, strict=True) if item >= 0)
        assert all(position == 0 for position, item in zip(slot_position, slot_item, strict=True) if item < 0)
