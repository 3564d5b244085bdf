"""Do classes stay calm for a month, and is what is new found? Simulated lines in compressed time, see discovery_bank.

    python -m benchmarks.discovery_calm [--rounds 1000] [--lines NAME ...] [--json FILE]

Regions are drawn from real ones: each is moved by up to half of the way to another of its kind on its product. A
stationary line runs for so many rounds, with default settings or with rounds of fifteen regions and four members; what
happens to its classes is then no news, so every class more than the kinds is false. Then a kind enters at 1 % of the
regions, another one stays away for a month and returns, a third one drifts. One region comes each second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from sklearn.metrics import adjusted_rand_score

from benchmarks.discovery_bank import LINES, STRAY, Bank, bank_of
from benchmarks.report import Goal, add_json_option, emit
from discovery.round import single_round
from discovery.round.lineage import Registry
from discovery.round.single_round import Assigner, Outcome, Regions
from discovery.round_runner import RoundRunner
from discovery.store import registry
from discovery.store.store import Batch, Store, TakenDefect
from flawline.messages import ClassState, Transition
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.tree import load_settings
from scorer.vectors import unit
from tests.discovery import factories

VERSION: Final = "bank"
SECOND_NS: Final = 1_000_000_000
MONTH_NS: Final = 30 * 86_400 * SECOND_NS
# Of the regions of a line that works, so many are of good parts.
STRAY_SHARE: Final = 0.02
SETTLED_ROUNDS: Final = 20
SMALL: Final = {"round_regions": 15, "min_members": 4}
NEW_SHARE: Final = 0.01
NEW_MEMBERS_LIMIT: Final = 60
DRIFT: Final = 0.005

GOALS: Final[dict[str, Goal]] = {
    "false_births_per_1000_rounds": ("<=", 2),
    "false_confirmed_per_1000_rounds": ("<=", 0),
    "public_ids_given": ("<=", 9),
    "rounds_with_another_number_of_confirmed": ("<=", 0),
    "new_kind_members_until_confirmed": ("<=", 15),
    "not_revived_after_a_month": ("<=", 0),
    "drifting_kinds_with_another_id": ("<=", 0),
    "round_seconds_p99": ("<=", 2),
    "cpu_share_at_1_defect_per_s": ("<=", 0.05),
}

Figures = dict[str, float]


@dataclass
class Line:
    """A line whose regions come one a second, and discovery without broker and store: what the service would do."""

    bank: Bank
    settings: DiscoverySettings
    seed: int = 0
    registry: Registry = field(default_factory=Registry)
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    now_ns: int = SECOND_NS

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.vectors = unit(self.bank.vectors)
        self.rows_of = {
            (kind, product): np.flatnonzero((self.bank.kinds == kind) & (self.bank.products == product))
            for kind in np.unique(self.bank.kinds)
            for product in np.unique(self.bank.products)
        }
        self.drift: dict[str, np.ndarray] = {}
        size = self.vectors.shape[1]
        self.arrived = np.zeros((0, size), np.float32)
        self.kinds = np.zeros(0, dtype=self.bank.kinds.dtype)
        self.groups = np.zeros(0, np.int64)
        self.ids = np.zeros(0, np.int64)
        self.captured_at = np.zeros(0, np.int64)
        self.classes: list[str | None] = []
        self.exemplars = np.zeros(0, bool)
        self.last = self.counted = 0

    def draw(self, kinds: Sequence[str], count: int, shares: Sequence[float] | None = None) -> None:
        """Draw `count` regions of some kinds, assign them and count them; `shares` are the kinds' probabilities."""
        chosen = self.rng.choice(np.array(kinds, self.kinds.dtype), size=count, p=shares)
        chosen[self.rng.random(count) < STRAY_SHARE] = STRAY
        rows = np.array([self.rng.choice(np.flatnonzero(self.bank.kinds == kind)) for kind in chosen])
        others = np.array([self.rng.choice(self.rows_of[self.bank.kinds[r], self.bank.products[r]]) for r in rows])
        way = 0.5 * self.rng.random(count)[:, None]
        vectors = self.vectors[rows] * (1 - way) + self.vectors[others] * way
        vectors += np.stack([self.drift.get(kind, np.zeros(vectors.shape[1])) for kind in chosen])
        vectors = unit(vectors.astype(np.float16).astype(np.float32))
        assigned = Assigner(self.registry, VERSION).assign(vectors)
        self.classes += assigned
        joined = Counter(assigned)
        classes = [
            replace(defect_class, members=defect_class.members + joined[defect_class.id])
            for defect_class in self.registry.classes
        ]
        self.registry = replace(self.registry, classes=tuple(classes))
        self.arrived = np.vstack([self.arrived, vectors])
        self.kinds = np.concatenate([self.kinds, chosen])
        self.groups = np.concatenate([self.groups, self.bank.groups[rows]])
        self.ids = np.concatenate([self.ids, self.counted + 1 + np.arange(count)])
        self.captured_at = np.concatenate([self.captured_at, self.now_ns + SECOND_NS * np.arange(count)])
        self.exemplars = np.concatenate([self.exemplars, np.zeros(count, bool)])
        self.counted += count
        self.now_ns += count * SECOND_NS

    def round(self) -> Outcome | None:
        """Run one round over the regions that the store would show it; forget the other regions."""
        self._forget()
        regions = Regions(
            ids=self.ids,
            defect_ids=self.ids,
            keys=tuple(str(number) for number in self.ids),
            classes=tuple(self.classes),
            exemplars=self.exemplars,
            captured_at=self.captured_at,
            vectors=self.arrived,
            groups=self.groups,
        )
        started = time.process_time()
        outcome = single_round.run_round(regions, self.registry, self.settings, VERSION, self.last, self.now_ns)
        self.seconds.append(time.process_time() - started)
        if outcome is not None:
            self.outcomes.append(outcome)
            self.registry, self.last = outcome.registry, int(self.ids[-1])
            self.classes, self.exemplars = list(outcome.assigned), outcome.exemplars
        return outcome

    def _forget(self) -> None:
        """Leave what `registry.regions_of_round` reads."""
        loose = np.array([name is None for name in self.classes], bool)
        wanted = self.exemplars.copy()
        wanted[-self.settings.window_regions :] = True
        wanted[np.flatnonzero(loose)[-self.settings.pool_regions :]] = True
        self.arrived, self.kinds, self.groups = self.arrived[wanted], self.kinds[wanted], self.groups[wanted]
        self.ids, self.captured_at, self.exemplars = self.ids[wanted], self.captured_at[wanted], self.exemplars[wanted]
        self.classes = [name for name, stays in zip(self.classes, wanted, strict=True) if stays]

    def confirmed(self) -> tuple[str, ...]:
        """Return the ids of the confirmed classes."""
        return tuple(
            defect_class.id for defect_class in self.registry.classes if defect_class.state is ClassState.CONFIRMED
        )

    def class_of(self, kind: str) -> str | None:
        """Return the class that holds most of the latest regions of a kind; None where most have none."""
        names = [name for name, true in zip(self.classes, self.kinds, strict=True) if true == kind][-50:]
        return Counter(names).most_common(1)[0][0] if names else None

    def kind_of(self, name: str) -> str:
        """Return the kind of most of the members of a class."""
        return str(Counter(k for k, c in zip(self.kinds, self.classes, strict=True) if c == name).most_common(1)[0][0])


def stationary(line: Line, rounds: int) -> Figures:
    """Return the figures of a line that makes the same kinds for `rounds` rounds.

    A second class of a kind is false, and so is every birth after the kind's first. The rates leave out the first
    SETTLED_ROUNDS, in which discovery finds the kinds. Regions on good parts (2 %) count as a kind that may have a
    class; it does not matter when that class comes or sleeps.
    """
    kinds = line.bank.true_kinds
    held: set[str] = set()
    strays: set[str] = set()
    births = first = false_confirmed = moved = 0
    before = 0
    for number in range(rounds):
        line.draw(kinds, line.settings.round_regions)
        outcome = line.round()
        told = [] if outcome is None else outcome.events
        for name in [event.class_id for event in told if event.transition is Transition.CONFIRMED]:
            kind = line.kind_of(name)
            false_confirmed += kind in held and number >= SETTLED_ROUNDS
            first += kind not in held and number >= SETTLED_ROUNDS
            held.add(kind)
            strays |= {name} if kind == STRAY else set()
        if number >= SETTLED_ROUNDS:
            births += sum(event.transition is Transition.BORN for event in told)
            moved += len(set(line.confirmed()) - strays) != before
        before = len(set(line.confirmed()) - strays)
    share = 1000 / rounds
    assigned = [name or "" for name in line.classes]
    kinds_with_class = {line.kind_of(name) for name in line.confirmed() if name in assigned}
    return {
        "false_births_per_1000_rounds": max(0, births - first) * share,
        "false_confirmed_per_1000_rounds": false_confirmed * share,
        "public_ids_given": float(len(line.registry.classes)),
        "rounds_with_another_number_of_confirmed": float(moved),
        "kinds_without_a_class": float(len(set(kinds) - kinds_with_class)),
        "stationary_ari": float(adjusted_rand_score(line.kinds, assigned)),
        "round_seconds_p99": float(np.quantile(line.seconds, 0.99)),
        "round_seconds_mean": float(np.mean(line.seconds)),
    }


def members_until_confirmed(line: Line, new: str, settled: int) -> Figures:
    """Return how many regions of a kind, which enters at 1 % of all, have come when it has a class."""
    kinds = [kind for kind in line.bank.true_kinds if kind != new]
    for _ in range(settled):
        line.draw(kinds, line.settings.round_regions)
        line.round()
    shares = [(1 - NEW_SHARE) / len(kinds)] * len(kinds) + [NEW_SHARE]
    came = 0
    while came < NEW_MEMBERS_LIMIT:
        line.draw([*kinds, new], line.settings.round_regions, shares)
        came += int((line.kinds[-line.settings.round_regions :] == new).sum())
        outcome = line.round()
        told = [] if outcome is None else outcome.events
        confirmed = [event.class_id for event in told if event.transition is Transition.CONFIRMED]
        if any(line.kind_of(name) == new for name in confirmed):
            break
    return {"new_kind_members_until_confirmed": float(came)}


def return_after_a_month(line: Line, away: str, settled: int) -> Figures:
    """Return whether a kind that stays away for a month does not get its class back, with an event that says so."""
    kinds = line.bank.true_kinds
    for _ in range(settled):
        line.draw(kinds, line.settings.round_regions)
        line.round()
    before = line.class_of(away)
    for _ in range(settled):
        line.now_ns += MONTH_NS // settled
        line.draw([kind for kind in kinds if kind != away], line.settings.round_regions)
        line.round()
    slept = any(
        defect_class.id == before and defect_class.state is ClassState.DORMANT for defect_class in line.registry.classes
    )
    revived = False
    for _ in range(3):
        line.draw(kinds, line.settings.round_regions)
        outcome = line.round()
        told = [] if outcome is None else outcome.events
        revived |= any(event.class_id == before and event.transition is Transition.REVIVED for event in told)
    rows = np.flatnonzero(line.kinds == away)[-10:]
    same = Counter(line.classes[row] for row in rows).most_common(1)[0][0] == before
    return {"not_revived_after_a_month": float(not (slept and revived and same))}


def drifting(line: Line, kind: str, settled: int) -> Figures:
    """Return whether a kind that moves by 0.5 % of a unit vector in each round loses its id."""
    kinds = line.bank.true_kinds
    axis = unit(np.asarray(line.rng.normal(size=line.vectors.shape[1]), np.float32))
    before: str | None = None
    for number in range(2 * settled):
        if number >= settled:
            before = before or line.class_of(kind)
            line.drift[kind] = DRIFT * (number - settled) * axis
        line.draw(kinds, line.settings.round_regions)
        line.round()
    rows = np.flatnonzero(line.kinds == kind)[-20:]
    same = Counter(line.classes[row] for row in rows).most_common(1)[0][0] == before
    return {"drifting_kinds_with_another_id": float(not same)}


def cpu_share(bank: Bank, warm_rounds: int = 60, rounds: int = 20) -> Figures:
    """Return the share of a core that intake and rounds take through a store: one region a second, default settings.

    The topics are left out: a record costs well under a millisecond to read (benchmarks.broker).
    """
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="flawline-bench-") as folder:
        settings = load_settings(None, data_dir=folder)
        store = Store(settings.store_url)
        runner = RoundRunner(settings, store)
        count, spent = 0, 0.0
        for number in range(warm_rounds + rounds):
            started = time.process_time()
            assigner = Assigner(registry.read(store), VERSION)
            taken = []
            for row in rng.integers(len(bank.vectors), size=settings.discovery.round_regions):
                defect = factories.defect(count, bank.vectors[row], version=VERSION, group=int(bank.groups[row]))
                taken.append(TakenDefect(defect, tuple(assigner.assign(unit(bank.vectors[row][None])))))
                count += 1
            store.ingest(Batch(defects=taken))
            runner.ask()
            while runner.busy:
                runner.step()
            spent += (time.process_time() - started) * (number >= warm_rounds)
        store.close()
    return {"cpu_share_at_1_defect_per_s": spent / (rounds * settings.discovery.round_regions)}


def of_lines(names: Sequence[str], rounds: int, settled: int) -> Figures:
    """Return all figures: the worst of the lines, and the sums of the faults over lines and kinds."""
    figures: Figures = {}
    worst: dict[str, list[float]] = defaultdict(list)
    for name in names:
        bank = bank_of(name)
        for small in (False, True):
            settings = DiscoverySettings(**SMALL) if small else DiscoverySettings()
            line_figures = stationary(Line(bank, settings), rounds)
            figures |= {f"{name}_{'small' if small else 'default'}_{key}": value for key, value in line_figures.items()}
            for key, value in line_figures.items():
                worst[key].append(value)
        for kind in bank.true_kinds[::3]:
            for scenario in (members_until_confirmed, return_after_a_month, drifting):
                for key, value in scenario(Line(bank, DiscoverySettings()), kind, settled).items():
                    figures[f"{name}_{kind}_{key}"] = value
                    worst[key].append(value)
    summed = ("not_revived_after_a_month", "drifting_kinds_with_another_id")
    figures |= {key: sum(values) if key in summed else max(values) for key, values in worst.items()}
    figures["stationary_ari"] = min(worst["stationary_ari"])
    return figures | cpu_share(bank_of(names[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="of a stationary line")
    parser.add_argument("--settled", type=int, default=40, help="rounds before something happens in the other scenes")
    parser.add_argument("--lines", nargs="+", choices=sorted(LINES), default=list(LINES))
    add_json_option(parser)
    arguments = parser.parse_args()
    figures = of_lines(arguments.lines, arguments.rounds, arguments.settled)
    emit("discovery_calm", figures, GOALS, arguments.json)


if __name__ == "__main__":
    main()
