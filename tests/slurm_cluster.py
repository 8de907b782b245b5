"""Starts and stops a Slurm cluster of one host, without systemd: python tests/slurm_cluster.py COMMAND ...

The command runs with SLURM_CONF naming the cluster, and the cluster stops when it ends. Needs root and Debian's
packages slurm-wlm and munge. What the daemons write is in a folder of their own, so several clusters fit on a host.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
START_SECONDS, STOP_SECONDS = 60.0, 60.0
# So small (Slurm's default is 1001) that a sweep of few trials needs more than one array.
MAX_ARRAY_SIZE = 4

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MaxArraySize={max_array_size}
# Long enough for a trial to save on a busy host.
KillWait=120
ReturnToService=2
# The node claims more cores than the host may have, so that tests do not wait for each other.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4096 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why a cluster cannot be started here, None where it can."""
    missing = [name for name in BINARIES if _find(name) is None]
    if missing:
        return f"Slurm is not installed: no {', '.join(missing)} (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "a Slurm cluster of the tests' own needs root"


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Path]:
    """Run munged, slurmctld and slurmd, and yield the path of their slurm.conf; the node is idle by then.

    Raises:
        RuntimeError: a daemon ended or the node did not come up; with the ends of the daemons' logs.
    """
    # Munge refuses a socket in a folder that others may write to, and its user must reach it: hence not pytest's own.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    controller_port, node_port = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _SLURM_CONF.format(
            host=host, folder=folder, controller_port=controller_port, node_port=node_port,
            max_array_size=MAX_ARRAY_SIZE,
        )
    )  # fmt: skip
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(name: str, *arguments: str, user: str | None = None) -> subprocess.Popen:
            with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
                process = subprocess.Popen(
                    [_find(name), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    env=environment, user=user, group=user, extra_groups=[] if user else None,
                )  # fmt: skip
            stack.callback(_stop, process)
            return process

        def wait(until: Callable[[], bool]) -> None:
            deadline = time.monotonic() + START_SECONDS
            while not until():
                dead = [process.args[0] for process in daemons if process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
                    raise RuntimeError(f"the cluster did not start; ended: {dead or 'none'}\n{logs}")
                time.sleep(0.05)

        daemons = [_start_munged(folder, start)]
        wait((folder / "munge.socket").exists)
        daemons.append(start("slurmctld", "-D", "-i"))
        daemons.append(start("slurmd", "-D", "-N", host))
        wait(lambda: _output(environment, "sinfo", "--noheader", "--format=%T") == "idle")
        stack.callback(_cancel_all, environment)
        yield configuration


def _start_munged(folder: Path, start: Callable[..., subprocess.Popen]) -> subprocess.Popen:
    munge = pwd.getpwnam("munge")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (key, folder):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    return start(
        "munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munged.own.log", f"--seed-file={folder}/munge.seed",
        user="munge",
    )  # fmt: skip


def _cancel_all(environment: dict[str, str]) -> None:
    """End all jobs: those that still run when slurmd stops would outlive it."""
    deadline = time.monotonic() + STOP_SECONDS
    subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    while _output(environment, "squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.1)


def _stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _output(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    with slurm_cluster() as configuration:
        command = subprocess.run(sys.argv[1:], env=os.environ | {"SLURM_CONF": str(configuration)}, check=False)
    sys.exit(command.returncode)
