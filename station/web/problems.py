"""Errors of the interface for programs, as problem documents (RFC 9457)."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi.responses import Response
from pydantic import BaseModel, Field

PREFIX = "/api/v1"
PROBLEM_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field("about:blank", description="Kind of the problem; the status says it all.")
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What is wrong and what to do, in one line.")


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error."""
    document = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(json.dumps(document.model_dump()), status, headers, PROBLEM_TYPE)


def is_of_api(path: str) -> bool:
    """Return whether an address is of the interface, so that an error of it is a problem document."""
    return path.startswith(f"{PREFIX}/")
