"""How long the queries of the dashboards and the pages of the console take on a large store.

    python -m benchmarks.queries [--verdicts 1000000] [--defects 100000] [--repeats 5] [--stores sqlite] [--json FILE]

Fills a store on SQLite and one on a private PostgreSQL with 11 days of a line: by default a million rows of counted
verdicts, each its own minute, camera, group and decision, and 100,000 defects in 30 classes, all with a kept picture,
of which one in 20 is judged. Then asks every query of every panel, annotation and variable of the dashboards
(PostgreSQL, as Grafana sends it, for the last 24 hours and for all days), and loads the console's pages on both. Each
figure is the median of `--repeats` runs after a first one. Pictures are random bytes, smaller than real ones; topics
and ledger are not there.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import psycopg
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Table

from benchmarks import report
from discovery.quality_days import QualityDays
from discovery.store import schema
from discovery.store.database import stamp
from discovery.store.store import Store
from flawline.settings.tree import Settings
from station.web.accounts import Accounts
from station.web.app import create
from station.web.ledger_watch import LedgerWatch
from station.web.live import LiveWatch
from station.web.store_watch import StoreWatch
from tests.dashboards import queries
from tests.dashboards.macros import View
from tests.support.ports import reserved_port
from tests.support.postgres import running_postgres

DAYS: Final = 11
CAMERAS: Final = tuple(f"camera-{number}" for number in range(1, 9))
GROUPS: Final = 4
DECISIONS: Final = ("accept", "reject")
CLASSES: Final = 30
SHIFTS: Final = ("early", "late", "night")
ORIGIN: Final = ("model_version", "lot", "shift", "shift_day")
HEAT_BYTES, CROP_BYTES, EMBEDDING_BYTES = 2048, 2048, 1024
JUDGED_ONE_IN: Final = 20
GOAL_MS: Final = 300.0
ADDRESS: Final = "http://127.0.0.1:8400"


@dataclass(frozen=True)
class Size:
    """How large the store is, and when its last minute is (UTC, ns)."""

    verdicts: int
    defects: int
    end_ns: int

    @property
    def begin_ns(self) -> int:
        """The first minute."""
        return self.end_ns - DAYS * 86_400_000_000_000


class Filler:
    """Writes rows of many by the quickest road of each database."""

    def __init__(self, connection: Connection) -> None:
        self._raw = cast("Any", connection.connection.driver_connection)
        self._is_postgresql = connection.dialect.name == "postgresql"
        if self._is_postgresql:
            self._raw.execute("SET LOCAL statement_timeout = 0")  # a million rows are one statement here

    def at(self, time_ns: int) -> Any:
        """Return a time as the database's column takes it."""
        at = stamp(time_ns)
        return at if self._is_postgresql else at.strftime("%Y-%m-%d %H:%M:%S.%f")

    def fill(self, table: Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write rows with these columns."""
        names = ", ".join(columns)
        if self._is_postgresql:
            with self._raw.cursor().copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            self._raw.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)  # noqa: S608 - our own names


def fill(store: Store, size: Size) -> None:
    """Fill an empty store."""
    rng = random.Random(0)
    with store.transaction() as connection:
        filler = Filler(connection)
        _fill_verdicts(filler, size)
        _fill_classes(filler, size)
        _fill_defects(filler, size, rng)
        _fill_pictures(filler, size, rng)
    if store.sqlite_file is None:
        address = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True) as direct:
            direct.execute("VACUUM ANALYZE")  # as the server does by itself within a minute of a quiet time
    else:
        with store.transaction() as connection:
            connection.exec_driver_sql("ANALYZE")


def _fill_verdicts(filler: Filler, size: Size) -> None:
    places = [(camera, group, decision) for camera in CAMERAS for group in range(GROUPS) for decision in DECISIONS]
    minutes = DAYS * 1440
    per_minute = min(len(places), -(-size.verdicts // minutes))

    def rows() -> Iterator[tuple[Any, ...]]:
        for minute in range(minutes):
            at = filler.at(size.begin_ns + minute * 60_000_000_000)
            for camera, group, decision in places[:per_minute]:
                yield at, camera, group, decision, "m1", *_origin(minute // 60), 1, 0.1, 0.1

    columns = ("minute", "camera", "group_id", "decision", *ORIGIN, "frames", "score_sum", "score_max")
    filler.fill(schema.verdict_minutes, columns, rows())
    hour_ns = 3_600_000_000_000
    filler.fill(
        schema.verdict_hours,
        ("hour", "camera", "group_id", "decision", *ORIGIN, "frames"),
        ((filler.at((size.begin_ns // hour_ns + hour) * hour_ns), *place, "m1", *_origin(hour), 60)
         for hour in range(DAYS * 24 + 1) for place in places[:per_minute]),
    )  # fmt: skip
    strata = [
        (size.begin_ns // hour_ns + hour, camera, stratum, *_origin(hour), 1000 if stratum == "accepted" else 20)
        for hour in range(DAYS * 24 + 1)
        for camera in CAMERAS
        for stratum in ("reject", "near-miss", "accepted")
    ]
    filler.fill(schema.stratum_hours, ("hour", "camera", "stratum", *ORIGIN[1:], "frames"), strata)
    groups = [("m1", group, f"product {group}", 1, *[filler.at(size.begin_ns)] * 2) for group in range(GROUPS)]
    filler.fill(schema.groups, ("model_version", "group_id", "name", "frames", "first_at", "last_at"), groups)


def _origin(hour: int) -> tuple[str, str, str]:
    """Return lot, shift and its day: three shifts of eight hours a day, two lots in each."""
    return f"lot-{hour // 4}", SHIFTS[hour // 8 % 3], f"day-{hour // 24:02}"


def _origin_at(time_ns: int, size: Size) -> tuple[str, str, str]:
    return _origin((time_ns - size.begin_ns) // 3_600_000_000_000)


def _name(number: int) -> str:
    return f"D-{number:04d}"


def _fill_classes(filler: Filler, size: Size) -> None:
    begin, end = filler.at(size.begin_ns), filler.at(size.end_ns)
    filler.fill(
        schema.classes,
        ("id", "number", "state", "name", "members", "born_at", "born_round", "last_seen_at", "seen_rounds",
         "missed_rounds", "announced", "bound", "radius", "centroid", "embedding_version"),
        [(_name(n), n, "dismissed" if n == CLASSES else "confirmed", f"kind {n}", size.defects // CLASSES, begin, 1,
          end, 9, 0, 1, False, 0.1, b"\0" * EMBEDDING_BYTES, "e") for n in range(1, CLASSES + 1)],
    )  # fmt: skip
    step_ns = (size.end_ns - size.begin_ns) // 200
    transitions = ("born", "confirmed", "grew", "named")
    filler.fill(
        schema.class_events,
        ("event_id", "class_id", "transition", "at", "at_ns", "round", "state", "members", "parents", "published"),
        [(f"e{n}", _name(1 + n % CLASSES), transitions[n % 4], filler.at(size.begin_ns + n * step_ns),
          size.begin_ns + n * step_ns, n, "confirmed", 10, "", True) for n in range(200)],
    )  # fmt: skip
    filler.fill(
        schema.rounds,
        ("round", "at", "regions", "unassigned", "clusters", "clusters_low", "clusters_high", "stability", "churn",
         "seconds", "embedding_version"),
        [(n, filler.at(size.begin_ns + n * 300_000_000_000), 1000, 10, 30, 28, 32, 0.9, 0.01, 1.0, "e")
         for n in range(DAYS * 288)],
    )  # fmt: skip


def _captures(size: Size) -> Iterator[tuple[int, int, str, str | None]]:
    """Yield number, capture time, camera and class of each defect; the larger classes come first, as in a Pareto."""
    step_ns = (size.end_ns - size.begin_ns) // size.defects
    rng = random.Random(1)
    for n in range(size.defects):
        kind = min(int(rng.expovariate(1 / 5)), CLASSES)
        yield n + 1, size.begin_ns + n * step_ns, CAMERAS[n % len(CAMERAS)], _name(kind) if kind else None


def _fill_defects(filler: Filler, size: Size, rng: random.Random) -> None:
    heat, crop, vector = rng.randbytes(HEAT_BYTES), rng.randbytes(CROP_BYTES), rng.randbytes(EMBEDDING_BYTES)
    minute_ns = 60_000_000_000
    filler.fill(
        schema.defects,
        ("id", "frame_id", "camera", "epoch", "sequence", "captured_at", "captured_ns", "minute", "group_id", "score",
         "p_value", "decision", "height", "width", "model_version", "heatmap", "heatmap_height", "heatmap_width",
         "class_id", *ORIGIN[1:]),
        ((n, f"{camera}:1:{n}", camera, 1, n, filler.at(at), at, filler.at(at // minute_ns * minute_ns), n % GROUPS,
          2.0, 0.003, "reject", 1000, 1000, "m1", heat, 32, 32, name, *_origin_at(at, size))
         for n, at, camera, name in _captures(size)),
    )  # fmt: skip
    filler.fill(
        schema.regions,
        ("id", "defect_id", "position", "x", "y", "width", "height", "area_px", "peak", "crop_x", "crop_y",
         "crop_width", "crop_height", "mask", "crop", "embedding", "embedding_version", "class_id", "exemplar"),
        ((n, n, 0, 1, 1, 9, 9, 81, rng.random() * 8, 0, 0, 64, 64, b"m", crop, vector, "e", name, n % 500 == 0)
         for n, _, _, name in _captures(size)),
    )  # fmt: skip


def _fill_pictures(filler: Filler, size: Size, rng: random.Random) -> None:
    hour_ns = 3_600_000_000_000
    names = ("camera", "captured_at", "captured_ns", "stratum", "probability", "decision", "score", "p_value",
             *ORIGIN)  # fmt: skip

    def facts(at: int, camera: str) -> tuple[Any, ...]:
        return camera, filler.at(at), at, "reject", 1.0, "reject", 2.0, 0.003, "m1", *_origin_at(at, size)

    filler.fill(
        schema.frame_pictures,
        ("frame_id", *names, "hour", "group_id", "chance", "partition", "frame_offset", "state", "object_key", "codec",
         "height", "width", "size_bytes"),
        ((f"{camera}:1:{n}", *facts(at, camera), at // hour_ns, n % GROUPS, rng.random(), 0, n, "kept", f"k{n}", "jpeg",
          1000, 1000, 100_000) for n, at, camera, _ in _captures(size)),
    )  # fmt: skip
    filler.fill(
        schema.judgements,
        ("frame_id", *names, "at", "who", "judgement", "is_offered"),
        ((f"{camera}:1:{n}", *facts(at, camera), filler.at(at), "ada", "real" if n % 3 else "false", True)
         for n, at, camera, _ in _captures(size) if n % JUDGED_ONE_IN == 0),
    )  # fmt: skip


def median_ms(act: Callable[[], object], repeats: int) -> float:
    """Return the median time of some runs after a first one."""
    act()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 1)


def _fetch(connection: psycopg.Connection[Any], text: str) -> list[Any]:
    return connection.execute(text.encode()).fetchall()


def panels(store: Store, size: Size, repeats: int) -> dict[str, float]:
    """Return the time of each query of the dashboards that PostgreSQL answers, by range and place."""
    address = store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    end = size.end_ns / 1e9
    times = {}
    with psycopg.connect(address, autocommit=True) as connection:
        for name, days, interval_s in (("24 h", 1, 120), (f"{DAYS} d", DAYS, 900)):
            view = View(start=end - days * 86_400, end=end, interval_s=interval_s, chosen=queries.EVERYTHING)
            for query in queries.ON_POSTGRESQL:
                text = view.sql(query.text)
                times[f"{name}: {query}"] = median_ms(partial(_fetch, connection, text), repeats)
    return times


def pages(store: Store, folder: Path, repeats: int) -> dict[str, float]:
    """Return the time of each page of the console on a store."""
    settings = Settings(data_dir=folder, kafka={"bootstrap_servers": f"127.0.0.1:{reserved_port()}"})
    stores, watch, accounts = StoreWatch(lambda: store), LedgerWatch(settings), Accounts(folder)
    stores.poll()
    with closing(watch), closing(accounts):
        app = create(settings, stores, watch, LiveWatch(settings), accounts, is_open=True)
        client = TestClient(app, base_url=ADDRESS, client=("127.0.0.1", 50_000))
        frame = f"{CAMERAS[1]}:1:2"
        paths = ["/", "/api/live", "/classes", "/classes?all=true", "/classes?q=kind&sort=last", "/map", "/api/classes",
                 f"/classes/{_name(1)}", f"/defects/{frame}?class={_name(2)}", "/defects",
                 "/defects?before=50000", f"/defects/{frame}", f"/defects/{frame}/heatmap.png", "/review",
                 "/api/review", "/api/review?queue=audit", f"/api/review/{frame}", "/api/review/rates",
                 "/review?hours=72", "/unassigned", f"/api/review?class={_name(1)}",
                 "/operating-point", "/ledger", "/healthz"]  # fmt: skip
        times = {}
        for path in paths:
            answer = client.get(path)
            if answer.status_code not in (200, 503):  # /healthz says that the broker is away
                raise SystemExit(f"{path}: {answer.status_code} {answer.text[:200]}")
            times[path] = median_ms(partial(client.get, path), repeats)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=1_000_000)
    parser.add_argument("--defects", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "postgresql"), default=("sqlite", "postgresql"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    minute_ns = 60_000_000_000
    size = Size(arguments.verdicts, arguments.defects, time.time_ns() // minute_ns * minute_ns)
    details: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, running_postgres() as server:
        urls = {"sqlite": f"sqlite:///{folder}/store.db", "postgresql": server.new_database()}
        for kind in arguments.stores:
            with closing(Store(urls[kind])) as store:
                started = time.perf_counter()
                fill(store, size)
                filled = time.perf_counter()
                QualityDays(store).update()
                details[f"{kind}: filling"] = {
                    "seconds": round(filled - started, 1),
                    "rates of all days (s)": round(time.perf_counter() - filled, 2),
                }
                if kind == "postgresql":
                    details["panels"] = panels(store, size, arguments.repeats)
                details[f"pages on {kind}"] = pages(store, Path(folder) / kind, arguments.repeats)
    measured = {name: times for name, times in details.items() if "filling" not in name}
    figures = {f"slowest of {name} (ms)": max(times.values()) for name, times in measured.items()}
    figures["queries and pages over the goal"] = sum(
        value > GOAL_MS for times in measured.values() for value in times.values()
    )
    goals: dict[str, report.Goal] = {name: ("<", GOAL_MS) for name in figures if name.startswith("slowest")}
    ordered = {name: dict(sorted(times.items(), key=lambda item: -item[1])) for name, times in details.items()}
    report.emit("queries", figures, goals, arguments.json, details=ordered)


if __name__ == "__main__":
    main()
