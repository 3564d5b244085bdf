"""Names of the MQTT topics: `PREFIX/LINE/camera/NAME/verdict`, `.../state`, `PREFIX/LINE/class/ID`. Pure."""

from __future__ import annotations

from station.outbound.events import Event

RESERVED = frozenset("/+#%")
"""What parts levels, what stands for levels in a subscription (MQTT 3.1.1, section 4.7), and what begins an escape."""


def level(name: str) -> str:
    """Return a name as one level of a topic. Different names are different levels, and `unquote` gives the name back.

    What MQTT refuses or gives a meaning, and what cannot be printed, is escaped as in URLs. An empty name is `%`.
    """
    return "".join(_escaped(sign) if sign in RESERVED or not sign.isprintable() else sign for sign in name) or "%"


def _escaped(sign: str) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.encode(errors="surrogatepass"))


def of_role(prefix: str, line: str) -> str:
    """Return the topic that says whether the line tells anything, which the broker sets when it does not."""
    return f"{prefix}/{level(line)}/state"


def of_event(prefix: str, line: str, event: Event) -> str:
    """Return the topic of an event."""
    base = f"{prefix}/{level(line)}"
    if event.kind == "class":
        return f"{base}/class/{level(event.subject)}"
    return f"{base}/camera/{level(event.subject)}/{'verdict' if event.kind == 'verdict' else 'state'}"
