"""Where ranks meet: what decides it, and what does not."""

from pathlib import Path

import pytest

from components.errors import BadInput
from components.runtime.rendezvous import Nodes, single_machine

TRAINER = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "29500", "PET_NPROC_PER_NODE": "8"}
OTHERS = {"PET_RDZV_BACKEND": "c10d", "PET_STANDALONE": "1", "TORCHELASTIC_RUN_ID": "x", "PATH": "/bin"}


def test_nodes_meet_at_the_static_rendezvous_of_the_trainers_variables_alone() -> None:
    nodes = Nodes.from_environment({**TRAINER, **OTHERS})
    assert nodes.options(timeout_s=7.4) == [
        "--nnodes=2",
        "--node-rank=1",
        "--rdzv-backend=static",
        "--master-addr=127.0.0.1",
        "--master-port=29500",
        "--rdzv-id=celebdit",
        "--rdzv-conf=timeout=7",
    ]
    environment = nodes.environment({**TRAINER, **OTHERS})
    assert environment == {"PATH": "/bin", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}, "the way to 127.0.0.1"


def test_an_interface_that_an_administrator_set_is_kept() -> None:
    assert Nodes(2, 0, "127.0.0.1", 1).environment({"NCCL_SOCKET_IFNAME": "ib0"})["NCCL_SOCKET_IFNAME"] == "ib0"


def test_a_first_node_that_does_not_resolve_yet_is_no_error() -> None:
    assert Nodes(2, 1, "no-such-host.invalid", 1).environment({"A": "b"}) == {"A": "b"}


@pytest.mark.parametrize(
    ("name", "value"), [("PET_NNODES", None), ("PET_NODE_RANK", "auto"), ("PET_MASTER_ADDR", ""), ("PET_MASTER_PORT", "x")]
)
def test_a_missing_or_odd_variable_is_named(name: str, value: str | None) -> None:
    environ = {key: text for key, text in {**TRAINER, name: value}.items() if text is not None}
    with pytest.raises(BadInput, match=name):
        Nodes.from_environment(environ)


def test_nothing_of_the_surroundings_steers_the_ranks_of_one_machine(tmp_path: Path) -> None:
    options, environment = single_machine(
        tmp_path, {**TRAINER, **OTHERS, "MASTER_ADDR": "10.0.0.1", "RANK": "3", "GLOO_SOCKET_IFNAME": "eth0"}
    )
    assert not [name for name in environment if name.startswith(("PET_", "MASTER_", "TORCHELASTIC_")) or name == "RANK"]
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert "--nnodes=1" in options
