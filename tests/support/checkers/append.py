"""The list-append checker: finds cycles without believing any timestamp of the database.

Clients append unique elements to lists and read whole lists. The longest list read of a key gives
the order of its versions; from it follow who overwrote whom (ww), who read from whom (wr) and who
read what was then overwritten (rw). Together with the order of a client's own transactions
(process) and of real time (realtime) these edges must form no cycle. Besides, each list is checked
for itself: elements of aborted transactions, of the middle of a transaction, twice, in two orders,
or lost at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from checkers.history import Anomaly

Element = int
MOST = 20  # anomalies worth listing


class Append(NamedTuple):
    """One element, never appended elsewhere, added at the end of a key's list."""

    key: bytes
    element: Element


class Look(NamedTuple):
    """The whole list of a key, empty when the key was absent."""

    key: bytes
    elements: tuple[Element, ...]


@dataclass(slots=True)
class ListTxn:
    """One transaction; `began` and `ended` are tickets, see `history`."""

    number: int
    client: int
    began: int
    ended: int
    committed: bool
    ops: list[Append | Look] = field(default_factory=list)


class _Lists:
    """Version order and writers of every list."""

    def __init__(self, history: Sequence[ListTxn], final: dict[bytes, tuple[Element, ...]]) -> None:
        self.writer: dict[Element, ListTxn] = {}
        self.middle: set[Element] = set()  # elements that another of the same transaction follows
        self.appended: dict[bytes, list[Element]] = {}
        self.longest: dict[bytes, tuple[Element, ...]] = dict(final)
        self.found: list[Anomaly] = []
        for txn in history:
            last: dict[bytes, Element] = {}
            for op in txn.ops:
                if isinstance(op, Append):
                    self.writer[op.element] = txn
                    self.appended.setdefault(op.key, []).append(op.element)
                    if op.key in last:
                        self.middle.add(last[op.key])
                    last[op.key] = op.element
                elif txn.committed:
                    seen = _foreign(op, txn, self.writer)
                    if len(seen) > len(self.longest.get(op.key, ())):
                        self.longest[op.key] = seen
        for key, elements in self.longest.items():
            self._check_order(key, elements)

    def _check_order(self, key: bytes, elements: tuple[Element, ...]) -> None:
        twice = [element for element, count in Counter(elements).items() if count > 1]
        if twice:
            self.found.append(Anomaly("duplicate", f"{key!r} holds {twice} more than once"))

    def note(self, kind: str, what: str) -> None:
        self.found.append(Anomaly(kind, what))


def _foreign(op: Look, txn: ListTxn, writer: dict[Element, ListTxn]) -> tuple[Element, ...]:
    """What was read without the transaction's own elements at the end."""
    elements = op.elements
    stop = len(elements)
    while stop and writer.get(elements[stop - 1]) is txn:
        stop -= 1
    return elements[:stop]


def check_lists(
    history: Sequence[ListTxn], final: dict[bytes, tuple[Element, ...]]
) -> list[Anomaly]:
    """What is wrong with a history; `final` are all lists, read when everything was over."""
    lists = _Lists(history, final)
    for txn in history:
        _inside(txn, lists)
        if txn.committed:
            _reads(txn, lists)
    _lost(history, lists, final)
    if len(lists.found) < MOST:
        committed = [txn for txn in history if txn.committed]
        lists.found += _cycles(committed, _edges(committed, lists))
    return lists.found[:MOST]


# -- each list for itself ------------------------------------------------------------------------


def _inside(txn: ListTxn, lists: _Lists) -> None:
    """A transaction sees one list that only grows by what it appends itself."""
    known: dict[bytes, tuple[Element, ...]] = {}
    own: dict[bytes, tuple[Element, ...]] = {}
    for op in txn.ops:
        if isinstance(op, Append):
            own[op.key] = (*own.get(op.key, ()), op.element)
            if op.key in known:
                known[op.key] = (*known[op.key], op.element)
            continue
        mine = own.get(op.key, ())
        if op.key in known and known[op.key] != op.elements:
            text = f"T{txn.number} saw {op.key!r} as {op.elements}, then {known[op.key]}"
            lists.note("unrepeatable", text)
        elif mine and op.elements[-len(mine) :] != mine:
            lists.note("own write unseen", f"T{txn.number} appended {mine}, saw {op.elements}")
        known[op.key] = op.elements


def _reads(txn: ListTxn, lists: _Lists) -> None:
    for op in txn.ops:
        if isinstance(op, Append):
            continue
        seen = _foreign(op, txn, lists.writer)
        for element in seen:
            writer = lists.writer.get(element)
            if writer is None:
                lists.note("unwritten element", f"T{txn.number} saw {element} in {op.key!r}")
            elif not writer.committed:
                text = f"T{txn.number} saw {element} of T{writer.number}, which did not commit"
                lists.note("aborted read", text)
        if seen and seen[-1] in lists.middle:
            lists.note("intermediate read", f"T{txn.number} saw {op.key!r} end with {seen[-1]}")
        if lists.longest.get(op.key, ())[: len(seen)] != seen:
            text = f"T{txn.number} saw {op.key!r} as {seen}, others {lists.longest.get(op.key)}"
            lists.note("incompatible order", text)


def _lost(
    history: Sequence[ListTxn], lists: _Lists, final: dict[bytes, tuple[Element, ...]]
) -> None:
    left = {key: set(elements) for key, elements in final.items()}
    for txn in history:
        for op in txn.ops if txn.committed else ():
            if isinstance(op, Append) and op.element not in left.get(op.key, ()):
                lists.note("lost append", f"{op.element} of T{txn.number} is not in {op.key!r}")


# -- cycles --------------------------------------------------------------------------------------

Edges = dict[int, dict[int, str]]  # transaction to its successors, with the kind of dependency


def _edges(history: Sequence[ListTxn], lists: _Lists) -> Edges:
    edges: Edges = {txn.number: {} for txn in history}

    def add(before: ListTxn, after: ListTxn, kind: str) -> None:
        if before is not after and before.number in edges and after.number in edges:
            edges[before.number].setdefault(after.number, kind)

    for elements in lists.longest.values():
        for one, two in pairwise(elements):
            if one in lists.writer and two in lists.writer:
                add(lists.writer[one], lists.writer[two], "ww")
    for txn in history:
        for op in txn.ops:
            if isinstance(op, Append):
                continue
            seen = _foreign(op, txn, lists.writer)
            order = lists.longest.get(op.key, ())
            if seen and seen[-1] in lists.writer:
                add(lists.writer[seen[-1]], txn, "wr")
            if len(seen) < len(order) and order[len(seen)] in lists.writer:
                add(txn, lists.writer[order[len(seen)]], "rw")
    for before, after in _in_process_order(history):
        add(before, after, "process")
    for before, after in _in_real_time(history):
        add(before, after, "realtime")
    return edges


def _in_process_order(history: Sequence[ListTxn]) -> list[tuple[ListTxn, ListTxn]]:
    by_client: dict[int, list[ListTxn]] = {}
    for txn in sorted(history, key=lambda t: t.began):
        by_client.setdefault(txn.client, []).append(txn)
    return [pair for mine in by_client.values() for pair in pairwise(mine)]


def _in_real_time(history: Sequence[ListTxn]) -> list[tuple[ListTxn, ListTxn]]:
    """Enough edges that every two transactions, one over before the other began, are connected.

    `frontier` are the transactions that are over and that no other over transaction came after.
    """
    events = [(txn.began, 0, txn) for txn in history] + [(txn.ended, 1, txn) for txn in history]
    events.sort(key=lambda event: event[0])
    frontier: list[ListTxn] = []
    pairs = []
    for _, is_end, txn in events:
        if is_end:
            frontier = [other for other in frontier if other.ended > txn.began]
            frontier.append(txn)
        else:
            pairs += [(other, txn) for other in frontier]
    return pairs


def _cycles(history: Sequence[ListTxn], edges: Edges) -> list[Anomaly]:
    found = []
    for component in components(edges):
        if len(component) > 1:
            cycle = _one_cycle(component, edges)
            kinds = [edges[a][b] for a, b in pairwise([*cycle, cycle[0]])]
            steps = " ".join(f"T{n} -{kind}->" for n, kind in zip(cycle, kinds, strict=True))
            found.append(Anomaly(_class_of(kinds), f"{steps} T{cycle[0]}"))
    return found


def _class_of(kinds: list[str]) -> str:
    """Adya's names: G0 writes only, G1c with reads, G-single with one overwritten read, G2 more."""
    overwritten = kinds.count("rw")
    if overwritten:
        name = "G-single" if overwritten == 1 else "G2"
    else:
        name = "G1c" if "wr" in kinds else "G0"
    timed = [kind for kind in ("process", "realtime") if kind in kinds]
    return "-".join([name, *timed[-1:]])


def components(edges: Edges) -> list[list[int]]:
    """Strongly connected components (Tarjan), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[list[int]] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, successors = work[-1]
            for after in successors:
                if after not in index:
                    index[after] = low[after] = len(index)
                    stack.append(after)
                    on_stack.add(after)
                    work.append((after, iter(edges[after])))
                    break
                if after in on_stack:
                    low[node] = min(low[node], index[after])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    found.append(component)
    return found


def _one_cycle(component: list[int], edges: Edges) -> list[int]:
    """A shortest cycle through one member, data dependencies first."""
    inside = set(component)
    best: list[int] = []
    for start in component[:50]:
        before: dict[int, int] = {}
        layer = [start]
        while layer and start not in before:
            following = []
            for node in layer:
                for after in edges[node]:
                    if after in inside and after not in before:
                        before[after] = node
                        following.append(after)
            layer = following
        if start in before:
            cycle = [start]
            while (node := before[cycle[-1]]) != start:
                cycle.append(node)
            cycle[1:] = cycle[:0:-1]
            if not best or len(cycle) < len(best):
                best = cycle
    return best
