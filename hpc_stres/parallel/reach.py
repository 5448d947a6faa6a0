"""Whether the ranks of a job can find and reach each other, told in seconds and by
the names of nodes.

A process group that misses one rank waits for its whole time-out and then names nobody. Here,
before anything heavy is imported, each rank resolves the first rank's address and connects to
it; the first rank sees who has come. Then each rank connects to the next one, so that a node
which reaches the first and nobody else is seen as well. All ranks end with the same sentence.
Standard library only.
"""

import contextlib
import json
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hpc_stres.errors import UserError
from hpc_stres.parallel.world import World, expand_nodes

RESOLVE_SECONDS, PEER_SECONDS, RETRY_SECONDS = 20.0, 10.0, 0.1
# With more ranks than this, one of each node takes part.
MOST_RANKS = 512
LONGEST_LINE = 1 << 20
# A node, what it cannot do, and in which words.
Blame = tuple[str, Literal["name", "network"], str]


class Unreachable(UserError):
    """Nodes that others cannot find or reach; `blamed` holds each with its kind and its reason."""

    def __init__(self, text: str, blamed: Sequence[Blame]) -> None:
        super().__init__(text)
        self.blamed = tuple(blamed)


@dataclass(frozen=True)
class Place:
    """Who this process is, and who its peers are: the participants' ranks and the node of each."""

    world: World
    node: str
    ranks: tuple[int, ...]
    nodes: tuple[str, ...]

    def some(self, numbers: Sequence[int]) -> str:
        """`rank 2 on n3, rank 5 on n6` of positions among the participants."""
        shown = [f"rank {self.ranks[n]} on {self.nodes[n]}" for n in numbers[:4]]
        more = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
        return ", ".join(shown) + more


def nodes_by_rank(env: Mapping[str, str], size: int) -> list[str] | None:
    """The node of each rank as Slurm puts them, in blocks or in turn; None where
    Slurm does not say."""
    listed = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    counts: list[int] = []
    for number, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", tasks):
        counts += [int(number)] * int(times or 1)
    if not listed:
        return None
    nodes = expand_nodes(listed)
    if len(nodes) != len(counts) or sum(counts) != size:
        return None
    if not env.get("SLURM_DISTRIBUTION", "block").startswith("cyclic"):
        return [node for node, count in zip(nodes, counts, strict=True) for _ in range(count)]
    turns = range(max(counts))
    return [n for turn in turns for n, count in zip(nodes, counts, strict=True) if turn < count]


def resolve(name: str, seconds: float = RESOLVE_SECONDS) -> str:
    """Why a name has no address; empty where it has one. A name server that is mute is not
    waited for longer."""
    answer: list[str] = []

    def ask() -> None:
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            answer.append("")
        except OSError as error:
            answer.append(error.strerror or str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:.0f} s"


def refuse_unresolvable(world: World, node: str, names: Sequence[str] = ()) -> None:
    """The first rank's address has to have an address here. Where none of the other nodes' names
    has one either, it is this node that cannot resolve."""
    reason = resolve(world.address)
    if not reason:
        return
    others = [name for name in dict.fromkeys(names) if name not in (world.address, node)][:3]
    is_mine = bool(others) and node != world.address and all(map(resolve, others))
    blamed = node if is_mine else world.address
    what = f"{node} cannot resolve names" if is_mine else f"{world.address} does not resolve"
    raise Unreachable(
        f"{what}: on {node}, the name {world.address} of the first rank's node has no address: {reason}\n"
        "Set MASTER_ADDR in cluster.environment to a name or address that every node knows, or leave that node out.",
        [(blamed, "name", f"{what} (seen on {node}: {reason})")],
    )


def check(
    world: World, node: str, patience_seconds: float, env: Mapping[str, str] | None = None
) -> None:
    """Every rank reaches the first one within the patience, and each the next; raises
    `Unreachable` on all of them."""
    if world.size == 1 or world.source == "torchrun":  # torchrun's own agent listens at that port
        return
    known = nodes_by_rank(os.environ if env is None else env, world.size)
    refuse_unresolvable(world, node, known or ())
    if known is None and world.size > MOST_RANKS:
        return
    nodes = known or [f"rank {rank}'s node" for rank in range(world.size)]
    ranks = list(range(world.size))
    if world.size > MOST_RANKS:
        ranks = [rank for rank in ranks if rank == 0 or nodes[rank] != nodes[rank - 1]]
    if world.rank not in ranks:
        return
    place = Place(world, node, tuple(ranks), tuple(nodes[rank] for rank in ranks))
    deadline = time.monotonic() + patience_seconds
    with _listening(0) as mine:
        if not world.is_first:
            _visit(place, mine.getsockname()[1], deadline)
            return
        try:
            _Host(place, mine.getsockname()[1], deadline).run()
        except OSError as error:
            raise UserError(
                f"{node}: cannot listen at port {world.port} for the other ranks: {error.strerror or error}\n"
                "Set another MASTER_PORT in cluster.environment, or submit again: a job's port follows its number."
            ) from None


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=4096)
    with server:
        yield server


class _Line:
    """A connection that carries one JSON value a line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rest = connection, b""

    def send(self, value: Any) -> None:
        """One value."""
        self.connection.sendall(json.dumps(value).encode() + b"\n")

    def receive(self, seconds: float) -> Any:
        """The next value; an OSError where the other side is gone or silent."""
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            self.connection.settimeout(max(0.01, end - time.monotonic()))
            data = self.connection.recv(1 << 16)
            if not data or len(self.rest) > LONGEST_LINE:
                raise ConnectionError("the other side has left")
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)


@dataclass
class _Host:
    """The first rank's side."""

    place: Place
    port: int
    deadline: float
    lines: dict[int, _Line] = field(default_factory=dict)
    peers: dict[int, tuple[str, int]] = field(default_factory=dict)
    own_address: str = ""

    def run(self) -> None:
        """Wait for everyone, let them try each other, and tell all what came of it."""
        wanted = set(range(1, len(self.place.ranks)))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 2 * len(wanted) + 64:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            with _listening(self.place.world.port) as server:
                while wanted - set(self.lines) and time.monotonic() < self.deadline:
                    self._accept(server)
            self._judge(sorted(wanted - set(self.lines)))
        finally:
            for line in self.lines.values():
                line.connection.close()

    def _accept(self, server: socket.socket) -> None:
        server.settimeout(max(0.01, self.deadline - time.monotonic()))
        try:
            connection, address = server.accept()
        except TimeoutError:
            return
        line = _Line(connection)
        try:
            said = line.receive(PEER_SECONDS)
            position = self.place.ranks.index(int(said["rank"]))
            port = int(said["port"])
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()  # somebody else's connection: a scanner of ports
            return
        host = str(address[0]).removeprefix("::ffff:")
        if not _is_loopback(host):
            self.own_address = str(connection.getsockname()[0]).removeprefix("::ffff:")
        self.lines[position], self.peers[position] = line, (host, port)

    def _judge(self, missing: list[int]) -> None:
        if missing:
            self._tell({"missing": missing})
            raise _missing(self.place, missing)
        # A rank that came over the loopback is on this node: others reach it as
        # they reach this one.
        here = self.own_address or "127.0.0.1"
        table = [[here, self.port]] + [
            [here if _is_loopback(self.peers[n][0]) else self.peers[n][0], self.peers[n][1]]
            for n in range(1, len(self.place.ranks))
        ]
        self._tell({"peers": table})
        dead = {} if not (fault := _try_next(0, table)) else {0: fault}
        for position, line in self.lines.items():
            try:
                fault = str(line.receive(3 * PEER_SECONDS)["fault"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                fault = f"it fell silent: {error}"
            if fault:
                dead[position] = fault
        faults = sorted(dead.items())
        self._tell({"dead": faults})
        if faults:
            raise _dead(self.place, faults)

    def _tell(self, value: Any) -> None:
        for line in self.lines.values():
            with contextlib.suppress(OSError):  # it is named by its silence
                line.send(value)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def _visit(place: Place, port: int, deadline: float) -> None:
    """The side of every other rank."""
    world = place.world
    position = place.ranks.index(world.rank)
    connection = _connect(place, deadline)
    with connection:
        line = _Line(connection)
        try:
            line.send({"rank": world.rank, "port": port})
            said = line.receive(max(0.0, deadline - time.monotonic()) + 3 * PEER_SECONDS)
            if "peers" in said:
                line.send({"fault": _try_next(position, said["peers"])})
                said = line.receive(5 * PEER_SECONDS)
        except (OSError, ValueError) as error:
            raise Unreachable(
                f"{place.node} lost the first rank's node {place.nodes[0]} while ranks were looking for each other: "
                f"{error}\nIts own message says why.", (),
            ) from None  # fmt: skip
    if said.get("missing"):
        raise _missing(place, said["missing"])
    if said.get("dead"):
        raise _dead(place, said["dead"])


def _connect(place: Place, deadline: float) -> socket.socket:
    world, reason, is_refused = place.world, "no time was left", False
    while time.monotonic() < deadline:
        left = max(0.5, deadline - time.monotonic())
        try:
            return socket.create_connection((world.address, world.port), timeout=left)
        except OSError as error:
            reason, is_refused = (
                error.strerror or str(error),
                isinstance(error, ConnectionRefusedError),
            )
        time.sleep(RETRY_SECONDS)
    first = place.nodes[0]
    raise Unreachable(
        f"{place.node} cannot reach the first rank at {world.address}:{world.port}: {reason}\n"
        "Is its rank there? The message of the first rank names who did not come.",
        # Its node answers and its rank does not: where it was there, it has named
        # who came too late.
        [(first, "network", f"{first}: its rank was not there for {place.node}")]
        if is_refused
        else [],
    )


def _try_next(position: int, table: Sequence[Sequence[Any]]) -> str:
    """Why the next rank cannot be reached from here; empty where it can."""
    host, port = table[(position + 1) % len(table)]
    try:
        socket.create_connection((str(host), int(port)), timeout=PEER_SECONDS).close()
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""


def _missing(place: Place, missing: Sequence[int]) -> Unreachable:
    """Ranks that did not come. Where nobody of several other nodes came, it is the first rank that
    was not reached."""
    others = {node for node in place.nodes if node != place.nodes[0]}
    lost = {place.nodes[n] for n in missing}
    alone = len(others) > 1 and lost >= others
    blamed = [place.nodes[0]] if alone else sorted(lost)
    reason = (
        "no other node reached it"
        if alone
        else f"did not reach {place.nodes[0]} ({place.world.address})"
    )
    return Unreachable(
        f"{place.some(missing)} did not reach the first rank on {place.nodes[0]} "
        f"({place.world.address}:{place.world.port}): dead, late, or without a network\n"
        "Later attempts leave that node out; cluster.arrival_seconds says how long ranks are waited for.",
        [(node, "network", f"{node}: {reason}") for node in blamed],
    )


def _dead(place: Place, faults: Sequence[tuple[int, str]]) -> Unreachable:
    """Ranks that the one before them could not reach; one that reaches nobody and is reached by
    nobody is the same."""
    size, complaining = len(place.ranks), dict(faults)
    quiet = next((n for n in range(size) if n not in complaining), 0)
    lost: list[int] = []
    for n in (number % size for number in range(quiet, quiet + size)):
        # Who is out of reach reaches nobody either: what it says of the next one does not count.
        if n in complaining and n not in lost:
            lost.append((n + 1) % size)
    first = (lost[0] - 1) % size
    reason = complaining[first]
    return Unreachable(
        f"{place.some(lost)}: not reachable from the other nodes (from {place.nodes[first]}: {reason})\n"
        "The nodes' network, a firewall between them, or their names are wrong; later attempts leave them out.",
        [
            (
                place.nodes[n],
                "network",
                f"{place.nodes[n]}: not reachable from other nodes ({reason})",
            )
            for n in lost
        ],
    )
