"""docs/contributing.md: what its files and lines add works where a user meets it, each beside what is there already."""

import ast
import importlib
import re
import sys

import documentation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documentation import ROOT
from flax import nnx

from idgenrec_jax.config import Config
from idgenrec_jax.data.dataset import Dataset, load_dataset
from idgenrec_jax.data.packing import SupervisedBatch
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.sources import SOURCES, preparation
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.metrics import METRICS, Metric, ranking_metrics
from idgenrec_jax.evaluation.ranker import Ranking
from idgenrec_jax.ids.schemes import SCHEMES
from idgenrec_jax.inputs import own_ids
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.training.losses import SUPERVISED_LOSSES
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.phases import RECOMMENDER
from idgenrec_jax.training.recommender_loss import recommender_loss
from idgenrec_jax.training.run_steps import make_steps
from idgenrec_jax.training.steps import create_train_state, seed_key

PAGE = ROOT / "docs" / "contributing.md"
FILES = {
    "a metric": "idgenrec_jax/evaluation/rank_biased_precision.py",
    "a raw format": "idgenrec_jax/data/sources/purchases.py",
    "an ID scheme": "idgenrec_jax/ids/first_words.py",
    "a loss": "idgenrec_jax/training/per_target_loss.py",
}
TABLES = {
    "a metric": ("idgenrec_jax/evaluation/metrics.py", "METRICS"),
    "a raw format": ("idgenrec_jax/data/sources/__init__.py", "SOURCES"),
    "an ID scheme": ("idgenrec_jax/ids/schemes.py", "SCHEMES"),
    "a loss": ("idgenrec_jax/training/losses.py", "SUPERVISED_LOSSES"),
}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The page's file of a kind, as a module of the package that lies in another folder."""

    def add(kind):
        path = FILES[kind]
        package = importlib.import_module(path.rpartition("/")[0].replace("/", "."))
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(documentation.files()[path])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str((tmp_path / path).parent)])
        name = path.removesuffix(".py").replace("/", ".")
        module = importlib.import_module(name)
        # An import makes a module an attribute of its package, too.
        monkeypatch.delattr(package, name.rpartition(".")[2])
        monkeypatch.delitem(sys.modules, name)
        return module

    return add


def line_of(kind):
    """The page's line for the table of a kind; it stands alone in its block."""
    lines = [text for text in documentation.blocks(PAGE, "") if text.startswith("    ") and text.count("\n") == 1]
    assert len(lines) == len(FILES)
    return lines[list(FILES).index(kind)]


def entry_of(kind, **names):
    """The name and the value of the page's line for a dictionary."""
    ((name, value),) = eval("{" + line_of(kind) + "}", names).items()
    return name, value


@pytest.mark.parametrize("kind", FILES)
def test_the_line_stands_in_its_table_like_those_beside_it(kind):
    path, table = TABLES[kind]
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines(keepends=True)
    alike = re.compile(line_of(kind).partition('"')[0] + r'"\w+"' + ("" if kind == "a raw format" else ":.*") + ",\n")
    last = max(number for number, line in enumerate(lines) if alike.fullmatch(line))
    tree = ast.parse("".join([*lines[: last + 1], line_of(kind), *lines[last + 1 :]]))
    (made,) = (node for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == table)
    assert line_of(kind).split('"')[1] in {getattr(node, "value", "") for node in ast.walk(made)}


@pytest.mark.parametrize("kind", FILES)
def test_the_file_does_not_import_the_table_that_imports_it(kind):
    imports = ast.walk(ast.parse(documentation.files()[FILES[kind]]))
    origins = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert TABLES[kind][0].removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") not in origins


def test_a_metric_is_in_every_ranking(added, monkeypatch):
    metric = added("a metric").rank_biased_precision
    monkeypatch.setitem(METRICS, *entry_of("a metric", Metric=Metric, rank_biased_precision=metric))
    # (1 - .8) * .8**rank: .2 in the first place, .128 in the third, .2 * .8**7 in the eighth.
    found = ranking_metrics(np.array([0, 2, -1, 7]), num_results=10)
    assert found["rbp@5"] == pytest.approx((0.2 + 0.128) / 4)
    assert found["rbp@10"] == pytest.approx((0.2 + 0.128 + 0.2 * 0.2097152) / 4)
    assert "rbp@20" not in found and found["hr@5"] == 0.5

    items = np.array([[4, 3, 2, 1, 0], [0, 1, 2, 3, 4]], np.int32)
    ranking = Ranking(
        users=np.array([0, 1], np.int32),
        targets=np.array([4, 2], np.int32),
        items=items,
        scores=-np.arange(5, dtype=np.float32) * np.ones((2, 1), np.float32),
        loss=0.0,
    )
    assert ranking.metrics()["rbp@5"] == pytest.approx((0.2 + 0.128) / 2)


def test_a_raw_format_becomes_a_data_folder(added, tmp_path, monkeypatch):
    module = added("a raw format")
    (name,) = eval(f"({line_of('a raw format')})", {})
    assert name == module.__name__.rpartition(".")[2]
    monkeypatch.setitem(SOURCES, name, module.SOURCE)
    raw = tmp_path / "shop"
    raw.mkdir()
    lines = ['ann,kettle,30,"Kettle, red"', "ann,mug,10,Mug", "bob,mug,7,Mug", "ann,tray,20,Tray", "ann,mug,10,Mug"]
    (raw / "purchases.csv").write_text("\n".join(lines) + "\n")
    everything = preparation.Filters(user_core=1, item_core=1)
    made = preparation.prepare("auto", [raw], tmp_path / "data", everything)
    assert (made.source, made.users, made.items, made.interactions, made.exact_repeats) == (name, 2, 3, 4, 1)
    dataset = load_dataset(tmp_path / "data")
    found = {
        user: [dataset.items[item] for item in sequence]
        for user, sequence in zip(dataset.users, dataset.sequences, strict=True)
    }
    assert found == {"ann": ["mug", "tray", "kettle"], "bob": ["mug"]}
    texts = dict(zip(dataset.items, dataset.item_texts, strict=True))
    assert texts == {"kettle": "title: Kettle, red", "mug": "title: Mug", "tray": "title: Tray"}

    (raw / "purchases.csv").write_text("ann,mug,10,Mug\nann,mug\n")
    with pytest.raises(InputError, match=r"purchases\.csv:2: found 'ann,mug', expected 4 columns: 'user,.*mend"):
        preparation.prepare(name, [raw], tmp_path / "other", everything)


def test_an_id_scheme_names_the_items_of_a_run(added, monkeypatch):
    first_words = added("an ID scheme").first_words
    monkeypatch.setitem(SCHEMES, *entry_of("an ID scheme", first_words=first_words))
    texts = ("title: garden hose green long; brand: Verano", "title: garden hose short", "title: lamp")
    dataset = Dataset("shop", (), ("a", "b", "c"), texts, ())
    tokenizer = sample_tokenizer()
    config = Config().override({"ids.scheme": "first_words", "training.warm_start_words": 2})
    table = own_ids(config, dataset, tokenizer)
    assert table.items == dataset.items
    # The second is taken, and has the smallest number behind it that makes it unique.
    assert table.texts == ("garden hose", "garden hose 2", "lamp")
    assert [tokenizer.decode(tokens) for tokens in table.tokens] == list(table.texts)


def test_a_loss_trains_the_recommender(added, monkeypatch):
    per_target_loss = added("a loss").per_target_loss
    monkeypatch.setitem(SUPERVISED_LOSSES, *entry_of("a loss", per_target_loss=per_target_loss))
    sizes = {"vocab_size": 24, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "dropout_rate": 0.0}
    graphdef, params = nnx.split(T5(T5Config(num_layers=1, num_decoder_layers=1, **sizes), rngs=nnx.Rngs(0)), nnx.Param)
    # Targets of one, three and two tokens.
    prompts = np.array([[1, 1, 2, 2], [1, 1, 1, 0]], np.int32)
    targets = np.array([[1, 2, 2, 2], [1, 1, 0, 0]], np.int32)
    tokens = np.arange(3, 11, dtype=np.int32).reshape(2, 4)
    token_loss = jax.jit(lambda batch: recommender_loss(nnx.merge(graphdef, params), batch))

    def alone(row, segment):
        """The cross-entropy per token of one target, by the loss that is there already."""
        kept = np.arange(2)[:, None] == row
        return float(token_loss(SupervisedBatch(tokens, prompts * kept * (prompts == segment),
                                                tokens, targets * kept * (targets == segment))))  # fmt: skip

    # In two parts, of which the first has two targets.
    config = Config().override({"training.softmax": "per_target", "training.gradient_accumulation": 2})
    optimizer = make_optimizer()
    step = make_steps(
        config, optimizer, id_generator=graphdef, recommender=graphdef, no_embedding=jnp.zeros(24, bool),
        places={"id_generator": None, "recommender": None},
    )[RECOMMENDER]  # fmt: skip
    expected = np.mean([alone(0, 1), alone(0, 2), alone(1, 1)])
    state, losses = create_train_state(params, optimizer), []
    for _ in range(2):
        batch = SupervisedBatch(*map(jnp.asarray, (tokens, prompts, tokens, targets)))
        state, metrics = step(state, batch, np.float32(0.01), seed_key(0))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] < losses[0]
