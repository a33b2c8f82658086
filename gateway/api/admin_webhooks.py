"""Admin routes of the webhooks: who is told what happens to releases."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Response
from pydantic import Field

from gateway.api.admin_routes import Actor, DryRun, IfMatch, refusals, tag, tagged
from gateway.api.schemas import In, Out, Page, at, example, page
from gateway.controlplane.notify import Webhooks
from gateway.domain.errors import NotFound
from gateway.domain.happening import Kind
from gateway.domain.webhook import MIN_SECRET, NAME, Webhook

_NAME_PATTERN = f"^{NAME.pattern}$"
WebhookName = Annotated[str, Path(pattern=_NAME_PATTERN)]


class WebhookIn(In):
    """A receiver of what happens to releases."""

    model_config = example(
        name="chat-ops", url="https://hooks.example/switchyard", secret=None, kinds=["verdict", "promote", "abort"])
    name: str = Field(pattern=_NAME_PATTERN)
    url: str = Field(min_length=1, max_length=2000, description="http:// or https://; redirects are not followed.")
    secret: Annotated[str, Field(min_length=MIN_SECRET, max_length=1000, pattern=r"^[\x21-\x7e]+$")] | None = Field(
        None, description="What deliveries are signed with; null: one is made. It is shown in this answer alone.")
    kinds: list[Annotated[Kind, Field(strict=False)]] = Field(
        default_factory=list, max_length=len(Kind), description="What it is told; empty: everything.")


class WebhookOut(Out):
    """A webhook, without its secret."""

    model_config = example(
        name="chat-ops", url="https://hooks.example/switchyard", kinds=["verdict", "promote", "abort"],
        created_by="operator", created_at="2026-01-31T12:00:00Z", revision=11)
    name: str
    url: str
    kinds: list[Kind]
    created_by: str
    created_at: datetime
    revision: int

    @classmethod
    def fields_of(cls, webhook: Webhook) -> dict[str, Any]:
        return {"name": webhook.name, "url": webhook.url, "kinds": list(webhook.kinds),
                "created_by": webhook.created_by, "created_at": at(webhook.created_at), "revision": webhook.revision}

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        return cls(**cls.fields_of(webhook))


class NewWebhookOut(WebhookOut):
    """A webhook just registered; `secret` is shown here and never again."""

    model_config = example(
        name="chat-ops", url="https://hooks.example/switchyard", kinds=["verdict", "promote", "abort"],
        created_by="operator", created_at="2026-01-31T12:00:00Z", revision=11,
        secret="0123456789abcdefghijklmnopqrstuvwxyzABCDEFG")
    secret: str


def add_webhook_routes(router: APIRouter, webhooks: Webhooks) -> None:
    """Webhooks, on `router`."""
    options: dict[str, Any] = {"tags": ["webhooks"]}

    @router.get("/webhooks", operation_id="list_webhooks", summary="Who is told what happens to releases",
                responses=refusals(), response_model=Page[WebhookOut], **options)
    async def list_webhooks() -> Any:
        return page(WebhookOut.of(webhook) for webhook in webhooks.all())

    @router.post("/webhooks", operation_id="add_webhook", summary="Tell one more receiver", status_code=201,
                 description="Deliveries are JSON with `X-Switchyard-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 "
                             "of t.body>`, and come again, with the same `id`, while the receiver cannot take them.",
                 responses={201: tagged("Registered.", written=True), **refusals(409, 413, 503)}, **options)
    async def add_webhook(body: WebhookIn, actor: Actor, response: Response, dry_run: DryRun = False) -> NewWebhookOut:
        made = await webhooks.add(
            actor, body.name, body.url, secret=body.secret, kinds=tuple(body.kinds), dry_run=dry_run)
        tag(response, made.revision, written=not dry_run)
        response.headers["Location"] = f"/admin/v1/webhooks/{made.name}"
        response.headers["Cache-Control"] = "no-store"
        return NewWebhookOut(**WebhookOut.fields_of(made), secret=made.secret)

    @router.get("/webhooks/{name}", operation_id="get_webhook", summary="One webhook",
                responses={200: tagged("The webhook."), **refusals(404)}, **options)
    async def get_webhook(name: WebhookName, response: Response) -> WebhookOut:
        found = next((webhook for webhook in webhooks.all() if webhook.name == name), None)
        if found is None:
            raise NotFound(f"There is no webhook {name!r}.", param="name")
        tag(response, found.revision)
        return WebhookOut.of(found)

    @router.delete("/webhooks/{name}", operation_id="remove_webhook", status_code=204,
                   summary="Tell a receiver no more", description="What still waits for it is not sent.",
                   responses={204: tagged("Removed.", written=True), **refusals(404, 412, 503)}, **options)
    async def remove_webhook(
        name: WebhookName, actor: Actor, if_match: IfMatch, response: Response, dry_run: DryRun = False,
    ) -> None:
        removed = await webhooks.remove(actor, name, if_match=if_match, dry_run=dry_run)
        tag(response, removed.revision, written=not dry_run)
