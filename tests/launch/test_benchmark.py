"""The benchmark program: every work once on a minute configuration, beside the peer where PyTorch is installed."""

import importlib.util
import json

import pytest
from program_runs import the_error, tiny_flags

SIZES = [
    "--repeats=1", "--users=32", "--items=8", "--peer_items=4", "--steps=1", "--peer_batch=4",
    "--peer_id_batch=4", "--peer_id_examples=8", "--large_catalogue=200",
]  # fmt: skip
HAS_PEER = importlib.util.find_spec("torch") is not None


@pytest.mark.slow
def test_every_training_and_decoding_work_is_measured_beside_the_peer(programs, tmp_path):
    output = tmp_path / "figures.json"
    # The work that is least like the peer's; where it is the same, it is in tests/benchmark/.
    config = tiny_flags(data__history="causal", evaluation__seen_items="remove")
    flags = [*SIZES, "--only=ranking,exact,steps,ids,training,id_training", f"--output={output}", *config]
    if HAS_PEER:
        flags.append("--peer")
    result = programs.run("benchmark", *flags)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    figures = {figure["name"]: figure for figure in report["results"]}
    compared = {"constrained ranking", "constrained ranking, longest prompts", "recommender training"}
    compared |= {"ID training, peer as published", "ID training, peer batch 4"}
    layouts = ("496 IDs, csr", "496 IDs, dense", "496 IDs, STATIC", "200 IDs, csr", "200 IDs, STATIC")
    steps = {"step, unconstrained", *(f"step, {layout}" for layout in layouts)}
    # Writing IDs has a peer only where transformers still has group beam search.
    ids = {"writing IDs, peer batch 4", "writing IDs, peer batch 1"}
    assert set(figures) == compared | steps | ids | {"exact ranking"}
    assert report["machine"]["matrix_rate"] > 0
    for name, figure in figures.items():
        assert figure["ours"] > 0 and figure["peak_bytes"] > 2**20
        assert name in result.stdout
        if name in ids and HAS_PEER:
            assert figure["ratio"] is not None or "--peer_python" in figure["note"]
        else:
            assert (figure["ratio"] is not None) == (HAS_PEER and name in compared)
        if figure["ratio"] is not None:
            assert figure["ratio"] == pytest.approx(figure["ours"] / figure["peer"])
            assert "peer's" in figure["agreement"] and "our softmax is over the catalogue" in figure["agreement"]
    if HAS_PEER:
        agreements = {name: figures[name]["agreement"] for name in compared}
        for name in ("constrained ranking", "constrained ranking, longest prompts"):
            assert "of the exact top 10 of 4 users" in agreements[name]
            assert "seen items are left out of our rankings" in agreements[name]
        assert "computed target by target" in agreements["recommender training"]
        assert "the peer's batch is" in agreements["recommender training"]


@pytest.mark.parametrize("name", ["rnking", ""])
def test_an_unknown_work_is_an_error(programs, name):
    error = the_error(programs.run("benchmark", f"--only={name}"))
    assert f"--only={name}: no such work; expected some of ranking, exact, steps" in error
