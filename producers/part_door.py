"""Where messages come in that name the part in front of the cameras: HTTP, and MQTT where it is asked for.

The producer takes them itself, since a name belongs to a capture from the moment in which it is taken, also while the
broker, the store or the console is away.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flawline import telemetry
from flawline.clock import UtcNs, utc_ns
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.outage import Outage
from flawline.settings.parts import PartSettings
from producers.mqtt import FIRST_PAUSE_S, LONGEST_PAUSE_S, client_of
from producers.part_names import PartNames, parsed

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)

PATH = "/v1/parts"
LIMIT_BYTES = 4096
MOST_CONNECTIONS = 64
START_TIMEOUT_S = 10.0


def open_doors(settings: PartSettings, names: PartNames, now_ns: UtcNs = utc_ns) -> ExitStack:
    """Take messages until the returned stack is closed. Raises UsageError, and FlawlineError for a port in use."""

    def take(body: bytes, *, is_old: bool = False) -> list[str]:
        try:
            message = parsed(body)
            if is_old:  # a retained message: its lot may hold still, its part has passed long ago
                message = message.model_copy(update={"part": None, "trigger": None})
                message.model_fields_set.difference_update({"part", "trigger"})
            cameras = names.take(message, now_ns())
        except UsageError:
            telemetry.PART_MESSAGES.labels("refused").inc()
            raise
        telemetry.PART_MESSAGES.labels("taken").inc()
        return cameras

    with ExitStack() as stack:
        if settings.port:
            stack.callback(_serve(settings, take))
        if settings.mqtt_url is not None:
            stack.callback(_subscribe(settings, take))
        return stack.pop_all()


def _serve(settings: PartSettings, take: Callable[[bytes], list[str]]) -> Callable[[], None]:
    """Serve HTTP in a thread, and return what ends it."""
    import uvicorn  # here: most producers take no messages, and start faster without it
    from starlette.applications import Starlette
    from starlette.routing import Route

    token = settings.token.get_secret_value() if settings.token else None
    if token is None and not _is_this_machine(settings.host):
        raise UsageError(
            f"parts.host {settings.host}: others could name parts: set parts.token, or parts.host 127.0.0.1"
        )
    try:
        listener = socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        raise FlawlineError(
            f"parts.port {settings.host}:{settings.port} cannot be used ({error.strerror}): choose another port"
        ) from error

    async def receive(request: Request) -> Response:
        return await _answer(request, token, take)

    config = uvicorn.Config(
        Starlette(routes=[Route(PATH, receive, methods=["POST"])]),
        log_config=None, log_level="warning", access_log=False, server_header=False, lifespan="off",
        limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="parts", daemon=True)
    thread.start()
    log.info("messages that name parts: POST http://%s:%d%s", settings.host, settings.port, PATH)

    def end() -> None:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        listener.close()

    return end


async def _answer(request: Request, token: str | None, take: Callable[[bytes], list[str]]) -> Response:
    """Return the answer to a message: the cameras it holds for, or why not."""
    from starlette.responses import JSONResponse

    if token is not None:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), token.encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            return JSONResponse({"error": "send the token of parts.token: Authorization: Bearer ..."}, 401, headers)
    elif request.headers.get("origin") is not None:
        return JSONResponse({"error": "a web page may not name parts without parts.token"}, 403)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LIMIT_BYTES:
            return JSONResponse({"error": f"the message is larger than {LIMIT_BYTES} bytes"}, 413)
    try:
        return JSONResponse({"cameras": take(bytes(body))})
    except UsageError as error:
        return JSONResponse({"error": str(error)}, 400)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _subscribe(settings: PartSettings, take: Callable[..., list[str]]) -> Callable[[], None]:
    """Subscribe to the topic of the messages, and return what ends it. A broker that is away is waited for."""
    assert settings.mqtt_url is not None
    client, host, port = client_of("parts.mqtt_url", settings.mqtt_url.get_secret_value())
    outage = Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S)

    def connected(client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _report(f"refuses this producer ({reason})")
            return
        if outage.is_on:
            log.info("MQTT %s:%d answers again", host, port)
            outage.ended()
        client.subscribe(settings.mqtt_topic, qos=1)

    def lost(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _report(f"is away ({reason})")

    def failed(_client: Any, _data: Any) -> None:
        _report("does not answer")

    def _report(what: str) -> None:
        if outage.failed().is_reported:
            log.warning("MQTT %s:%d %s: parts have no names from it until it answers", host, port, what)

    def received(_client: Any, _data: Any, message: Any) -> None:
        try:
            take(bytes(message.payload[: LIMIT_BYTES + 1]), is_old=message.retain)
        except UsageError as error:
            log.warning("MQTT %s: a message that names a part is refused: %s", message.topic, error)

    client.on_connect, client.on_disconnect, client.on_connect_fail = connected, lost, failed
    client.on_message = received
    try:
        client.connect_async(host, port)
        client.loop_start()
    except (OSError, ValueError) as error:
        raise UsageError(f"parts.mqtt_url {host}:{port}: {one_line(error)}: correct it") from error

    def end() -> None:
        client.disconnect()
        client.loop_stop()

    return end
