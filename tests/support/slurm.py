"""A real Slurm on this machine alone, for a test: three processes, all files in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why no Slurm can be started here, or None."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if lacking:
        return f"Slurm is not installed: {', '.join(lacking)}"
    return None if os.geteuid() == 0 else "its daemons want to be started by root"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(process: "subprocess.Popen[bytes]", is_ready, log: Path) -> None:
    until = time.monotonic() + 30
    while not is_ready():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{process.args} did not come up: {log.read_text()[-2000:]}")
        time.sleep(0.1)


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster of one node; yield the environment in which its commands find it."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=host, folder=folder, ports=_free_ports(2), cpus=os.cpu_count() or 1
        )
    )
    env = {**os.environ, "SLURM_CONF": str(configuration)}
    env["PATH"] = f"{env['PATH']}:/usr/sbin"
    munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
    munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]

    def is_idle() -> bool:
        asked = ["sinfo", "--noheader", "--format=%t"]
        found = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=30)
        return found.stdout.strip() == "idle"

    commands = [
        (munged, (folder / "munge.socket").exists),
        (["slurmctld", "-D", "-f", str(configuration)], lambda: True),
        (["slurmd", "-D", "-f", str(configuration)], is_idle),
    ]
    started = []
    try:
        for number, (command, is_ready) in enumerate(commands):
            log = folder / f"{number}.txt"
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
            started.append(process)
            _wait(process, is_ready, log)
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
