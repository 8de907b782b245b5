"""Files of named tensors: which file is taken, reading in pieces, and files that are broken."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from idgenrec_jax.errors import InputError
from idgenrec_jax.models.tensor_files import open_tensors

WHOLE = (slice(None), slice(None))


@pytest.fixture
def matrix():
    """A matrix whose every element differs."""
    return np.arange(12, dtype=np.float32).reshape(3, 4)


def read_all(folder) -> dict[str, np.ndarray]:
    """All matrices of a folder."""
    with open_tensors(folder) as tensors:
        return {name: tensor.read(WHOLE) for name, tensor in tensors.items()}


def test_pieces(tmp_path, matrix):
    save_file({"m": matrix, "v": matrix[0]}, tmp_path / "model.safetensors")
    with open_tensors(tmp_path) as tensors:
        assert set(tensors) == {"m", "v"}
        assert tensors["m"].shape == (3, 4) and tensors["m"].dtype == "F32"
        np.testing.assert_array_equal(tensors["m"].read((slice(1, 3), slice(0, 2))), matrix[1:3, :2])
        np.testing.assert_array_equal(tensors["v"].read((slice(1, None),)), matrix[0, 1:])
        piece = tensors["m"].read(WHOLE)
        piece[:] = 100.0
        np.testing.assert_array_equal(tensors["m"].read(WHOLE), matrix)


def test_safetensors_are_preferred_to_pytorch(tmp_path, matrix):
    save_file({"m": matrix}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    np.testing.assert_array_equal(read_all(tmp_path)["m"], matrix)


def test_index_over_several_files(tmp_path, matrix):
    save_file({"a": matrix}, tmp_path / "one.safetensors")
    save_file({"b": 2 * matrix}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    found = read_all(tmp_path)
    np.testing.assert_array_equal(found["b"], 2 * matrix)
    np.testing.assert_array_equal(found["a"], matrix)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(InputError, match="index.json: tensor b should be in one.safetensors"):
        read_all(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(InputError, match="gone.safetensors: file not found"):
        read_all(tmp_path)
    for text in (b"{", b"[]", b'{"weight_map": 3}', b"{}", b'{"weight_map": {}}', b"[" * 100_000, b"\xff" * 10_000):
        index.write_bytes(text)
        with pytest.raises(InputError, match="index.json: not an index of weights") as caught:
            read_all(tmp_path)
        assert len(str(caught.value)) < 400


def test_an_index_may_name_files_in_a_folder_below(tmp_path, matrix):
    (tmp_path / "parts").mkdir()
    save_file({"a": matrix}, tmp_path / "parts" / "one.safetensors")
    save_file({"b": 2 * matrix}, tmp_path / "one.safetensors")
    weight_map = {"a": "parts/one.safetensors", "b": "one.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(read_all(tmp_path)["a"], matrix)
    np.testing.assert_array_equal(read_all(tmp_path)["b"], 2 * matrix)


def test_no_weights(tmp_path):
    with pytest.raises(InputError, match="no weights found; expected one of model.safetensors, "):
        read_all(tmp_path)


def test_a_truncated_file(tmp_path, matrix):
    path = tmp_path / "model.safetensors"
    save_file({"m": matrix}, path)
    for kept in (path.read_bytes()[:-4], b""):
        path.write_bytes(kept)
        with pytest.raises(InputError, match="model.safetensors: not a readable safetensors file"):
            read_all(tmp_path)


def test_integers_are_no_weights(tmp_path):
    save_file({"m": np.ones((2, 2), np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="tensor m has dtype I8, expected one of F64, F32, F16, BF16"):
        read_all(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_pytorch_dtypes(dtype, tmp_path, matrix):
    torch = pytest.importorskip("torch")
    torch.save({"m": torch.tensor(matrix, dtype=getattr(torch, dtype))}, tmp_path / "pytorch_model.bin")
    found = read_all(tmp_path)["m"]
    assert found.dtype == np.float32 and found.flags.writeable
    np.testing.assert_array_equal(found, matrix)


def test_broken_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    for content in (b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable PyTorch checkpoint"):
            read_all(tmp_path)
    torch.save({"m": 3}, path)
    with pytest.raises(InputError, match="expected a dictionary from names to tensors"):
        read_all(tmp_path)
    torch.save({"m": torch.ones(2, 2, dtype=torch.int64)}, path)
    with pytest.raises(InputError, match="dtype torch.int64"):
        read_all(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_damaged_pytorch_file_gives_a_traceback(tmp_path, matrix):
    torch = pytest.importorskip("torch")
    path, rng, refused = tmp_path / "pytorch_model.bin", np.random.default_rng(0), 0
    for zipped in (True, False):
        torch.save({"m": torch.tensor(matrix)}, path, _use_new_zipfile_serialization=zipped)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(100):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 900), 2)] = rng.integers(0, 256, 2)
            path.write_bytes(damaged.tobytes())
            try:
                with open_tensors(tmp_path) as tensors:
                    assert all(tensor.shape is not None for tensor in tensors.values())
            except InputError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert 20 < refused < 200


class RunsCode:
    """An object whose unpickling would call a function."""

    def __reduce__(self):
        """Asks the unpickler to exit the interpreter."""
        return sys.exit, (3,)


def test_a_pytorch_file_cannot_run_code(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"m": RunsCode()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a readable PyTorch checkpoint"):
        read_all(tmp_path)


def test_without_pytorch_the_way_out_is_named(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    # None in sys.modules is how Python marks a module as not importable.
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pytorch_model.bin: .*convert it to model.safetensors or install torch"):
        read_all(tmp_path)
