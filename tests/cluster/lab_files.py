"""The configuration files of a lab, as text."""

from pathlib import Path


def slurm_files(folder: Path, num_nodes: int, gpus: int, cpus: int, memory_mb: int) -> dict[Path, str]:
    """Path -> contents of everything that must be there before the first host starts."""
    etc = folder / "etc"
    last_device = 40 + gpus - 1
    return {
        etc / "slurm.conf": _slurm_conf(folder, num_nodes, gpus, cpus, memory_mb),
        # Any character devices do as GPUs; these exist on every virtual machine and are never opened.
        etc
        / "gres.conf": f"NodeName=n[1-{num_nodes}] Name=gpu Count={gpus} File=/dev/tty[40-{last_device}]\n",
        # slurmd loads a cgroup plugin although nothing here uses one, and cannot tell by itself which.
        etc / "cgroup.conf": "CgroupPlugin=cgroup/v1\nIgnoreSystemd=yes\n",
        etc / "mpi.conf": f"PMIxCliTmpDirBase={folder}/local\n",
        etc / "slurmdbd.conf": _slurmdbd_conf(folder),
        etc / "hosts": _hosts(num_nodes),
        # There is no name server in here: do not wait for one.
        etc / "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        etc / "sshd_config": _sshd_config(folder),
        etc / "host.sh": host_start_script(folder),
        folder / "ssh/config": _ssh_config(folder),
        folder / "log/README": "",
        folder / "run/README": "",
        folder / "state/README": "",
        folder / "local/README": "",
    }


def host_start_script(folder: Path) -> str:
    """What the first process of a host does: its name, its own mounts, then reap what is left behind."""
    return f"""\
set -e
hostname "$1"
mount --bind {folder}/etc/hosts /etc/hosts
mount --bind {folder}/etc/nsswitch.conf /etc/nsswitch.conf
mount --bind {folder}/ssh/config /etc/ssh/ssh_config
if [ -d /etc/slurm ]; then mount --bind {folder}/etc /etc/slurm; fi
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs -o size=64m tmpfs {folder}/local
mkdir -p /run/sshd
touch {folder}/run/"$1".ready
set +e
while :; do sleep 600 & wait $!; done
"""


def _slurm_conf(folder: Path, num_nodes: int, gpus: int, cpus: int, memory_mb: int) -> str:
    return f"""\
ClusterName=lab
SlurmctldHost=ctl(10.77.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a job that was queued again waits before it may start.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Memory limits without cgroups: measured every two seconds.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=600
MessageTimeout=10
SlurmdTimeout=10
SlurmctldTimeout=10
MailProg=/bin/true
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=ctl
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
NodeName=n[1-{num_nodes}] CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 \
RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes=n[1-{num_nodes}] Default=YES MaxTime=01:00:00 DefMemPerNode={memory_mb // 2} \
PriorityTier=1 GraceTime=15 State=UP
PartitionName=urgent Nodes=n[1-{num_nodes}] MaxTime=01:00:00 DefMemPerNode={memory_mb // 2} \
PriorityTier=10 PreemptMode=OFF State=UP
"""


def _slurmdbd_conf(folder: Path) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=ctl
DbdAddr=10.77.0.254
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=slurm
StoragePass=lab
StorageLoc=slurm_acct_db
"""


def _hosts(num_nodes: int) -> str:
    nodes = "".join(f"10.77.0.{number} n{number}\n" for number in range(1, num_nodes + 1))
    return f"127.0.0.1 localhost\n10.77.0.254 ctl\n{nodes}"


def _ssh_config(folder: Path) -> str:
    return f"""\
Host *
  IdentityFile {folder}/ssh/id_ed25519
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def _sshd_config(folder: Path) -> str:
    return f"""\
Port 22
HostKey {folder}/ssh/host_key
AuthorizedKeysFile {folder}/ssh/authorized_keys
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
PidFile none
"""
