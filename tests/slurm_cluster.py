"""A real Slurm of one node on this machine: munged, slurmctld and slurmd, on loopback, in a folder
of their own.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
STARTS = 60.0  # seconds

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=2
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def installed():
    """Whether a cluster can be started here: Debian's slurmd, slurmctld, slurm-client, munge."""
    return os.getuid() == 0 and all(shutil.which(name) for name in PROGRAMS)


@contextmanager
def started(folder, unseen):
    """The path of a cluster's configuration, while it runs.

    :param unseen: a folder in whose place its jobs see an empty one.
    """
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755, parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host, conf = socket.gethostname().partition(".")[0], folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, ports=_free_ports()), encoding="ascii")
    commands = (
        [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge/seed"),
        ],
        ["slurmctld", "-D", "-f", str(conf)],
        [
            *("unshare", "--mount", "sh", "-c"),
            f"mount -t tmpfs none {unseen} && exec slurmd -D -f {conf}",
        ],
    )
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as said:
                daemons.append(subprocess.Popen(command, stdout=said, stderr=said))
            time.sleep(0.5)
        _wait_for_a_node(conf)
        yield conf
        _empty(conf)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _wait_for_a_node(conf):
    if not _until(conf, "idle", "sinfo", "--noheader", "--format=%T"):
        raise RuntimeError(f"the cluster did not start: see {conf.parent}")


def _empty(conf):
    """End every job: one outlives the daemons."""
    _said(conf, "scancel", "--user=root")
    _until(conf, "", "squeue", "--noheader")


def _until(conf, wanted, *command):
    """Whether a command says what is wanted before long."""
    until = time.monotonic() + STARTS
    while time.monotonic() < until:
        if _said(conf, *command) == wanted:
            return True
        time.sleep(0.2)
    return False


def _said(conf, *command):
    """What a command of Slurm prints; None if it fails."""
    told = subprocess.run(
        command,
        env={**os.environ, "SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() if told.returncode == 0 else None
