"""The program launch.check_data, run as a user runs it."""

import json
import random
import subprocess
import sys

from program_runs import write_data


def check(*arguments):
    command = [sys.executable, "-m", "launch.check_data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_strict_exits_with_1_where_the_test_split_means_nothing_and_0_elsewhere(tmp_path, programs):
    data = write_data(tmp_path / "shop")  # Most walks follow the item keys.
    output = tmp_path / "out"
    flags = f"--tokenizer={programs.tokenizer}", f"--json={output}/check.json", f"--page={output}/check.html"
    found = check(f"--data={data}", "--strict", *flags)
    assert found.returncode == 1, found.stderr
    assert "40 users, 30 items" in found.stdout and "THE TEST SPLIT MEANS NOTHING" in found.stdout
    written = json.loads((output / "check.json").read_text())
    assert written["defeats_test"] and written["texts"]["unit"] == "tokens"
    assert (output / "check.html").read_text().startswith("<!DOCTYPE html>")

    rng = random.Random(0)
    rows = [line.split() for line in (data / "user_sequence.txt").read_text().splitlines()]
    shuffled = [[row[0], *rng.sample(row[1:], len(row) - 1)] for row in rows]
    (data / "user_sequence.txt").write_text("".join(" ".join(row) + "\n" for row in shuffled))
    found = check(f"--data={data}", "--strict")
    assert found.returncode == 0, found.stdout
    assert "MEANS NOTHING" not in found.stdout and not found.stderr.count("NOT IN THE ORDER")
