"""Presets, overrides, limits and the JSON form of the configuration."""

import dataclasses
import json
import subprocess
import sys

import pytest

from idgenrec_jax.config import Config, EvaluationConfig, config_from_json, fields_with_help, idle_settings, path_fields
from idgenrec_jax.errors import InputError
from idgenrec_jax.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_set_every_field_that_they_name(name):
    flat = {
        f"{section}.{field}": value
        for section, fields in preset(name).to_json().items()
        for field, value in fields.items()
    }
    defaults = {
        f"{section}.{field}": value for section, fields in Config().to_json().items() for field, value in fields.items()
    }
    assert flat == {**defaults, **PRESETS[name]}


def test_the_paper_preset_is_as_published():
    config = preset("paper")
    assert (config.recommender.folder, config.training.rounds) == ("t5-small", 3)
    assert (config.training.id_epochs, config.training.recommender_epochs) == (1, 10)
    assert (config.training.recommender_learning_rate, config.training.id_learning_rate) == (1e-3, 1e-8)
    assert (config.training.recommender_batch_size, config.evaluation.num_beams) == (256, 10)
    assert (config.data.max_history, config.data.id_max_history) == (20, 10)
    assert config.training.order == "id_first"


def test_all_other_presets_begin_with_the_recommender():
    assert {preset(name).training.order for name in PRESETS if name != "paper"} == {"recommender_first"}
    assert Config().training.order == "recommender_first"


def test_path_fields_are_those_whose_help_names_a_file_or_folder():
    assert set(path_fields()) == {name for name, _, text in fields_with_help() if "folder" in text or "file" in text}


def test_a_leading_tilde_of_a_path_is_the_home_folder_and_names_stay_names(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in path_fields():
        section, field = name.split(".")
        for value, expected in (("~/x", "/home/me/x"), ("t5-small", "t5-small"), ("a/~b", "a/~b"), ("", "")):
            assert getattr(getattr(Config().override({name: value}), section), field) == expected
    assert Config().override({"data.eval_prompt": "~"}).data.eval_prompt == "~"


def test_settings_that_do_nothing_are_named():
    assert [line for name in PRESETS for line in idle_settings(preset(name))] == []
    idle = {"training.recommender_learning_rate": 0.0, "training.id_learning_rate": 0.0,
            "training.validate_every_epochs": 11}  # fmt: skip
    assert [line.split(":")[0] for line in idle_settings(Config().override(idle))] == [
        "--config.training.recommender_learning_rate=0",
        "--config.training.id_learning_rate=0",
        "--config.training.validate_every_epochs=11",
    ]
    assert len(idle_settings(Config().override(idle | {"training.id_epochs": 0}))) == 2
    whole = {"data.history": "causal", "training.whole_epochs": 3, "training.validate_every_epochs": 4}
    (line,) = idle_settings(Config().override(whole))
    assert line.startswith("--config.training.validate_every_epochs=4: more than the 3 epochs of a phase")
    rate = {"training.warm_start_learning_rate": 0.0}
    assert len(idle_settings(Config().override(rate))) == 1
    assert idle_settings(Config().override(rate | {"id_generator.folder": "t5-small"})) == []


@pytest.mark.parametrize(
    ("cold", "named"),
    [
        ({"training.warm_start_epochs": 0}, "--config.training.warm_start_epochs=0: a random ID generator writes"),
        ({"training.id_epochs": 0, "ids.table": "ids.txt", "data.user_ids": "train_history"},
         "--config.data.user_ids=train_history: an ID generator that nothing trains writes them"),
        ({"training.id_epochs": 0, "ids.scheme": "keywords", "data.user_ids": "published"},
         "--config.data.user_ids=published: an ID generator that nothing trains writes them"),
    ],
)  # fmt: skip
def test_an_untrained_id_generator_that_is_to_write_is_named(cold, named):
    (line,) = idle_settings(Config().override(cold))
    assert line.startswith(named)
    assert idle_settings(Config().override(cold | {"id_generator.folder": "t5-small"})) == []
    assert idle_settings(Config().override(cold | {"training.id_epochs": 1, "training.warm_start_epochs": 1})) == []


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match=r"--preset: found 'papper', expected one of .*; nearest: paper$"):
        preset("papper")


def test_override_changes_what_it_names_and_nothing_else():
    before = Config()
    after = before.override({"training.rounds": 7, "data.user_ids": "published", "training.seed": 4})
    assert (after.training.rounds, after.data.user_ids, after.training.seed) == (7, "published", 4)
    assert before == Config()
    assert after.override({"training.rounds": 3, "data.user_ids": "none", "training.seed": 0}) == before


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("training.recomender_epochs", "training.recommender_epochs"),
        ("evaluation.numbeams", "evaluation.num_beams"),
        ("trianing.seed", "training.seed"),
        ("training.seed.more", "training.seed"),
    ],
)
def test_an_unknown_field_suggests_the_nearest(wrong, nearest):
    with pytest.raises(InputError, match=f"^--config.{wrong}: .* --config.{nearest}$"):
        Config().override({wrong: 1})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("training.rounds", 0, "found 0, expected at least 1"),
        ("recommender.dropout_rate", 0.99, r"found 0.99, expected at least 0.0 and at most 0.95"),
        ("training.rounds", True, "found True, expected a value of type int"),
        ("data.user_ids", "publish", "expected one of none, train_history, prefix, published; nearest: published"),
        ("evaluation.length_penalty", 1e30, "expected at least -10.0 and at most 10.0"),
        ("evaluation.trie_layout", "cst", "expected one of auto, dense, csr; nearest: csr"),
    ],
)
def test_a_value_outside_its_limits_names_the_flag(name, value, expected):
    with pytest.raises(InputError, match=rf"^--config\.{name}: .*{expected}") as caught:
        Config().override({name: value})
    assert "\n" not in str(caught.value)


def test_a_value_of_another_type_names_the_flag():
    # In a process of its own: here the annotations themselves are checked, and would speak first.
    program = """
from idgenrec_jax.config import Config
from idgenrec_jax.errors import InputError
for name, value in [("training.rounds", "3"), ("training.rounds", 2.0), ("training.weight_decay", "no"),
                    ("training.weight_decay", True), ("recommender.tie_word_embeddings", 1), ("data.path", None)]:
    try:
        Config().override({name: value})
    except InputError as error:
        print(error)
print(Config().override({"training.weight_decay": 0}).training.weight_decay)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "--config.training.rounds: found '3', expected a value of type int",
        "--config.training.rounds: found 2.0, expected a value of type int",
        "--config.training.weight_decay: found 'no', expected a value of type float",
        "--config.training.weight_decay: found True, expected a value of type float",
        "--config.recommender.tie_word_embeddings: found 1, expected a value of type bool",
        "--config.data.path: found None, expected a value of type str",
        "0",
    ]


def test_a_section_made_outside_override_is_checked_as_well():
    with pytest.raises(InputError, match=r"--config.evaluation.batch_size: found 0"):
        Config(evaluation=EvaluationConfig(batch_size=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.recommender_learning_rate", float("nan")),
        ("training.recommender_learning_rate", float("inf")),
        ("training.rounds", 10**400),
    ],
    ids=["nan", "inf", "whole"],
)
def test_a_number_that_is_none_is_refused(name, value):
    with pytest.raises(InputError, match=f"^--config.{name}: found .{{1,60}}, expected a finite number"):
        Config().override({name: value})


def test_a_warm_up_over_the_whole_training_is_refused_as_the_schedule_refuses_it():
    with pytest.raises(InputError, match="--config.training.warmup_fraction"):
        Config().override({"training.warmup_fraction": 1.0})


def test_an_id_batch_has_room_for_the_history_of_one_example():
    with pytest.raises(InputError, match="--config.training.id_items_per_batch"):
        Config().override({"training.id_items_per_batch": 4, "data.id_max_history": 10})


@pytest.mark.parametrize(
    ("name", "batch"), [("gradient_accumulation", "recommender_batch_size"), ("id_chunks", "id_batch_size")]
)
def test_a_step_has_no_more_parts_than_examples(name, batch):
    Config().override({f"training.{name}": 16, f"training.{batch}": 16})
    with pytest.raises(
        InputError, match=f"^--config.training.{name}=17: expected at most the 16 examples of .*{batch},"
    ):
        Config().override({f"training.{name}": 17, f"training.{batch}": 16})


def test_models_are_selected_by_ndcg_at_10_so_there_are_at_least_ten_beams():
    with pytest.raises(InputError, match="--config.evaluation.num_beams"):
        Config().override({"evaluation.num_beams": 9})


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = preset(name).override({"training.seed": 11, "recommender.tie_word_embeddings": False})
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_of_another_version_names_the_field():
    values = Config().to_json()
    values["training"]["round_count"] = 3
    with pytest.raises(InputError, match=r"--config.training.round_count: no such field; .*--config.training.rounds$"):
        config_from_json(values)


@pytest.mark.parametrize("values", [None, 3, [], {"training": 3}, {"training": None}, {"data": [["path", "x"]]}])
def test_json_of_another_shape_is_an_input_error(values):
    with pytest.raises(InputError, match="expected an object of sections, each an object of fields"):
        config_from_json(values)


def test_fields_with_help_lists_every_field_with_its_choices():
    listed = {name: (kind, text) for name, kind, text in fields_with_help()}
    sections = dataclasses.fields(Config)
    assert len(listed) == sum(len(dataclasses.fields(section.type)) for section in sections)
    assert listed["training.rounds"][0] is int and listed["evaluation.length_penalty"][0] is float
    assert "one of auto, dense, csr" in listed["evaluation.trie_layout"][1]
    assert all(text.strip() for _, text in listed.values())
