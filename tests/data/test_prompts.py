"""Prompt templates: the user's file with its faults, our own, and their tokens."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from idgenrec_jax.data.packing import CausalOrder, SupervisedBatch
from idgenrec_jax.data.prompts import PromptTokens
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.data.templates import PromptTemplate, default_templates, load_templates
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.training.segments import may_read

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
        tokens, slot_item, slot_position, numbers = prompt.render_slots(len(history), 4, user_id, max_length)
        assert len(tokens) == len(slot_item) == len(slot_position) <= max_length
        kept = history[len(history) - 1 - max(slot_item) :]
        filled = [
            token if item < 0 else kept[item][position]
            for token, item, position in zip(tokens, slot_item, slot_position, strict=True)
        ]
        assert filled == prompt.render_input(history, user_id, max_length)
        assert (filled, numbers) == prompt.render_numbered(history, user_id, max_length)
        assert all(token == 0 for token, item in zip(tokens, slot_item, strict=True) if item >= 0)
        assert all(position == 0 for position, item in zip(slot_position, slot_item, strict=True) if item < 0)


def tokenizer_that_spells(*words):
    """A small tokenizer of these words and of unknown ones."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")


@pytest.mark.parametrize(
    ("spelled", "separator"),
    [(("a", ".", ";"), ";"), (("a", ".", ","), ","), ((".", "-"), "."), (("a", "-"), "-")],
)
def test_ids_are_kept_apart_by_what_the_tokenizer_can_spell(spelled, separator):
    tokenizer = tokenizer_that_spells("after", *spelled)
    template = PromptTemplate("sequential", "seen", "after {history}", "{target}")
    prompt = PromptTokens(template, tokenizer, "shop")
    assert prompt.separator == tokenizer.encode(separator) and tokenizer.decode(prompt.separator) == separator
    after, between = tokenizer.encode("after"), tokenizer.encode(separator)
    assert prompt.render_input([[50], [51]], None, 9) == [*after, 50, *between, 51, tokenizer.eos_id]


def test_a_tokenizer_without_anything_to_keep_ids_apart():
    template = PromptTemplate("sequential", "seen", "after {history}", "{target}")
    with pytest.raises(InputError, match=r"--config.data.tokenizer: its vocabulary spells none of ; , \| / \. - to"):
        PromptTokens(template, tokenizer_that_spells("after", "a", ":"), "shop")


@pytest.mark.parametrize(
    "name", ["{history}", "{user_id} {target}", "a{b", "</s>", "<pad>", "shop\udcff", "\x00\n", "", "x" * 5000]
)
def test_the_name_of_a_data_set_is_only_text(name):
    template = PromptTemplate("sequential", "seen", "in {dataset} after {history}", "of {dataset} {target}")
    prompt = PromptTokens(template, sample_tokenizer(), name)
    text = name.replace("\udcff", "?")
    assert prompt.pieces == [encode(f"in {text} after"), "history"]
    assert list(prompt.target_prefix) == encode(f"of {text}") and prompt.target_suffix == ()
    assert prompt.texts == (f"in {text} after", f"of {text}".strip())
    rendered = prompt.render_input(IDS[:1], None, 20_000)
    assert rendered == [*encode(f"in {text} after"), *IDS[0], 1] and 0 not in rendered


def test_text_without_a_token_takes_no_place():
    """The vocabulary of one tokenizer has no unknown token: what it cannot spell vanishes."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, ";": 2}, unk_token="none"))
    backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[^;]"), "")
    tokenizer = Tokenizer(backend, pad_token="<pad>", eos_token="</s>")
    prompt = PromptTokens(PromptTemplate("t", "seen", "was {history} ist", "der {target}"), tokenizer, "shop")
    assert prompt.pieces == ["history"] and prompt.separator == [2] and prompt.target_prefix == ()
    assert prompt.render_input([[7], [8]], None, 9) == [7, 2, 8, 1] and prompt.input_length(2) == 2


def test_a_file_of_another_system(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# comment\r\n\r\nt; seen; after {history} comes; {target}\r\n".encode())
    assert load_templates(path) == [PromptTemplate("t", "seen", "after {history} comes", "{target}")]


_ODD = ["\x00", "\r", "\x1b[2J", "\u2028", "\ufeff", "\U0001f600", "{", "}", "{}", "{{history}}", ";", "|", "#", " "]
_ODD += ["{history}", "{target}", "{user_id}", "{dataset}", "seen", "unseen", "</s>", "\ud800", "é", "x" * 100_000]


@pytest.mark.parametrize("seed", range(3))
def test_no_prompt_file_gives_a_traceback(tmp_path, seed):
    rng, path, accepted = np.random.default_rng(seed), tmp_path / "prompts.txt", 0
    for _ in range(100):
        words = ["".join(rng.choice(_ODD, rng.integers(0, 4))) for _ in range(3)]
        line = rng.choice(["t; seen; {}{{history}}; {}{{target}}{}", "t; {}; {}; {}", "{}{}{}"]).format(*words)
        path.write_bytes(line.encode("utf-8", "surrogatepass") + rng.bytes(rng.integers(0, 2) * rng.integers(0, 4)))
        try:
            for template in load_templates(path):
                accepted += len(PromptTokens(template, sample_tokenizer(), "shop").pieces) > 0
        except InputError as error:
            message = str(error)
            assert message.startswith(str(path)) and len(message) < 400 + len(str(path)), message
            assert message.isprintable(), message
    assert accepted, "some of these files must be fine"


def test_a_long_faulty_line_is_refused_at_once(tmp_path):
    path = tmp_path / "prompts.txt"
    start = time.process_time()
    for line in (
        "t; seen; {" + "history" * 200_000 + "}; {target}",
        "t; seen; " + "{dataset}" * 200_000 + "; {target}",
    ):
        path.write_text(line)
        with pytest.raises(InputError, match="unknown field|nothing to predict from"):
            load_templates(path)
    assert time.process_time() - start < 5


WINDOW_TEMPLATES = (
    "after {history} comes",
    "for {user_id} after {history} comes",
    "{user_id} owns {history}",
    "given {history} recommend to {user_id}",
    "{history}",
    "complete {history} {user_id}",
    "what does {user_id} want",
)
LETTERS = [[101], [102, 102], [103, 103, 103], [104]]
"""The IDs of a history; each names its item."""


def window_batch(window, num_targets):
    """One row of one window whose targets have two tokens each, as a batch."""

    def row(values, width=48):
        return np.asarray([[*values, *[0] * (width - len(values))]], np.int32)

    first = len(LETTERS) - num_targets + 1
    targets = row([first + token // 2 for token in range(2 * num_targets)], 8)
    order = CausalOrder(row(window.numbers), row(window.branches), row(window.positions), targets)
    return SupervisedBatch(row(window.tokens), row([1] * len(window.tokens)), targets, np.sign(targets), order=order)


@pytest.mark.parametrize("num_targets", [1, 2, 4])
@pytest.mark.parametrize("text", WINDOW_TEMPLATES)
def test_a_window_holds_the_prompt_of_each_of_its_targets_and_nothing_else(text, num_targets):
    prompt = tokens_of(text)
    # A user ID behind the history may be another for each target.
    user_ids = [[7, 8, 9][: 1 if prompt.user_is_before else 1 + target % 3] for target in range(num_targets)]
    first = len(LETTERS) - num_targets + 1
    window = prompt.render_window(LETTERS, user_ids, first)
    batch = window_batch(window, num_targets)
    order = jax.tree.map(jnp.asarray, batch.order)
    of_targets = np.asarray(may_read(order.target_numbers, order.target_numbers, order))[0, : 2 * num_targets : 2]
    of_targets = of_targets & (batch.prompt_segments > 0)
    of_tokens = np.asarray(may_read(order.numbers, order.branches, order))[0]
    read = np.zeros(len(window.tokens), bool)
    for number, places in enumerate(of_targets, start=first):
        (places,) = np.nonzero(places)
        tokens, items = prompt.render_numbered(LETTERS[:number], user_ids[number - first], 100)
        # The same tokens where they would stand, of which each sees what it would see.
        in_order = places[np.argsort(np.asarray(window.positions)[places])]
        assert [window.tokens[place] for place in in_order] == tokens
        assert [window.positions[place] for place in in_order] == list(range(len(tokens)))
        expected = np.asarray(items)[None, :] <= np.asarray(items)[:, None]
        np.testing.assert_array_equal(of_tokens[np.ix_(in_order, in_order)], expected)
        # None of these sees a token that is not among them.
        others = np.setdiff1d(np.arange(len(window.tokens)), in_order)
        assert not of_tokens[np.ix_(in_order, others)].any()
        read[places] = True
    assert read.all(), "no token is there that no target reads"
    length = prompt.window_lengths(
        *(np.asarray([count]) for count in (sum(map(len, LETTERS)), len(LETTERS), num_targets)),
        (np.asarray([len(user_ids[0])]), np.asarray([sum(map(len, user_ids))])),
    )
    assert length.tolist() == [len(window.tokens)]


def test_a_window_of_a_template_with_a_user_id_needs_one():
    with pytest.raises(InputError, match="set --config.data.user_ids=train_history or use templates without"):
        tokens_of("{user_id} {history}").render_window(IDS, [None] * len(IDS), 1)
