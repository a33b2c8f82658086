"""Health and metrics, for load balancers, Kubernetes and Prometheus."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.auth import Operators


def ops_router(
    readiness: Callable[[], tuple[bool, dict[str, Any]]], metrics: Callable[[], bytes], operators: Operators
) -> APIRouter:
    """`/healthz`, `/readyz` and `/metrics`; the latter names tenants, so it needs a key."""
    router = APIRouter(tags=["ops"])

    @router.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="May it get requests?")
    async def readyz() -> JSONResponse:
        ready, report = readiness()
        return JSONResponse(report, status_code=200 if ready else 503)

    @router.get("/metrics", summary="Prometheus metrics of all worker processes", response_class=Response)
    async def prometheus(request: Request) -> Response:
        operators.check_reader(request.headers.raw)
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
