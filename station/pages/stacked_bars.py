"""A chart of decisions over time: one stacked bar a minute or an hour, accepted frames at the bottom. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flawline.messages import Decision

DECISIONS = tuple(str(decision) for decision in Decision)
WIDTH, HEIGHT, LEFT = 1010, 150, 40  # as the macro `stacked` draws it
INK = {"accept": "#549f7c", "review": "#a06600", "reject": "#8a100e", "unknown-product": "#5a3da6"}
"""The colours of decisions on paper, those of the pages in the light. A style sheet overrides them; WeasyPrint gives
drawings none."""


@dataclass(frozen=True)
class Bar:
    """The `frames` of one decision in one minute or hour, `at` in words: a rectangle of the chart, in its units.

    `moment` is that time as ISO, where the page writes it in the time of its reader.
    """

    x: float
    y: float
    width: float
    height: float
    decision: str
    at: str
    frames: int
    moment: str = ""

    @property
    def ink(self) -> str:
        """Return the colour where no style sheet says another."""
        return INK.get(self.decision, "currentColor")


@dataclass(frozen=True)
class Chart:
    """Stacked bars, the number at the top, and the words at both ends of the time, with their moments as in `Bar`."""

    bars: tuple[Bar, ...]
    highest: int
    first: str
    last: str
    first_moment: str = ""
    last_moment: str = ""


def chart(
    places: Iterable[tuple[int, str, Mapping[str, int]]],
    number: int,
    first: str,
    last: str,
    moments: Sequence[str] = (),
) -> Chart:
    """Return the chart of `number` minutes or hours, from those with frames: (place, time in words, decisions).

    `moments` are all the minutes or hours as ISO, for a page that writes them in the time of its reader.
    """
    places = list(places)
    highest = max((sum(stack.values()) for _, _, stack in places), default=0)
    step = (WIDTH - LEFT) / max(1, number)
    bars = []
    for place, at, stack in places:
        y = float(HEIGHT)
        for decision in sorted(stack, key=_order):
            height = HEIGHT * stack[decision] / highest
            y -= height
            x, width = LEFT + step * place, max(step - 1, 1)
            moment = moments[place] if moments else ""
            box = round(x, 2), round(y, 2), round(width, 2), round(height, 2)
            bars.append(Bar(*box, decision, at, stack[decision], moment))
    return Chart(tuple(bars), highest, first, last, *((moments[0], moments[-1]) if moments else ()))


def _order(decision: str) -> int:
    return DECISIONS.index(decision) if decision in DECISIONS else len(DECISIONS)
