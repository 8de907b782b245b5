"""The program launch.sweep with its Kubernetes engine; a pod's command is run as the pod would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from program_runs import DEADLINE, environment, the_error, tiny_flags

pytestmark = pytest.mark.slow

SWEEP = '''
def sweep():
    return [{"ids.table": "nowhere.txt"}, {"ids.table": "elsewhere.txt"}]
'''


def test_a_pod_runs_its_trial_and_its_exit_code_says_that_it_failed(programs, tmp_path):
    path, output = tmp_path / "mine.py", tmp_path / "sweep"
    path.write_text(SWEEP)
    flags = [f"--sweep={path}", f"--output={output}", f"--data={programs.data}", *tiny_flags()]
    flags += [f"--config.data.tokenizer={programs.tokenizer}"]
    flags += ["--kubernetes.image=image", "--kubernetes.claim=shared", f"--kubernetes.mount_path={tmp_path}"]
    assert "--kubernetes.image is for --engine=kubernetes" in the_error(programs.run("sweep", *flags))
    result = programs.run("sweep", *flags, "--engine=kubernetes")
    assert result.returncode == 0, result.stderr
    file = output / "kubernetes" / "job.yaml"
    assert f"kubectl create -f {file}" in result.stdout

    spec = yaml.safe_load(file.read_text())["spec"]
    pod = subprocess.run(
        spec["template"]["spec"]["containers"][0]["command"],
        env=environment(programs.compiled)
        | {"JOB_COMPLETION_INDEX": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False, capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path,
    )  # fmt: skip
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"][1:]}
    assert pod.returncode in codes["FailIndex"], pod.stderr
    help_text = " ".join(programs.run("sweep", "--help").stdout.split())
    assert f"{codes['Ignore'][0]} when it was stopped" in help_text
    assert "elsewhere.txt" in json.loads((output / "trial_00001" / "error.json").read_text())["error"]
    assert not (output / "trial_00000").exists()
