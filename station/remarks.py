"""Remarks on a ledger's report, as the command line and the console show them."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.accounting import Report, SequenceRange
from station.language.languages import Language, english

SHOWN_RANGES = 5


def remarks(report: Report, language: Language | None = None) -> list[str]:
    """Return lines that a table of counts has no place for: missing, contradictory and left out captures.

    They are in English, or in the language that is named.
    """
    language = language or english()
    _, ngettext = language.gettext, language.ngettext
    lines = []
    for name, account in sorted(report.cameras.items()):
        if account.gap_ranges:
            lines.append(_("%(camera)s: gaps: %(ranges)s", camera=name, ranges=_ranges(account.gap_ranges, language)))
        if account.conflict_ranges:
            ranges = _ranges(account.conflict_ranges, language)
            lines.append(
                _("%(camera)s: more than one outcome, or behind the end: %(ranges)s", camera=name, ranges=ranges)
            )
    total = report.total
    if total.recovered:
        lines.append(
            ngettext(
                "%(number)s of the scored frames was a dead letter before (replayed or redelivered)",
                "%(number)s of the scored frames were dead letters before (replayed or redelivered)",
                total.recovered,
            )
        )
    if total.conflicting_verdicts:
        lines.append(
            ngettext(
                "%(number)s frame has verdicts that differ: the first one in the topic counts, here as in the store "
                "and the console",
                "%(number)s frames have verdicts that differ: the first one in the topic counts, here as in the store "
                "and the console",
                total.conflicting_verdicts,
            )
        )
    if total.expired:
        lines.append(
            ngettext(
                "%(number)s frame expired: it was deleted from the topic before a worker read it",
                "%(number)s frames expired: they were deleted from the topic before a worker read them",
                total.expired,
            )
        )
    if total.unclaimed:
        lines.append(
            ngettext(
                "%(number)s record is left out: it names a capture far beyond what a camera reports",
                "%(number)s records are left out: they name captures far beyond what a camera reports",
                total.unclaimed,
            )
        )
    if total.left_out:
        lines.append(
            ngettext(
                "%(number)s capture is left out: it is from before the begin of the accounting",
                "%(number)s captures are left out: they are from before the begin of the accounting",
                total.left_out,
            )
        )
    for reason, count in report.unidentified.items():
        lines.append(
            ngettext(
                "%(number)s dead letter (%(reason)s) names no capture: a foreign record in the topic frames",
                "%(number)s dead letters (%(reason)s) name no capture: foreign records in the topic frames",
                count,
                reason=language.word(reason, "reason"),
            )
        )
    lines.extend(_("unreadable: %(text)s", text=text) for text in report.unreadable)
    return lines


def _ranges(ranges: Sequence[SequenceRange], language: Language) -> str:
    shown = [
        language.gettext("epoch %(epoch)s sequence %(first)s to %(last)s", **vars(item))
        if item.last > item.first
        else language.gettext("epoch %(epoch)s sequence %(first)s", **vars(item))
        for item in ranges[:SHOWN_RANGES]
    ]
    return ", ".join(shown) + (", ..." if len(ranges) > SHOWN_RANGES else "")
