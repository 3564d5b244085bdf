"""What the first verdict on each frame decided: it wins, and a defect counts only as far as it goes along with it.

A frame that was read again after a crash can have two verdicts that differ, and each that is no accept has a defect.
Topics are not in step: a defect may be read before or behind the verdict that wins.

- A frame whose first verdict accepts it has no defect: one that comes is left out, one that is here goes again.
- A defect counts under the decision of the first verdict, whatever it says itself.
- While no verdict on its frame has been read, a defect counts as it says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, delete, select, update

from discovery.store import schema
from discovery.store.database import parts
from flawline.messages import Decision, Defect, Verdict


def remember(connection: Connection, verdicts: Sequence[Verdict]) -> None:
    """Remember what first verdicts decided: as runs of sequences with the same decision."""
    table = schema.decided_sequences
    by_epoch: dict[tuple[str, int], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_epoch[verdict.camera, verdict.epoch].append(verdict)
    for (camera, epoch), members in by_epoch.items():
        low, high = min(verdict.sequence for verdict in members), max(verdict.sequence for verdict in members)
        here = (table.c.camera == camera) & (table.c.epoch == epoch)
        near = here & (table.c.last >= low - 1) & (table.c.first <= high + 1)
        runs = [(row.first, row.last, row.decision) for row in connection.execute(select(table).where(near))]
        connection.execute(table.delete().where(near))
        runs += [(verdict.sequence, verdict.sequence, str(verdict.decision)) for verdict in members]
        latest = max(verdict.captured_at for verdict in members)
        rows = [
            {"camera": camera, "epoch": epoch, "first": first, "last": last, "decision": decision, "latest_ns": latest}
            for first, last, decision in _joined(sorted(runs))
        ]
        connection.execute(table.insert(), rows)


def decisions(connection: Connection, defects: Iterable[Defect]) -> dict[str, Decision]:
    """Return what the first verdicts on the frames of `defects` decided, by frame id, as far as they have been read."""
    table = schema.decided_sequences
    result = {}
    for defect in defects:
        query = (
            select(table.c.first, table.c.decision)
            .where(table.c.camera == defect.camera, table.c.epoch == defect.epoch, table.c.last >= defect.sequence)
            .order_by(table.c.last)
            .limit(1)
        )
        row = connection.execute(query).one_or_none()
        if row is not None and row.first <= defect.sequence:
            result[defect.frame_id] = Decision(row.decision)
    return result


def settle(connection: Connection, verdicts: Sequence[Verdict]) -> list[str]:
    """Let defects that were here before the first verdicts go along with them; return the frames that lost theirs."""
    d, p = schema.defects, schema.pictures
    wins = {verdict.frame_id: verdict.decision for verdict in verdicts}
    withdrawn: dict[int, str] = {}
    for part in parts(list(wins)):
        query = select(d.c.id, d.c.frame_id, d.c.decision).where(d.c.frame_id.in_(part))
        for row in connection.execute(query).all():
            decision = wins[row.frame_id]
            if decision is Decision.ACCEPT:
                withdrawn[row.id] = row.frame_id
            elif decision != row.decision:
                connection.execute(update(d).where(d.c.id == row.id).values(decision=str(decision)))
                connection.execute(update(p).where(p.c.defect_id == row.id).values(decision=str(decision)))
    if withdrawn:
        _withdraw(connection, list(withdrawn))
    return list(withdrawn.values())


def forget(connection: Connection, before_ns: int) -> None:
    """Forget what was decided on captures before `before_ns` (UTC), whose defects are not taken in any more."""
    connection.execute(delete(schema.decided_sequences).where(schema.decided_sequences.c.latest_ns < before_ns))


def _withdraw(connection: Connection, ids: Sequence[int]) -> None:
    """Delete defects with all that hangs on them, and take their regions out of the counts of their classes."""
    r, c = schema.regions, schema.classes
    members: Counter[str] = Counter()
    for part in parts(ids):
        members.update(
            connection.scalars(select(r.c.class_id).where(r.c.defect_id.in_(part), r.c.class_id.is_not(None)))
        )
        for table in schema.metadata.sorted_tables:
            if "defect_id" in table.c:
                connection.execute(delete(table).where(table.c.defect_id.in_(part)))
        connection.execute(delete(schema.defects).where(schema.defects.c.id.in_(part)))
    for name, count in members.items():
        connection.execute(update(c).where(c.c.id == name).values(members=c.c.members - count))


def _joined(runs: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Return ascending runs of disjoint sequences with neighbours of the same decision joined."""
    joined: list[tuple[int, int, str]] = []
    for first, last, decision in runs:
        if joined and joined[-1][2] == decision and joined[-1][1] == first - 1:
            joined[-1] = joined[-1][0], last, decision
        else:
            joined.append((first, last, decision))
    return joined
