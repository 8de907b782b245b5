"""What the engines that run trials on other machines can be told; launch.sweep makes a flag --ENGINE.FIELD of each."""

import dataclasses
from typing import Any


def _option(default: str | int, help: str, low: int | None = None, path: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "path": path})


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What a trial asks of Slurm; where an option is empty or 0, the cluster's default counts."""

    partition: str = _option("", "partition to run in")
    account: str = _option("", "account to charge")
    time: str = _option("", "time limit of a trial, as MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS")
    cpus: int = _option(0, "processor cores of a trial", low=0)
    memory: str = _option("", "memory of a trial, such as 32G")
    gpus: str = _option("", "GPUs of a trial, as NUMBER or TYPE:NUMBER")
    save_seconds: int = _option(120, "seconds before the time limit at which a trial is told to save and stop", low=1)
    max_array_size: int = _option(
        1001, "the cluster's MaxArraySize (see scontrol show config); a sweep of more trials is several jobs", low=1
    )
    arguments: str = _option("", "further arguments of sbatch, such as '--qos=low --constraint=a100'")


@dataclasses.dataclass(frozen=True)
class KubernetesOptions:
    """What the pod of a trial is made of."""

    image: str = _option("", "container image whose python has this package")
    claim: str = _option("", "PersistentVolumeClaim that holds --output and the data")
    mount_path: str = _option("", "folder where this machine and the pods have the claim mounted", path=True)
    namespace: str = _option("", "namespace of the Job; empty: kubectl's own")
    name: str = _option("", "name of the Job; empty: sweep-FOLDER after the folder of --output")
    resources: str = _option("cpu=2,memory=8Gi", "what a pod gets, such as cpu=8,memory=32Gi,nvidia.com/gpu=1")
    node_selector: str = _option("", "labels of its node, such as cloud.google.com/gke-tpu-topology=2x2")
    retries: int = _option(2, "new pods for a trial whose pod was killed, beside those evicted or preempted", low=0)
    save_seconds: int = _option(120, "seconds that a pod told to stop has to save its trial", low=1)
