"""Pods on this machine: a network namespace each, joined by a bridge, with a hostname, an /etc/hosts and process ids of their own.

They need no root where a user may create user namespaces, and no container engine: files are those of this machine.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from components.system.process import spawn

BRIDGE = "10.77.0.1"
"""The address of this end of the bridge, on which a test runs the servers that pods reach."""
_USER = ("--user", "--map-root-user")


def cannot_make(*, user: bool) -> str:
    """Return why pods cannot be made here, in a user namespace or as root, or nothing if they can."""
    if missing := [name for name in ("unshare", "nsenter", "ip", "hostname") if shutil.which(name) is None]:
        return f"needs {', '.join(missing)}"
    if not user and os.geteuid() != 0:
        return "needs root"
    script = "ip link add x0 type bridge && ip link add x1 type veth peer name x2 && hostname x && mount --bind /etc/hosts /etc/hosts"
    command = ["unshare", *(_USER if user else ()), "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"cannot make namespaces: {done.stderr.strip()}" if done.returncode else ""


def address(index: int) -> str:
    """Return the address of a pod."""
    return f"10.77.0.{10 + index}"


@dataclass
class Network:
    """A bridge, and the namespaces of its pods; each is kept by a process that sleeps, like Kubernetes' pause containers."""

    folder: Path
    user: bool
    holder: "subprocess.Popen[bytes]"
    pauses: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def enter(self, process: "subprocess.Popen[bytes] | None" = None) -> list[str]:
        """Return the prefix of a command that runs in the namespaces of `process`, by default at this end of the bridge."""
        target = str((process or self.holder).pid)
        user = ["--user", "--preserve-credentials"] if self.user else []
        return ["nsenter", "--target", target, *user, "--net", "--uts", "--mount"]

    def pod(self, index: int) -> list[str]:
        """Return the prefix of a command that runs as process 1 of a pod, whose hostname no other pod and not even itself can resolve."""
        hosts, nameless = self.folder / "hosts", self.folder / "resolv.conf"
        # Without a name server, a name that is not in the file is unknown at once.
        start = f'mount --bind {hosts} /etc/hosts && {{ mount --bind {nameless} /etc/resolv.conf || true; }} && exec "$@"'
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", start, "sh"]
        return [*self.enter(self.pauses[index]), *isolated]

    def was_killed(self, log: str) -> bool:
        """Return whether the log of a pod says that SIGKILL ended it, where `unshare` ends with status 1 instead (util-linux 2.38)."""
        return "unshare: sigprocmask unblock failed" in log

    def add_pod(self) -> None:
        """Add the namespaces of one more pod."""
        index = len(self.pauses)
        command = [*self.enter(), "unshare", "--net", "--uts", "sh", "-c", f"hostname pod-{index}-xyz && exec sleep 3600"]
        pause = spawn(command)
        self.pauses.append(pause)
        own = Path(f"/proc/{self.holder.pid}/ns/net").readlink()
        _until(lambda: Path(f"/proc/{pause.pid}/ns/net").readlink() != own and psutil.Process(pause.pid).name() == "sleep")
        link = f"veth{index}"
        self.run(f"ip link add {link} type veth peer name eth0 netns {pause.pid} && ip link set {link} master br0 up")
        inside = f"ip address add {address(index)}/24 dev eth0 && ip link set eth0 up && ip link set lo up"
        subprocess.run([*self.enter(pause), "sh", "-c", inside], check=True)

    def run(self, script: str) -> None:
        """Run a shell script at this end of the bridge."""
        subprocess.run([*self.enter(), "sh", "-c", script], check=True)

    def listening(self, index: int | None = None) -> set[tuple[str, int]]:
        """Return the addresses and ports that processes listen on in a pod, or at this end of the bridge."""
        process = self.holder if index is None else self.pauses[index]
        command = [*self.enter(process), "cat", "/proc/net/tcp", "/proc/net/tcp6"]
        tables = subprocess.run(command, check=True, capture_output=True, text=True)
        places = [line.split()[1] for line in tables.stdout.splitlines() if line.split()[3:4] == ["0A"]]
        return {(_readable(place.split(":")[0]), int(place.split(":")[1], 16)) for place in places}


def _readable(raw: str) -> str:
    if len(raw) > 8:
        return "::" if set(raw) == {"0"} else raw
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(raw)))


@contextmanager
def network(folder: Path, *, user: bool, pods: int) -> Iterator[Network]:
    """Make a bridge with `pods` pods until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{address(index)} node-{index}" for index in range(pods)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
    (folder / "resolv.conf").write_text("")
    script = f"ip link add br0 type bridge && ip address add {BRIDGE}/24 dev br0 && ip link set br0 up && ip link set lo up"
    command = ["unshare", *(_USER if user else ()), "--net", "--uts", "--mount", "sh", "-c", f"{script} && exec sleep 3600"]
    made = Network(folder, user, spawn(command))
    try:
        _until(lambda: psutil.Process(made.holder.pid).name() == "sleep")
        for _ in range(pods):
            made.add_pod()
        yield made
    finally:
        for process in [*made.pauses, made.holder]:
            process.kill()
            process.wait()


def init_of(pod: "subprocess.Popen[bytes]") -> psutil.Process:
    """Return process 1 of a running pod, as this machine sees it."""
    children: list[psutil.Process] = []

    def is_there() -> bool:
        children[:] = psutil.Process(pod.pid).children()
        return bool(children)

    _until(is_there)
    return children[0]


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the namespaces did not come about"
        time.sleep(0.02)
