"""How the interface answers: JSON with an ETag, pages with a cursor, errors as problem documents (RFC 9457)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from station.web.context import MAX_ROW_ID

PAGE_LIMIT, PAGE_DEFAULT = 200, 50

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """A part of a list."""

    model_config = ConfigDict(extra="forbid")

    items: list[T]
    next: str | None = Field(description="The `cursor` of the next page, null on the last one.")


Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="Items of a page.")]
Cursor = Annotated[
    str, Query(max_length=200, description="`next` of the page before; without it the first page is given.")
]


def answer(request: Request, body: Any, status: int = 200) -> Response:
    """Return JSON with an ETag; nothing but the status 304 when the client has just that."""
    response = JSONResponse(body, status)
    tag = f'W/"{hashlib.sha256(bytes(response.body)).hexdigest()[:32]}"'
    wanted = {part.strip() for part in request.headers.get("if-none-match", "").split(",")}
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.method in ("GET", "HEAD") and (tag in wanted or "*" in wanted):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def row_id(cursor: str) -> int | None:
    """Return the id in a cursor, below which the next page begins; None for the first page. Raises HTTPException."""
    if not cursor:
        return None
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, UnicodeEncodeError, RecursionError):
        value = None
    if type(value) is not int or not 1 <= value <= MAX_ROW_ID:
        raise HTTPException(400, "cursor: take it from `next` of the page before")
    return value


def page(
    request: Request, rows: Sequence[Any], limit: int, shown: Callable[[Any], Any], id_of: Callable[[Any], int]
) -> Response:
    """Return a page of rows, of which there is one more than the page holds when another page follows."""
    items = [shown(row) for row in rows[:limit]]
    last = id_of(rows[limit - 1]) if len(rows) > limit else None
    return answer(request, {"items": items, "next": None if last is None else cursor_of(last)})


def cursor_of(last: int) -> str:
    """Return the cursor of the page behind a row."""
    return base64.urlsafe_b64encode(json.dumps(last).encode()).decode()
