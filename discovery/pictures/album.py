"""The album of a line: chooses frames, has them copied, and lets them go again. For the thread that writes the store.

What is chosen is in the store in the same transaction as the verdict that it follows from. The copying is done by the
thread of `keeper.py`, whose results this one writes down. So no verdict waits for a picture, and the workers know
nothing of them: frames are read from their topic once more, at the place that the verdict's header names.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from sqlalchemy import Connection

from discovery.pictures.frame_reader import Place
from discovery.pictures.keeper import QUEUE_LENGTH, Copied, Copy, Keeper, Lost, Opened, Removal, Removed
from discovery.pictures.policy import Candidate, Picker, Stratum
from discovery.shifts import Calendar
from discovery.store import frame_pictures, judgements, pruning
from discovery.store.database import HOUR_NS, fact, set_fact
from discovery.store.frame_pictures import Pile
from discovery.store.production import Origin
from discovery.store.store import Store
from flawline import clock, telemetry
from flawline.messages import Verdict
from flawline.retention import Holding, Limits, Value, going
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

DAY_NS = 24 * HOUR_NS
PICTURE_STORE = "picture_store"
"""The fact in discovery's store that says which picture store this line has: an empty place is not taken for it."""
STEP_S = 1.0
"""How often minutes are closed and what waits is looked up. A judgement, not measured."""
PASS_S = 600.0
"""How often the album looks for what is too old; a judgement, not measured."""
SHORT_PASS_S = 10.0
"""The least time between two passes, also while there is no room; a judgement, not measured."""
REMOVED_AT_ONCE = 200
"""Pictures of one removal: some seconds of a bucket. A judgement, not measured."""


class Album:
    """The whole frames of a line that stay for people to judge."""

    def __init__(self, settings: Settings, store: Store, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._settings, self._store, self._monotonic = settings.pictures, store, monotonic
        self._min_free_bytes = settings.retention.min_free_bytes
        self._folder = _folder_of(settings.pictures_url)
        self._calendar = Calendar(settings.shifts, settings.time_zone)
        self._picker = Picker(settings.pictures, monotonic)
        self._keeper = Keeper(settings, self._known_store)
        self._in_work: set[int] = set()
        self._going: list[tuple[Holding[Pile], str]] = []
        self._removing: tuple[Holding[Pile], str] | None = None
        self._stored_bytes = 0
        self._stepped_at = self._passed_at = -float("inf")

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being copied or removed."""
        return not self._in_work and not self._going and self._removing is None

    def close(self) -> None:
        """End the thread that copies."""
        self._keeper.close()

    def take_in(
        self,
        connection: Connection,
        verdicts: Sequence[Verdict],
        origins: Mapping[str, Origin],
        places: Mapping[str, Place],
    ) -> None:
        """Count new verdicts, and choose of their frames; `origins` and `places` are by frame id."""
        strata: list[tuple[Verdict, Stratum]] = []
        picks = []
        for verdict in verdicts:
            stratum, pick = self._picker.pick(Candidate(verdict, *places[verdict.frame_id]))
            strata.append((verdict, stratum))
            if pick is not None:
                picks.append(pick)
        frame_pictures.count_frames(connection, strata, origins)
        if self._settings.limit_bytes:
            telemetry.LOST_FRAMES.labels(frame_pictures.TOO_MANY).inc(
                frame_pictures.want(connection, picks, self._calendar)
            )

    def step(self, close_minutes: bool = False) -> None:
        """Write down what has been done, and hand out what waits; `close_minutes` ends the minutes that are open.

        Raises DatabaseAway.
        """
        self._write_down()
        now = self._monotonic()
        if not close_minutes and now - self._stepped_at < STEP_S:
            return
        self._stepped_at = now
        if not self._settings.limit_bytes:
            return
        if picks := self._picker.closed(everything=close_minutes):
            with self._store.transaction() as connection:
                too_many = frame_pictures.want(connection, picks, self._calendar)
            telemetry.LOST_FRAMES.labels(frame_pictures.TOO_MANY).inc(too_many)
        self._hand_out()
        self._pass(now)

    def _hand_out(self) -> None:
        room = QUEUE_LENGTH - len(self._in_work)
        if room <= 0:
            return
        with self._store.reading() as connection:
            rows = frame_pictures.wanted(connection, room, self._in_work)
            telemetry.WAITING_FRAMES.set(frame_pictures.waiting(connection))
        for row in rows:
            if not self._keeper.submit(Copy(row.id, row.frame_id, row.partition, row.frame_offset)):
                return
            self._in_work.add(row.id)

    def _known_store(self) -> str:
        """Return which picture store was opened last, "" for none; called from the thread of the keeper."""
        with self._store.reading() as connection:
            return fact(connection, PICTURE_STORE, "")

    def _write_down(self) -> None:
        results = self._keeper.results()
        if not results:
            return
        strata: Counter[str] = Counter()
        with self._store.transaction() as connection:
            for result in results:
                if isinstance(result, Copied):
                    stratum = frame_pictures.keep(connection, result.picture_id, object_key=result.key,
                                                  codec=result.codec, height=result.height, width=result.width,
                                                  size_bytes=result.size_bytes)  # fmt: skip
                    strata[stratum] += 1
                elif isinstance(result, Opened):
                    set_fact(connection, PICTURE_STORE, result.store)
                elif isinstance(result, Lost):
                    frame_pictures.lose(connection, result.picture_id, result.reason)
                elif self._removing is not None:
                    holding, reason = self._removing
                    value = Value(holding.value).name
                    frame_pictures.forget(connection, result.picture_ids, value, reason)
        for result in results:
            if isinstance(result, Removed):
                self._count_removed(len(result.picture_ids))
                continue
            if isinstance(result, Opened):
                continue
            self._in_work.discard(result.picture_id)
            if isinstance(result, Copied):
                self._stored_bytes += result.size_bytes
            else:
                telemetry.LOST_FRAMES.labels(result.reason).inc()
        for stratum, frames in strata.items():
            telemetry.KEPT_FRAMES.labels(stratum).inc(frames)

    def _count_removed(self, pictures: int) -> None:
        assert self._removing is not None
        holding, reason = self._removing
        telemetry.FORGOTTEN_FRAMES.labels(Value(holding.value).name, reason).inc(pictures)
        self._removing = None

    def _pass(self, now: float) -> None:
        """Choose what goes, when it is time, and hand out the next removal."""
        lacking_bytes = self._lacking_bytes()
        is_short = lacking_bytes > 0 or self._stored_bytes > self._settings.limit_bytes
        if self.is_removing:
            self._remove()
        elif now - self._passed_at >= (SHORT_PASS_S if is_short else PASS_S):
            self._passed_at = now
            with self._store.reading() as connection:
                now_ns = pruning.now_of(connection, self._store)
                holdings = frame_pictures.holdings(connection) if now_ns is not None else []
                telemetry.UNJUDGED_FRAMES.set(judgements.backlog(connection))
            if now_ns is not None:
                with self._store.transaction() as connection:
                    frame_pictures.forget_lost(connection, now_ns - round(self._settings.rejected_days * DAY_NS))
            self._export(holdings)
            goes = going(holdings, self._limits(), now_ns or 0, lacking_bytes)
            self._going = [(holding, "age") for holding in goes.too_old] + [
                (holding, "room") for holding in goes.too_much
            ]
            self._remove()

    @property
    def is_removing(self) -> bool:
        """Whether a pass is not at its end."""
        return bool(self._going) or self._removing is not None

    def _remove(self) -> None:
        """Hand out the next removal of the pass, if none is being done."""
        while self._going and self._removing is None:
            holding, reason = self._going[0]
            with self._store.reading() as connection:
                rows = frame_pictures.of_pile(connection, holding.key, REMOVED_AT_ONCE)
                ids = [row.id for row in rows]
                keys = {row.object_key for row in rows}
                keys -= frame_pictures.shared_keys(connection, ids, keys)
            if not ids:
                self._going.pop(0)
                if reason == "room":
                    log.info("pictures: one hour of %s went for want of room", holding.key.stratum)
            elif self._keeper.submit(Removal(tuple(ids), tuple(sorted(keys)))):
                self._removing = holding, reason
            else:
                return

    def _limits(self) -> Limits:
        keep = self._settings
        days = {
            Value.SAMPLE: keep.sample_days,
            Value.NEAR_MISS: keep.near_miss_days,
            Value.DEFECT: keep.rejected_days,
        }
        return Limits({value: round(age * DAY_NS) for value, age in days.items()}, keep.limit_bytes)

    def _lacking_bytes(self) -> int:
        """Return what the disk of the picture store has less free than it should; 0 for a bucket."""
        if self._folder is None or not self._folder.exists():
            return 0
        return self._min_free_bytes - shutil.disk_usage(self._folder).free

    def _export(self, holdings: Sequence[Holding[Pile]]) -> None:
        sizes: Counter[int] = Counter()
        for holding in holdings:
            sizes[holding.value] += holding.size_bytes
        for value in (Value.SAMPLE, Value.NEAR_MISS, Value.DEFECT):
            telemetry.KEPT_FRAME_BYTES.labels(value.name).set(sizes[value])
        self._stored_bytes = sizes.total()


def _folder_of(url: str) -> Path | None:
    """Return the folder that a URL names, None for a bucket."""
    parsed = urlparse(url)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None
