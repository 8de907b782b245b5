"""Trials as one Kubernetes Indexed Job: the manifest OUTPUT/kubernetes/job.yaml, for kubectl create."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import atomic_writer
from idgenrec_jax.sweeps.engine_options import KubernetesOptions
from idgenrec_jax.sweeps.trials import FINISHED, Trial

# The numbers of the trials are one argument of the shell, of which Linux takes 128 KiB, and part of the manifest.
MAX_TRIALS = 10_000
# The name of a pod is that of its Job, a dash and its index: a DNS-1123 label of at most 63 characters.
_MAX_NAME = 63 - len(f"-{MAX_TRIALS}")
# Exit codes of launch.sweep --trial: failed with its error recorded, a user's mistake; stopped before its end.
_FAILED, _STOPPED = [1, 2], [75]


def write_indexed_job(
    trials: Sequence[Trial], output: Path, options: KubernetesOptions, at_once: int | None
) -> Path | None:
    """Write the manifest of a Job with one index for each unfinished trial, and return its path; None if all are done.

    Raises:
        InputError: an option is missing or malformed, `output` is not in the claim, or the trials are too many.
    """
    unfinished = [trial.index for trial in trials if trial.status != FINISHED]
    if not unfinished:
        return None
    manifest = indexed_job(unfinished, output.resolve(), options, at_once)
    path = output / "kubernetes" / "job.yaml"
    with atomic_writer(path) as file:
        yaml.safe_dump(manifest, file, sort_keys=False, width=1000)
    return path


def indexed_job(
    indices: Sequence[int], output: Path, options: KubernetesOptions, at_once: int | None = None
) -> dict[str, Any]:
    """Return the manifest of a Job that runs these trials of the sweep in `output`, at most `at_once` at a time.

    A pod that was told to stop, evicted or preempted is replaced, once it is gone, as often as it takes; one that was
    killed otherwise, `retries` times; a trial that failed has recorded why and is not tried again. Source of the
    fields' meaning: https://kubernetes.io/docs/concepts/workloads/controllers/job, version 1.33 or later.
    """
    mount_path = _checked_mount_path(output, options)
    if len(indices) > MAX_TRIALS:
        raise InputError(f"{output}: {len(indices)} unfinished trials, expected {MAX_TRIALS} at most; split the sweep")
    # The k-th unfinished trial is the pod's with index k.
    choose = f'set -- {" ".join(map(str, indices))}; shift "$JOB_COMPLETION_INDEX"'
    run = shlex.join(["python", "-m", "idgenrec_jax.launch.sweep", f"--output={output}"])
    container: dict[str, Any] = {
        "name": "trial",
        "image": options.image,
        # The shell becomes the trial, so that the signal to stop reaches it.
        "command": ["/bin/sh", "-c", f'{choose}; exec {run} --trial="$1"'],
        "volumeMounts": [{"name": "shared", "mountPath": str(mount_path)}],
    }
    if options.resources:
        resources = _pairs("resources", options.resources)
        container["resources"] = {"requests": resources, "limits": dict(resources)}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.save_seconds,
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": options.claim}}],
    }
    if options.node_selector:
        pod["nodeSelector"] = _pairs("node_selector", options.node_selector)
    metadata = {"name": _name(output, options)} | ({"namespace": options.namespace} if options.namespace else {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": len(indices),
            "parallelism": min(at_once or len(indices), len(indices)),
            "backoffLimitPerIndex": options.retries,
            # All may fail before the Job does: no failure ends the others.
            "maxFailedIndexes": len(indices),
            # Two pods of one trial at a time would be one too many.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": _STOPPED}},
                    {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": _FAILED}},
                ]
            },
            "template": {"spec": pod},
        },
    }


def _checked_mount_path(output: Path, options: KubernetesOptions) -> Path:
    """Check that what has no default is given, and return the resolved path of the mount."""
    for field in dataclasses.fields(options):
        if field.name in ("image", "claim", "mount_path") and not getattr(options, field.name):
            raise InputError(f"--kubernetes.{field.name} is missing: {field.metadata['help']}")
    mount_path = Path(options.mount_path).resolve()
    if not output.is_relative_to(mount_path):
        raise InputError(f"--output={output}: expected a folder in --kubernetes.mount_path={mount_path}, for the pods")
    return mount_path


def _pairs(name: str, text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise InputError(f"--kubernetes.{name}={text}: expected NAME=VALUE, several with commas between them")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _name(output: Path, options: KubernetesOptions) -> str:
    """The name asked for, checked, or one made of the folder's, in which other characters are dashes."""
    if not options.name:
        made = re.sub("[^a-z0-9]+", "-", f"sweep-{output.name.lower()}")
        return made[:_MAX_NAME].strip("-")
    if len(options.name) > _MAX_NAME or not re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", options.name):
        raise InputError(
            f"--kubernetes.name={options.name}: expected at most {_MAX_NAME} of a-z, 0-9 and -, no dash first or last"
        )
    return options.name
