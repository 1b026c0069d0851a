"""A real SLURM of two virtual nodes on this machine, with daemons, keys, ports and directories of its own."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurm-client", "munge")
NODES = ("isoflop1", "isoflop2")
PATH = "/usr/sbin:/usr/bin"
# Credentials live as long as a requeued job waits at least: SLURM keeps its nodes apart from the turn before by time.
REQUEUE_SECONDS = 5


class UnavailableError(Exception):
    """Why there is no SLURM here."""


def install() -> None:
    """Installs SLURM where it is missing and this is a Debian that lets us.

    Raises:
      UnavailableError: with the reason.
    """
    if os.geteuid() != 0:
        raise UnavailableError("SLURM's daemons are started as root, and this is not root")
    with (Path(tempfile.gettempdir()) / "isoflop-slurm.lock").open("w") as lock:  # workers of one test run
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(shutil.which(name, path=PATH) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
            return
        if shutil.which("apt-get") is None:
            raise UnavailableError("SLURM is not installed, and there is no apt-get to install it with")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=quiet, check=False)
            if done.returncode != 0:
                raise UnavailableError(f"apt-get {command[0]} does not give SLURM: {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def started() -> Iterator[dict[str, str]]:
    """The variables under which SLURM's commands, and what they start, find this cluster; ended afterwards.

    Raises:
      UnavailableError: it cannot be installed.
    """
    install()
    home = Path(tempfile.mkdtemp(prefix="isoflop-slurm-", dir="/tmp"))
    home.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        with names():
            _configure(home)
            environment = {"SLURM_CONF": str(home / "slurm.conf")}
            _start(home, daemons, ["munged", "--foreground", "--force", f"--socket={home}/munge.socket",
                                   f"--key-file={home}/munge.key", f"--pid-file={home}/munged.pid",
                                   f"--log-file={home}/munged.log", f"--seed-file={home}/munged.seed"])  # fmt: skip
            _wait(lambda: (home / "munge.socket").exists(), home, daemons)
            _start(home, daemons, ["slurmctld", "-D", "-f", f"{home}/slurm.conf"])
            for node in NODES:
                _start(home, daemons, ["slurmd", "-D", "-N", node, "-f", f"{home}/slurm.conf"])
            idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
            _wait(lambda: _answer(idle, environment) == str(len(NODES)), home, daemons)
            try:
                yield environment
            finally:
                _end_jobs(environment)
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(home, ignore_errors=True)


def _end_jobs(environment: dict[str, str]) -> None:
    """What a failed test has left running outlives its daemons."""
    left, until = ["squeue", "--noheader", "--format=%i"], time.monotonic() + 40
    while (jobs := _answer(left, environment).split()) and time.monotonic() < until:
        _answer(["scancel", *jobs], environment)
        time.sleep(1)


@contextlib.contextmanager
def names() -> Iterator[None]:
    """The nodes by name: SLURM tells a process the name of the node of process 0, and it is to find it."""
    hosts = Path("/etc/hosts")
    line = f"127.0.0.1 {' '.join(NODES)}\n"
    try:
        socket.gethostbyname(NODES[0])
    except OSError:
        with hosts.open("a") as file:  # left there: another worker of the tests may have begun to use it
            file.write(line)
    yield


def _configure(home: Path) -> None:
    controller, *ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().split(".")[0]
    (home / "munge.key").write_bytes(secrets.token_bytes(128))
    (home / "munge.key").chmod(0o600)
    (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    for name in ("state", *NODES):
        (home / name).mkdir()
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000 State=UNKNOWN"
        for node, port in zip(NODES, ports, strict=True)
    ]
    settings = {
        "ClusterName": "isoflop",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "AuthInfo": f"socket={home}/munge.socket,cred_expire={REQUEUE_SECONDS}",
        "StateSaveLocation": home / "state",
        "SlurmctldPidFile": home / "slurmctld.pid",
        "SlurmctldLogFile": home / "slurmctld.log",
        "SlurmdSpoolDir": home / "%n",
        "SlurmdPidFile": home / "slurmd-%n.pid",
        "SlurmdLogFile": home / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SchedulerParameters": "sched_interval=1,sched_min_interval=0,batch_sched_delay=0",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [*nodes, "PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP"]
    (home / "slurm.conf").write_text("\n".join(lines) + "\n")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _start(home: Path, daemons: list[subprocess.Popen[bytes]], command: list[str]) -> None:
    with (home / "daemons.log").open("ab") as log:
        program = shutil.which(command[0], path=PATH)
        assert program is not None, command[0]
        daemons.append(subprocess.Popen([program, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log))


def _answer(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    ).stdout.strip()


def _wait(ready: Callable[[], bool], home: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + 60
    while not ready():
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > until:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(home.glob("*.log")))
            raise AssertionError(f"SLURM does not start ({dead or 'nodes stay away'}):\n{logs}")
        time.sleep(0.2)
