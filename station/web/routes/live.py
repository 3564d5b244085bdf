"""The live page: a tile for each camera, with its picture, its decision and its last verdicts, as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from discovery.store.database import stamp
from flawline import clock
from station.language.languages import N_, Language, english
from station.pages.heat import HEAT_RANGE, heat_legend
from station.web import queries, views
from station.web.camera_states import CameraState, Kind, camera_state
from station.web.context import Context, TheContext, TheStore, image_response
from station.web.live import READING, STRIP

router = APIRouter()

STEP_S = 0.25
"""A page gets what is new after this time. A judgement: it seems to be at once."""
CHECK_S = 15.0
"""Time after which a quiet page gets a sign of life, and after which it is asked whether its session still lasts."""


@router.get("/")
def live(context: TheContext) -> Response:
    """Show the tiles."""
    state = tiles(context, 0, context.language)
    return context.page("live.html", state=state, strip=STRIP, legend=heat_legend(), heat_range=HEAT_RANGE)


@router.get("/api/live")
def api_live(context: TheContext) -> Response:
    """Return the tiles as JSON."""
    return JSONResponse(tiles(context, 0))


@router.get("/live/events")
async def events(request: Request, context: TheContext) -> Response:
    """Send the tiles as server-sent events, each time that something has changed."""
    return StreamingResponse(
        _events(request, context), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@router.get("/live/{frame_id}.jpg")
def picture(context: TheContext, frame_id: str) -> Response:
    """Return a picture that the live page shows."""
    shown = context.live.pictures.get(frame_id)
    return image_response(shown.jpeg if shown else None, "image/jpeg", f"no picture of frame {frame_id} is kept")


@router.get("/defects/{frame_id}/layer.png")
def layer(store: TheStore, frame_id: str) -> Response:
    """Return the heat map of a frame to be laid over its picture: what is normal is transparent."""
    row = queries.defect(store, frame_id)
    if row is None or not row.heatmap:
        raise HTTPException(404, f"no heat map of frame {frame_id} has come yet")
    data = views.layer_png(row.heatmap, row.heatmap_height, row.heatmap_width)
    return image_response(data, "image/png", "")


def tiles(context: Context, after: int, language: Language | None = None) -> dict[str, Any]:
    """Return every tile; its strip has the verdicts with a serial above `after`.

    Its words are in English, or in the language that is named; times are ISO in UTC.
    """
    now, language = clock.utc_ns(), language or english()
    live = context.live
    report = context.watch.state.report
    configured = {camera.name: getattr(camera, "rate_hz", None) or None for camera in context.settings.cameras}
    result, last_serial = [], after
    for name in [*configured, *(name for name in live.cameras if name not in configured)]:
        strip = live.strip(name)
        account = report.cameras.get(name) if report else None
        state = camera_state(
            strip[-1].captured_at if strip else None,
            now,
            rate_hz=configured.get(name),
            is_up=live.cameras_up.get(name),
            in_flight=account.in_flight if account else 0,
            language=language,
        )
        if live.problem == READING and state.kind is Kind.NEVER:  # nobody knows yet
            state = CameraState(Kind.WAITING, language.gettext(READING))
        if live.has_ended:
            over = N_("over: last frame at {since}") if strip else N_("over: it had no frame")
            state = CameraState(Kind.ENDED, language.gettext(over))
        shown = live.shown(name)
        picture = live.pictures.get(shown.frame_id) if shown else None
        last_serial = max([last_serial, *(verdict.serial for verdict in strip)])
        result.append(
            {
                "camera": name,
                "kind": state.kind,
                "words": state.words,
                "scene": language.word(strip[-1].scene, "scene") if strip and strip[-1].scene else "",
                "since": _iso(strip[-1].captured_at) if strip else None,
                "shown": shown
                and {
                    "frame_id": shown.frame_id,
                    "decision": shown.decision,
                    "score": round(shown.score, 2),
                    "captured_at": _iso(shown.captured_at),
                    "boxes": shown.boxes,
                    "size": [picture.width, picture.height] if picture else None,
                },
                "strip": [
                    [verdict.decision, verdict.frame_id, round(verdict.score, 2), _iso(verdict.captured_at)]
                    for verdict in strip
                    if verdict.serial > after
                ],
            }
        )
    problem = language.known(live.problem) if live.problem else None
    return {"tiles": result, "serial": last_serial, "problem": problem, "now": _iso(now)}


async def _events(request: Request, context: Context) -> AsyncIterator[str]:
    """Yield an event for each change, and end with the session."""
    sent: dict[str, Any] = {}
    after, quiet_s, checked_s = 0, 0.0, 0.0
    is_secure = request.url.scheme == "https"
    while True:
        state = await asyncio.to_thread(tiles, context, after, context.language)
        after = state["serial"]
        timeless = {**state, "now": None}
        if timeless != sent:
            yield f"data: {json.dumps(state)}\n\n"
            quiet_s = 0.0
            sent = {**timeless, "tiles": [{**tile, "strip": []} for tile in state["tiles"]]}
        elif quiet_s >= CHECK_S:
            yield ": still here\n\n"
            quiet_s = 0.0
        await asyncio.sleep(STEP_S)
        quiet_s, checked_s = quiet_s + STEP_S, checked_s + STEP_S
        if checked_s >= CHECK_S:
            checked_s = 0.0
            try:
                known = await asyncio.to_thread(context.access.visitor, request.headers, request.cookies, is_secure)
            except HTTPException:
                return
            if known is None:
                return


def _iso(time_ns: int) -> str:
    return stamp(time_ns).isoformat(timespec="milliseconds")
