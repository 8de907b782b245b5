"""The next items after a history, oldest first: python recommend.py ITEM ITEM ... (needs jax and numpy only)."""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export

if __name__ == "__main__":
    folder = Path(__file__).parent
    program = export.deserialize((folder / "recommend.stablehlo").read_bytes())
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    items = [json.loads(line) for line in (folder / "item_ids.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = {item["item"]: item["tokens"] for item in items}
    history = [ids[name] for name in sys.argv[1:]][-prompt["max_history"] :]
    while True:
        joined = [token for index, words in enumerate(history) for token in prompt["separator"] * (index > 0) + words]
        row = [token for piece in prompt["pieces"] for token in (joined if piece == "history" else piece)]
        if len(row) < prompt["max_length"]:
            break
        history = history[1:]
    tokens = np.zeros(program.in_avals[0].shape, np.int32)
    mask = np.zeros(tokens.shape, bool)
    tokens[0, : len(row) + 1], mask[0, : len(row) + 1] = [*row, prompt["eos"]], True
    found, scores = map(np.asarray, program.call(tokens, mask))
    for number, score in zip(found[0], scores[0], strict=True):
        if number >= 0:
            print(f"{items[number]['item']}\t{items[number]['id']}\t{score:.4f}")
