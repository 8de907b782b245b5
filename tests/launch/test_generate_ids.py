"""The program launch.generate_ids: from a trained run and from a Hugging Face folder."""

import json

import pytest
from flax import nnx
from program_runs import the_error, write_data

from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5, T5Config

pytestmark = pytest.mark.slow


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_unique_ids(table, items):
    assert [row["item"] for row in table] == items
    assert len({tuple(row["tokens"]) for row in table}) == len(items)
    assert all(row["id"].strip() and row["tokens"] for row in table)


def test_a_run_writes_the_ids_of_its_best_round_again(programs, finished, tmp_path):
    output = tmp_path / "new" / "ids.jsonl"
    flags = [f"--workdir={finished.workdir}", f"--data={programs.data}", f"--output={output}"]
    result = programs.run("generate_ids", *flags)
    assert result.returncode == 0, result.stderr
    assert f"30 IDs in {output}" in result.stdout
    best = finished.workdir / "ids" / f"round_{finished.results['selected']['id_round']}.jsonl"
    assert output.read_text() == best.read_text()


def test_a_run_names_another_catalogue(programs, finished, tmp_path):
    data = tmp_path / "other"
    data.mkdir()
    (data / "item_plain_text.txt").write_text("".join(f"thing{n} green Solace kettle number {n}\n" for n in range(12)))
    (data / "user_sequence.txt").write_text("someone thing1 thing2 thing3\n")
    output = tmp_path / "ids.jsonl"
    result = programs.run("generate_ids", f"--workdir={finished.workdir}", f"--data={data}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert_unique_ids(rows(output), [f"thing{number}" for number in range(12)])


def test_a_hugging_face_folder_with_its_own_tokenizer(programs, tmp_path):
    tokenizer = Tokenizer.load(programs.tokenizer)
    folder, output = tmp_path / "t5", tmp_path / "ids.jsonl"
    config = T5Config(
        vocab_size=-(-tokenizer.size // 128) * 128, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1,
        num_heads=2, pad_token_id=tokenizer.pad_id, eos_token_id=tokenizer.eos_id,
        decoder_start_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save_t5(T5(config, rngs=nnx.Rngs(0)), folder)
    tokenizer.save(folder)
    result = programs.run("generate_ids", f"--id_generator={folder}", f"--data={programs.data}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert_unique_ids(rows(output), [f"item{number}" for number in range(30)])


def test_mistakes_are_one_line(programs, finished, tmp_path):
    data = write_data(tmp_path / "shop")
    both = ["--workdir=a", "--id_generator=b", f"--data={data}", "--output=c"]
    error = the_error(programs.run("generate_ids", *both))
    assert "workdir" in error and "id_generator" in error
    error = the_error(programs.run("generate_ids", "--id_generator=no-such-model", f"--data={data}", "--output=c"))
    assert "--id_generator=no-such-model" in error and "local folder" in error
    blocked = tmp_path / "file"
    blocked.write_text("")
    flags = [f"--workdir={finished.workdir}", f"--data={data}", f"--output={blocked}/ids.jsonl"]
    assert f"{blocked}/ids.jsonl" in the_error(programs.run("generate_ids", *flags))
