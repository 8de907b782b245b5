"""The Kubernetes engine: its manifest by Kubernetes' own schema, and the command of its pods in a real shell."""

import copy
import os
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from idgenrec_jax.errors import InputError
from idgenrec_jax.sweeps.engine_options import KubernetesOptions
from idgenrec_jax.sweeps.kubernetes import MAX_TRIALS, indexed_job, write_indexed_job
from idgenrec_jax.sweeps.trials import make_trial

# From the first version that has backoffLimitPerIndex for all to the newest that the validator knows.
VERSIONS = ("1.33", kubernetes_validate.latest_version())


def options_for(folder, **values):
    return KubernetesOptions(**({"image": "registry/image:1", "claim": "shared", "mount_path": str(folder)} | values))


def command_of(manifest):
    return manifest["spec"]["template"]["spec"]["containers"][0]["command"]


def validate(manifest, version=VERSIONS[-1]):
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.fixture
def manifest(tmp_path):
    """The manifest of a sweep of five trials, of which trials 0 and 3 are finished, as it is read from the file."""
    trials = [make_trial(tmp_path / "sweep", index, {}, []) for index in range(5)]
    for index in (0, 3):
        trials[index].workdir.mkdir(parents=True)
        (trials[index].workdir / "results.json").touch()
    options = options_for(
        tmp_path, resources="cpu=4,memory=16Gi,nvidia.com/gpu=1", node_selector="gpu=a100", namespace="team"
    )
    return yaml.safe_load(write_indexed_job(trials, tmp_path / "sweep", options, at_once=2).read_text())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_is_valid(manifest, version):
    validate(manifest, version)


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "completions"), "3"),
        (("spec", "paralellism"), 2),
        (("spec", "podFailurePolicy", "rules", 0, "actions"), "Ignore"),
        (("spec", "template", "spec", "containers", 0, "command"), "python"),
        (("spec", "template", "spec", "volumes", 0, "persistentVolumeClaim", "claim"), "shared"),
    ],
)
def test_the_validator_refuses_what_is_wrong(manifest, path, value):
    wrong = copy.deepcopy(manifest)
    parent = wrong
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


def test_the_job_is_what_was_asked_for(manifest, tmp_path):
    spec, pod = manifest["spec"], manifest["spec"]["template"]["spec"]
    assert manifest["metadata"] == {"name": "sweep-sweep", "namespace": "team"}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 2)
    resources = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert pod["containers"][0]["resources"] == {"requests": resources, "limits": resources}
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert pod["containers"][0]["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": str(tmp_path)}]
    # Kubernetes demands it of a Job with backoffLimitPerIndex.
    assert pod["restartPolicy"] == "Never"


def test_a_pod_runs_the_trial_of_its_index_as_its_own_process(tmp_path):
    """`python` is a program that tells its arguments and its process; the shell is a real one."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport os, sys\nprint(os.getpid(), *sys.argv[1:], sep='\\n')\n")
    python.chmod(0o755)
    output = tmp_path / "it's mine"
    command = command_of(indexed_job([1, 4, 70], output, options_for(tmp_path)))
    for index, trial in enumerate((1, 4, 70)):
        environment = os.environ | {"JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            told = process.communicate()[0].splitlines()
        assert told == [str(process.pid), "-m", "idgenrec_jax.launch.sweep", f"--output={output}", f"--trial={trial}"]


@pytest.mark.parametrize("folder", ["ablation", "My Sweep_2.5", "-", "ü" * 20, "x" * 100])
def test_names_fit_into_those_of_pods(tmp_path, folder):
    name = indexed_job([0], tmp_path / folder, options_for(tmp_path))["metadata"]["name"]
    pod = f"{name}-{MAX_TRIALS - 1}"
    assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) and len(pod) <= 63


def test_nothing_is_written_when_all_trials_are_finished(tmp_path):
    assert write_indexed_job([], tmp_path, KubernetesOptions(), None) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, count, message",
    [
        ({"image": ""}, 1, "--kubernetes.image is missing: container image"),
        ({"claim": ""}, 1, "--kubernetes.claim is missing: PersistentVolumeClaim"),
        ({"mount_path": "/mnt/elsewhere"}, 1, "expected a folder in --kubernetes.mount_path=/mnt/elsewhere"),
        ({"resources": "cpu=4,memory"}, 1, "--kubernetes.resources=cpu=4,memory: expected NAME=VALUE"),
        ({"name": "Mine"}, 1, "--kubernetes.name=Mine: expected at most"),
        ({}, MAX_TRIALS + 1, "10001 unfinished trials, expected 10000 at most"),
    ],
)
def test_mistakes(tmp_path, values, count, message):
    with pytest.raises(InputError, match=re.escape(message)):
        indexed_job(range(count), tmp_path, options_for(tmp_path, **values))


def test_the_most_trials_fit_into_one_argument_of_a_shell(tmp_path):
    command = command_of(indexed_job(range(100_000 - MAX_TRIALS, 100_000), tmp_path, options_for(tmp_path)))
    index = MAX_TRIALS - 1
    environment = os.environ | {"JOB_COMPLETION_INDEX": str(index)}
    asked = [*command[:2], command[2].replace("exec python", "echo")]
    told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.endswith("--trial=99999\n")
