"""A private Slurm of four nodes on this machine: munged, mariadbd, slurmdbd, slurmctld and four slurmd.

Everything lives in one folder, on sockets and ports of its own, and ends with `stop`; a Slurm that is already on the
machine is never touched. Needs root, because slurmd does.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb",
    "mariadb-install-db",
    "slurmctld",
    "slurmdbd",
    "slurmd",
    "sbatch",
    "sacct",
)
# What comes, comes sooner.
START_SECONDS = 600.0
FIRST_PORT, LAST_PORT = 28100, 32700

SLURM_CONF = """ClusterName=stres
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=6
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
TmpFS={root}/tmp/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,defer_batch
ReturnToService=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=600
SlurmdTimeout=8
InactiveLimit=0
OverTimeLimit=0
MessageTimeout=20
TCPTimeout=10
JobRequeue=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={root}/munge.socket
NodeName=n[1-4] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{node}-{node_last}] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=UNLIMITED State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n[1-4] MaxTime=UNLIMITED State=UP PriorityTier=10 PreemptMode=OFF
"""

# What a site adds: accounts, QOS limits and wckeys that are enforced, GPUs on three of its nodes, and a partition
# without any.
SITE_CONF = """GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=4000 State=UNKNOWN
AccountingStorageEnforce=associations,limits,qos,wckeys
TrackWCKey=yes
NodeName=n[1-3] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{node}-{node_gpu}] Gres=gpu:a100:4 Feature=a100
NodeName=n4 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node_last}
PartitionName=gpu Nodes=n[1-3] MaxTime=2-0 State=UP AllowQos=normal,long
PartitionName=cpu Nodes=n4 MaxTime=1-0 State=UP
"""
SITE_GRES = "NodeName=n[1-3] Name=gpu Type=a100 File={root}/gpu[0-3]\n"
SITE_ACCOUNTS = (
    "add account proj1234",
    "add qos long",
    "add qos small MaxSubmitJobsPerUser=2",
    "add user root account=proj1234 wckey=thesis",
    "modify user root set qos=normal,long,small DefaultWCKey=thesis",
)

SLURMDBD_CONF = """AuthType=auth/munge
AuthInfo={root}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


def missing():
    """Why this machine cannot bring a private Slurm up, or an empty text."""
    if os.getuid() != 0:
        return "the private Slurm needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def free_ports(count):
    """First of `count` free neighbours, above the ports that ranks choose and below those of outgoing connections."""
    firsts = list(range(FIRST_PORT, LAST_PORT - count, count))
    start = random.SystemRandom().randrange(len(firsts))
    for first in firsts[start:] + firsts[:start]:
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


class PrivateSlurm:
    """The daemons, started in order, and the environment that points commands at them."""

    def __init__(self, root, is_site=False, prefix="n", more=""):
        """`prefix` is what its nodes are called before their numbers; `more` are lines of
        slurm.conf that hold in place of those above."""
        self.root, self.is_site, self.prefix, self.more = Path(root), is_site, prefix, more
        self.nodes = tuple(f"{prefix}{number}" for number in range(1, 5))
        first = free_ports(7)
        ports = {
            "ctld": first,
            "dbd": first + 1,
            "db": first + 2,
            "node": first + 3,
            "node_gpu": first + 5,
            "node_last": first + 6,
        }
        self.ports = {"root": self.root, **ports}
        self.processes = {}
        self.environment = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}
        for name in [
            key for key in self.environment if key.startswith("SLURM_") and key != "SLURM_CONF"
        ]:
            del self.environment[name]

    def start(self):
        """Bring everything up; four nodes are idle and sacct answers when this returns."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        for folder in (
            "state",
            "db",
            *(f"{kind}/{node}" for kind in ("spool", "tmp") for node in self.nodes),
        ):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        conf, accounting = SLURM_CONF, SLURMDBD_CONF
        if self.is_site:
            conf = conf.partition("NodeName=")[0] + SITE_CONF
            accounting += "TrackWCKey=yes\n"
            (self.root / "gres.conf").write_text(self._named(SITE_GRES))
            for number in range(4):
                (self.root / f"gpu{number}").touch()
        self.configure(conf)
        (self.root / "slurmdbd.conf").write_text(accounting.format(**self.ports))
        (self.root / "slurmdbd.conf").chmod(0o600)
        self._start_munge()
        self._start_database()
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        self.wait(lambda: self.ok("sacctmgr", "-n", "list", "cluster"), "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "stres", check=False)
        for words in SITE_ACCOUNTS if self.is_site else ():
            self.run("sacctmgr", "-i", *words.split())
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait(self.all_idle, "four idle nodes")
        return self

    def _named(self, text):
        """A file's text with this cluster's names and ports."""
        text = re.sub(r"(Name|Nodes)=n(?=[\[\d])", rf"\1={self.prefix}", text)
        return text.format(**self.ports)

    def configure(self, conf=None):
        """Write slurm.conf; a daemon reads it when it starts. Without a text the same again, with
        the lines that `more` has now."""
        self.conf = conf = conf or self.conf
        own = {line.partition("=")[0] for line in self.more.splitlines()}
        lines = [line for line in conf.splitlines() if line.partition("=")[0] not in own]
        text = self._named("\n".join(lines) + "\n") + self.more
        (self.root / "slurm.conf").write_text(text)

    def start_controller(self):
        """Start slurmctld, also after `stop_controller`."""
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", str(self.root / "slurm.conf")])

    def stop_controller(self):
        """The controller goes; jobs run on."""
        process = self.processes.pop("slurmctld")
        process.terminate()
        process.wait()

    def _start_munge(self):
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = ["--socket", "munge.socket", "--key-file", "munge.key", "--pid-file", "munge.pid"]
        files += ["--log-file", "munge.log", "--seed-file", "munge.seed"]
        command = [str(self.root / part) if part.startswith("munge.") else part for part in files]
        self._spawn("munged", ["munged", "--foreground", "--force", "--num-threads", "2", *command])
        self.wait((self.root / "munge.socket").exists, "munged")

    def _start_database(self):
        data, sock = self.root / "db", self.root / "db.socket"
        install = [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--user=root",
            "--skip-test-db",
        ]
        self.run(*install, "--auth-root-authentication-method=normal")
        options = [
            f"--datadir={data}",
            f"--socket={sock}",
            f"--port={self.ports['db']}",
            "--bind-address=127.0.0.1",
        ]
        options += ["--user=root", f"--pid-file={data}/db.pid", "--innodb-buffer-pool-size=64M"]
        self._spawn(
            "mariadbd",
            ["mariadbd", "--no-defaults", *options, "--innodb-flush-log-at-trx-commit=0"],
        )
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "-u", "root", "-e"]
        self.wait(lambda: self.ok(*client, "select 1"), "mariadbd")
        grant = "create database slurm_acct; create user slurm@'127.0.0.1' identified by 'slurm';"
        self.run(
            *client, grant + "grant all on slurm_acct.* to slurm@'127.0.0.1'; flush privileges"
        )

    def start_node(self, node):
        """Start one slurmd, also after `kill_node`."""
        self._spawn(node, ["slurmd", "-D", "-f", str(self.root / "slurm.conf"), "-N", node])

    def kill_node(self, node):
        """The node dies: its slurmd and every process of its job steps, at once."""
        daemon = psutil.Process(self.processes[node].pid)
        family = [daemon, *daemon.children(recursive=True), *self._step_daemons(node)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.processes.pop(node).wait()

    def _step_daemons(self, node):
        """slurmstepd and tasks of a node; they are no children of its slurmd."""
        found = []
        for process in self._ours():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get("SLURMD_NODENAME") == node or f"[{node}]" in process.name():
                    found.append(process)
        return found

    def _ours(self):
        """Processes that run in this Slurm, whoever their parent is."""
        conf = str(self.root / "slurm.conf")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == conf and process.pid != os.getpid():
                    yield process

    def stop(self):
        """End all jobs, then all daemons, then whatever is left; returns what had to be killed beyond the daemons."""
        if "slurmctld" in self.processes:
            self.run("scancel", "--user", "root", check=False)
            with contextlib.suppress(RuntimeError):
                self.wait(lambda: not self.queue(), "an empty queue")
        for name in [*self.nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            if name in self.processes:
                process = self.processes.pop(name)
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        left = [process for process in self._ours() if process.pid not in self._ancestors()]
        names = [f"{p.pid} {p.name()}" for p in left if p.is_running()]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=60)
        return names

    @staticmethod
    def _ancestors():
        return {process.pid for process in [psutil.Process(), *psutil.Process().parents()]}

    def _spawn(self, name, command):
        log = (self.root / f"{name}.out").open("ab")
        self.processes[name] = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment, cwd=self.root,
            start_new_session=True,
        )  # fmt: skip

    # -- asking it ----------------------------------------------------------------------------------------------------

    def run(self, *command, check=True, **more):
        """A command against this Slurm, with its output as text."""
        options = {
            "capture_output": True,
            "text": True,
            "env": self.environment,
            "timeout": START_SECONDS,
            **more,
        }
        return subprocess.run([str(part) for part in command], check=check, **options)

    def ok(self, *command):
        """Whether a command succeeds."""
        return self.run(*command, check=False).returncode == 0

    def all_idle(self):
        """Whether all nodes wait for work."""
        return set(self.node_states()) == {"idle"}

    def node_states(self):
        """State of each node."""
        shown = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).stdout.splitlines()
        states = dict(line.split() for line in shown)
        return [states.get(node, "") for node in self.nodes]

    def queue(self):
        """Ids of jobs that are pending, running or ending."""
        return self.run("squeue", "-h", "-o", "%i").stdout.split()

    def state(self, job):
        """A job's state: from the controller, else from the accounting."""
        shown = self.run("scontrol", "-o", "show", "job", str(job), check=False).stdout
        return (
            shown.split("JobState=")[1].split()[0] if "JobState=" in shown else self.accounted(job)
        )

    def accounted(self, job):
        """A job's state as sacct tells it."""
        lines = self.run("sacct", "-n", "-X", "-D", "-j", str(job), "-o", "State%30").stdout.split(
            "\n"
        )
        return lines[-2].strip() if len(lines) > 1 else ""

    def wait(self, condition, what, seconds=START_SECONDS):
        """Wait for a condition; names it when it does not come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.CalledProcessError):
                if condition():
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{what} did not come within {seconds:.0f} s; logs in {self.root}")
