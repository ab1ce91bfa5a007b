"""Where ranks meet: those of one machine in a private folder, those of several nodes at the static rendezvous of Kubeflow Trainer.

Promises: on one machine nothing of the environment decides it; on several nodes nothing but the PET_ variables that Trainer sets, and gloo
and NCCL use the interface that leads to the first node, whatever the pod's hostname resolves to.
"""

import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.environment import RENDEZVOUS
from components.errors import BadInput, shorten

NODE_TIMEOUT_S = 600.0
"""How long nodes wait for each other by default."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_TORCHRUN_PREFIXES = ("PET_", "TORCHELASTIC_", "MASTER_", "GLOO_")
_TORCHRUN_NAMES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "ROLE_RANK",
        "ROLE_NAME",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE",
        "ROLE_WORLD_SIZE",
        "NCCL_COMM_ID",
    }
)


def single_machine(folder: Path, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return torchrun's options and the environment with which the ranks of one machine meet through files in `folder`.

    `torchrun --standalone` opens two TCP stores on all interfaces and unpickles what others write into them, and it waits for the machine's
    own hostname to resolve (torch 2.15). A file store in a folder of mode 0700 does neither. Torchrun reads an option that is not given
    from a PET_ variable, so those of the surroundings (a notebook inside a TrainJob has some) are dropped.
    """
    options = [
        "--nnodes=1",
        "--node-rank=0",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={folder / 'agent'}",
        "--rdzv-conf=store_type=file",
        "--rdzv-id=celebdit",
        "--local-addr=127.0.0.1",
    ]
    kept = {name: value for name, value in environment.items() if not name.startswith(_TORCHRUN_PREFIXES) and name not in _TORCHRUN_NAMES}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return options, {
        **kept,
        RENDEZVOUS: str(folder / "ranks"),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else the agent opens a TCP store for its ranks all the same
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


@dataclass(frozen=True)
class Nodes:
    """All nodes of a training, and this one's place among them."""

    count: int
    node_rank: int
    first_address: str
    port: int

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Nodes":
        """Read what Kubeflow Trainer sets in each pod of a TrainJob.

        Raises:
            BadInput: naming the variable that is missing or is no number.
        """
        return cls(
            count=_number(environ, "PET_NNODES"),
            node_rank=_number(environ, "PET_NODE_RANK"),
            first_address=_text(environ, "PET_MASTER_ADDR"),
            port=_number(environ, "PET_MASTER_PORT"),
        )

    def options(self, *, timeout_s: float) -> list[str]:
        """Return the options of torchrun with which this node meets the others within `timeout_s`."""
        return [
            f"--nnodes={self.count}",
            f"--node-rank={self.node_rank}",
            "--rdzv-backend=static",
            f"--master-addr={self.first_address}",
            f"--master-port={self.port}",
            "--rdzv-id=celebdit",
            f"--rdzv-conf=timeout={max(round(timeout_s), 1)}",
        ]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return `environment` for torchrun and the ranks, without what would steer torchrun; interfaces that are set are kept."""
        kept = {name: value for name, value in environment.items() if not name.startswith(("PET_", "TORCHELASTIC_"))}
        interface = self._interface()
        return {**dict.fromkeys(_INTERFACES, interface), **kept} if interface else kept

    def _interface(self) -> str | None:
        """Return the interface from which this machine reaches the first node, or None if that is not known yet.

        Without it gloo takes the one whose address the hostname has, and the loopback interface if it has none (torch 2.15).
        """
        import psutil  # noqa: PLC0415 - a tenth of a second, and one machine needs none

        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.first_address, self.port))  # sends nothing
            own = probe.getsockname()[0]
            for name, addresses in psutil.net_if_addrs().items():
                if any(address.family == socket.AF_INET and address.address == own for address in addresses):
                    return name
        return None


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise BadInput(f"environment variable {name} is not set", hint="nodes are started by a TrainJob of Kubeflow Trainer, which sets it")
    return value


def _number(environ: Mapping[str, str], name: str) -> int:
    value = _text(environ, name)
    if not value.isdecimal():
        raise BadInput(
            f"environment variable {name} is {shorten(repr(value), max_characters=20)}, not a number", hint="Kubeflow Trainer sets it"
        )
    return int(value)
