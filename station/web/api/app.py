"""The interface as an app of its own, which the console mounts at `/api/v1`; its description is `openapi.json`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from flawline import __version__
from flawline.errors import FlawlineError, UsageError
from station.web.access import needs
from station.web.accounts import Role
from station.web.api import reading, saying, told
from station.web.context import Context
from station.web.problems import PREFIX, PROBLEM_TYPE, Problem, problem

ERRORS = {400: "It cannot be.", 401: "Log in, or send a token.", 403: "Your role may not.", 404: "It is not there.",
          503: "The store is away."}  # fmt: skip


def create_api(context: Context) -> FastAPI:
    """Return the interface of a console."""
    api = FastAPI(
        title="Flawline",
        version=__version__,
        summary="What the station's pages show and do.",
        description="Lists have `limit` and `cursor`; answers have an ETag; errors are problem documents. "
        "Where users exist, send `Authorization: Bearer TOKEN`.",
        docs_url=None,
        redoc_url=None,
        webhooks=told.router,
        responses={
            status: {
                "description": text,
                "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
            for status, text in ERRORS.items()
        },
        root_path_in_servers=False,
        servers=[{"url": PREFIX}],
    )
    api.state.context = context
    for router in (reading.router, saying.router):
        api.include_router(router, dependencies=[needs(Role.VIEW)])
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_request)
    api.add_exception_handler(FlawlineError, _on_flawline_error)
    describe = api.openapi

    def openapi() -> dict:
        if api.openapi_schema is None:
            schema = describe()
            schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            paths = [*schema["paths"].values(), *schema["webhooks"].values()]
            for operation in (operation for path in paths for operation in path.values()):
                operation["responses"].pop("422", None)  # what cannot be read is 400 here
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        return api.openapi_schema or schema

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), dict(error.headers or {}))


def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return problem(400, " ".join(f"{place}: {first['msg']}".split()))


def _on_flawline_error(_: Request, error: Exception) -> Response:
    return problem(400 if isinstance(error, UsageError) else 503, str(error))
