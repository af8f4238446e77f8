"""How ranks open a model together: rank 0 says which, and every rank makes its part of the same one, or none does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.distributed.environment import find_place, wanted_split
from specdec.distributed.group import Group, join
from specdec.distributed.split import chosen_split
from specdec.distributed.stages import Stage, StagedRuntime
from specdec.distributed.watch import named
from specdec.errors import DistributedError
from specdec.runtimes.base import Runtime
from specdec.runtimes.choose import STAGED, chosen_runtime, create_runtime
from specdec.runtimes.cores import usable_cores
from specdec.runtimes.share import Share
from specdec.version import version

if TYPE_CHECKING:
    from specdec.distributed.leader import Leader
    from specdec.store import Store


@dataclass(frozen=True, slots=True)
class Order:
    """A model to open.

    Attributes:
        name: what rank 0 was asked to load: a catalogue name or a path.
        path: of the store on rank 0's machine.
        runtime: name of the runtime.
        threads: that every rank computes with; None shares out the cores of its machine.
        load_share: see `specdec.load`.
        context: see `specdec.load`.
        split: "outputs" or "layers".
    """

    name: str
    path: str
    runtime: str
    threads: int | None
    load_share: float
    context: int | None
    split: str


def open_runtime(
    store: Store, *, name: str, runtime: str, threads: int | None, load_share: float, context: int | None
) -> Runtime:
    """The runtime of an open store: of this process alone, or of all ranks where a launcher has started several.

    Args:
        store: an open store.
        name: what it was loaded as.
        runtime: see `create_runtime`, like `threads`.
        threads: threads to compute with.
        load_share: that the store was opened with, like `context`.
        context: tokens.

    Raises:
        DistributedError: ranks differ in version, store or runtime, or one cannot open its part.
        UnknownNameError: no runtime has this name.
        InvalidArgumentError: `threads` is not a number of threads.
        RuntimeUnavailableError: the runtime cannot run here.
    """
    if find_place() is None:
        return create_runtime(runtime, store, threads=threads)
    from specdec.distributed.leader import LeaderRuntime

    leader, chosen = the_leader(), chosen_runtime(runtime, store)
    order = Order(
        name=str(Path(name).resolve()) if Path(name).exists() else name,
        path=str(store.path),
        runtime=chosen,
        threads=threads,
        load_share=load_share,
        context=context,
        split=chosen_split(wanted_split(), store, leader, stages=chosen in STAGED),
    )
    number = leader.number()
    with leader.turn:
        leader.tell("open", number, asdict(order))
        local = _part(order, store, leader.group)
        answers = leader.answers()
    own = _card(store, local)
    for link, (card, problem) in zip(leader.group.links, answers, strict=True):
        if problem:
            raise DistributedError(f"{named(link)} cannot open the model: {problem}")
        _compare(named(link), card, own)
    return LeaderRuntime(leader, local, number)


def open_part(order: Order, group: Group) -> tuple[Runtime, dict[str, Any]]:
    """A follower's part of a model, and what it says of it.

    Raises:
        SpecdecError: there is no such model here, or it cannot be opened.
    """
    from specdec.catalogue import resolve_model
    from specdec.licence import accepted
    from specdec.store import Store

    # Rank 0's store, where the file system is the same; else the one that this machine has of the same model.
    shared = group.hosts[0] == group.hosts[group.rank] or Path(order.path).exists()
    path = Path(order.path) if shared else resolve_model(order.name, consent=accepted)
    store = Store.open(path, load_share=order.load_share, context=order.context)
    runtime = _part(order, store, group)
    return runtime, _card(store, runtime)


def _part(order: Order, store: Store, group: Group) -> Runtime:
    threads = order.threads
    if threads is None and order.runtime == "native":
        threads = max(1, usable_cores() // group.neighbours)
    if order.split == "layers":
        stage = Stage(store.config, group)
        return StagedRuntime(create_runtime(order.runtime, store, threads=threads, share=stage), stage)
    share = Share(store.config, store.layout.bucket_size, group)
    return create_runtime(order.runtime, store, threads=threads, share=share)


def _card(store: Store, runtime: Runtime) -> dict[str, Any]:
    """What ranks have to have in common."""
    return {
        "version": version(),
        "store": store.checksum,
        "views": sorted(runtime.views()),
        "runtime": runtime.info.name,
    }


def _compare(rank: str, card: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a rank that differs.

    Raises:
        DistributedError: it does.
    """
    if card["version"] != own["version"]:
        raise DistributedError(
            f"{rank} has version {card['version']} of specdec and rank 0 has {own['version']}: install the same on all"
        )
    if card["store"] != own["store"]:
        raise DistributedError(
            f"{rank} has another store of the model than rank 0: convert the same file with the same version on all "
            f"machines, or copy the store"
        )
    for name in ("runtime", "views"):
        if card[name] != own[name]:
            raise DistributedError(f"{rank} differs from rank 0 in its {name}: {card[name]} in place of {own[name]}")


@cache
def the_leader() -> Leader:
    """What this process, rank 0, tells the others with.

    Raises:
        DistributedError: the others cannot be reached.
    """
    from specdec.distributed.leader import Leader

    return Leader(join())
