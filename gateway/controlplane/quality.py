"""Who has opted in to sampling, what answers must be, and what people make of those that failed."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from gateway.controlplane.catalog import adapter_of
from gateway.controlplane.changes import Changes, Step
from gateway.controlplane.leases import Leases
from gateway.controlplane.tenants import tenant_of
from gateway.domain.candidate import Approval, Candidate, digest_of
from gateway.domain.errors import Conflict, InvalidRequest, NotFound
from gateway.domain.model import Entity, Snapshot
from gateway.domain.quality import MAX_RULES, OptIn, QualityPolicy, Review, Rule, RuleKind, Standing, Who, policy_of
from gateway.domain.quality import reviewed as review_of
from gateway.system import System

NO_JUDGE = "No judge is set, so no sample could be judged. Set SWITCHYARD_JUDGE_URL and SWITCHYARD_JUDGE_MODEL first."


class Scores(Protocol):
    """What all gateways scored; see `gateway.clients.quality.Scores`."""

    async def read(self, wanted: Iterable[Who]) -> dict[Who, dict[int, Standing]]: ...
    async def cross(self, who: Who, version: int, *, is_below: bool) -> bool: ...


class Candidates(Protocol):
    """Where failures and approved items are kept; see `gateway.clients.quality.Candidates`."""

    async def find(self, who: Who, candidate: str) -> Candidate | None: ...
    async def approve(self, who: Who, candidate: Candidate) -> None: ...
    async def reject(self, who: Who, candidate: str) -> None: ...
    async def page(self, who: Who, *, approved: bool, offset: int, limit: int) -> tuple[list[Candidate], int]: ...
    async def end(self, who: Who) -> None: ...


class Expressions(Protocol):
    """What may be a regular expression; see `gateway.clients.patterns.Patterns`."""

    def check(self, pattern: str) -> None: ...


class QualityControl:
    """Opt-ins, policies and reviews. Everything kept of a tenant's answers goes when it opts out."""

    def __init__(
        self, changes: Changes, leases: Leases, scores: Scores, candidates: Candidates, patterns: Expressions,
        system: System, *, has_judge: bool,
    ) -> None:
        self._changes = changes
        self._leases = leases
        self._scores = scores
        self._candidates = candidates
        self._patterns = patterns
        self._system = system
        self._has_judge = has_judge

    # opt-ins

    def opt_in_of(self, tenant: str) -> OptIn | None:
        """The tenant's opt-in; None: nothing of it is sampled."""
        snapshot = self._changes.current
        tenant_of(snapshot, tenant)
        return _opt_in(snapshot, tenant)

    async def opt_in(
        self, actor: str, tenant: str, *, share: float | None, if_match: int | None = None, dry_run: bool = False,
    ) -> OptIn:
        """Sample `share` percent of the tenant's answers (None: as the settings say) from now on."""
        def decide(snapshot: Snapshot) -> Step[OptIn]:
            owner = tenant_of(snapshot, tenant)
            known = _opt_in(snapshot, tenant)
            made = OptIn(tenant=tenant, id=known.id if known else self._system.hex(8), share=share,
                         by=known.by if known else actor, at=known.at if known else self._system.now(),
                         revision=known.revision if known else 0)
            writes = {} if made == known else {made.path: made}
            return Step("quality.opt_in", made, writes, {"share": share}, (owner.path,))

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    async def opt_out(
        self, actor: str, tenant: str, *, if_match: int | None = None, dry_run: bool = False,
    ) -> OptIn:
        """The opt-in that is no more; its scores, candidates and approved items are deleted."""
        def decide(snapshot: Snapshot) -> Step[OptIn]:
            known = _opted_in(snapshot, tenant)
            return Step("quality.opt_out", known, {known.path: None}, {"share": known.share})

        gone = (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity
        if not dry_run:
            for of, adapter in self._changes.current.adapters:
                if of == tenant:
                    await self._candidates.end(Who(tenant, adapter, gone.id))
        return gone

    # policies

    def policy(self, tenant: str, adapter: str) -> QualityPolicy:
        """What the adapter's answers must be."""
        snapshot = self._changes.current
        adapter_of(snapshot, tenant, adapter)
        return policy_of(snapshot, tenant, adapter)

    async def put_policy(
        self, actor: str, policy: QualityPolicy, *, if_match: int | None = None, dry_run: bool = False,
    ) -> QualityPolicy:
        """The policy in place of the one before. InvalidRequest for an expression that cannot be used, Conflict when
        it asks for a judge and there is none."""
        if len(policy.rules) > MAX_RULES:
            raise InvalidRequest(f"An adapter has at most {MAX_RULES} rules.", param="rules")
        for rule in policy.rules:
            if rule.kind in (RuleKind.REGEX, RuleKind.FORBIDDEN):
                self._patterns.check(str(rule.value))
        if policy.judge and not self._has_judge:
            raise Conflict(NO_JUDGE, param="judge")

        def decide(snapshot: Snapshot) -> Step[QualityPolicy]:
            owner = adapter_of(snapshot, policy.tenant, policy.adapter)
            known = snapshot.entities.get(policy.path)
            is_so = isinstance(known, QualityPolicy) and known.to_document() == policy.to_document()
            writes: dict[str, Entity | None] = {} if is_so else {policy.path: policy}
            detail = {"rules": [rule.to_document() for rule in policy.rules], "judge": policy.judge,
                      "floor": policy.floor, "min_samples": policy.min_samples, "pass_at": policy.pass_at}
            return Step("quality.put", known if is_so and isinstance(known, QualityPolicy) else policy, writes, detail,
                        (owner.path,))

        return (await self._changes.commit(actor, decide, if_match=if_match, dry_run=dry_run)).entity

    async def standings(self, tenant: str, adapter: str) -> Mapping[int, Standing]:
        """The rolling quality of each version that has samples in the window; none without an opt-in."""
        snapshot = self._changes.current
        adapter_of(snapshot, tenant, adapter)
        opt_in = _opt_in(snapshot, tenant)
        if opt_in is None:
            return {}
        who = Who(tenant, adapter, opt_in.id)
        return (await self._scores.read([who]))[who]

    # candidates

    def review(self, tenant: str, adapter: str) -> Review:
        """How many candidates were approved and rejected."""
        snapshot = self._changes.current
        adapter_of(snapshot, tenant, adapter)
        return review_of(snapshot, tenant, adapter)

    async def page(
        self, tenant: str, adapter: str, *, approved: bool, offset: int, limit: int,
    ) -> tuple[list[Candidate], int]:
        """At most `limit` candidates after the first `offset`, newest first, and how many there are; NotFound without
        an opt-in."""
        who = self._who(self._changes.current, tenant, adapter)
        return await self._candidates.page(who, approved=approved, offset=offset, limit=limit)

    async def approve(
        self, actor: str, tenant: str, adapter: str, candidate: str, approval: Approval, *, reason: str = "",
        dry_run: bool = False,
    ) -> Candidate:
        """The candidate as a golden item, which the audit names by its digest; once more: with another answer."""
        found, who = await self._find(tenant, adapter, candidate)
        made = found.approved(approval)
        async with self._leases.exclusive(f"review-{tenant}/{adapter}"):
            still, _ = await self._find(tenant, adapter, candidate)
            detail = {"candidate": candidate, "version": made.version, "item_sha256": digest_of(made.item),
                      "scorer": (made.item or {})["scorer"], "reason": reason}
            await self._decide(actor, "quality.approve", who, detail, dry_run=dry_run,
                               approved=int(still.item is None), rejected=0)
            if not dry_run:
                await self._candidates.approve(who, made)
        return made

    async def reject(
        self, actor: str, tenant: str, adapter: str, candidate: str, *, reason: str = "", dry_run: bool = False,
    ) -> Candidate:
        """The candidate that is no more, approved or not; its question does not come back."""
        async with self._leases.exclusive(f"review-{tenant}/{adapter}"):
            found, who = await self._find(tenant, adapter, candidate)
            detail = {"candidate": candidate, "version": found.version, "was": found.state, "reason": reason}
            await self._decide(actor, "quality.reject", who, detail, dry_run=dry_run,
                               approved=-int(found.item is not None), rejected=1)
            if not dry_run:
                await self._candidates.reject(who, candidate)
        return found

    async def _decide(
        self, actor: str, action: str, who: Who, detail: Mapping[str, Any], *, dry_run: bool, approved: int,
        rejected: int,
    ) -> None:
        """Write to the audit what was decided; first, so that nothing is approved that the audit does not know of."""
        def decide(snapshot: Snapshot) -> Step[Review]:
            known = self._who(snapshot, who.tenant, who.adapter)
            if known != who:
                raise NotFound(f"The tenant {who.tenant!r} has opted out meanwhile.", param="tenant")
            made = review_of(snapshot, who.tenant, who.adapter, approved=approved, rejected=rejected)
            return Step(action, made, {made.path: made}, detail, (f"optin/{who.tenant}",))

        await self._changes.commit(actor, decide, dry_run=dry_run)

    async def _find(self, tenant: str, adapter: str, candidate: str) -> tuple[Candidate, Who]:
        who = self._who(self._changes.current, tenant, adapter)
        found = await self._candidates.find(who, candidate)
        if found is None:
            raise NotFound(f"{tenant}/{adapter} has no candidate {candidate!r} (any more).", param="candidate")
        return found, who

    def _who(self, snapshot: Snapshot, tenant: str, adapter: str) -> Who:
        adapter_of(snapshot, tenant, adapter)
        return Who(tenant, adapter, _opted_in(snapshot, tenant).id)


def rules_of(rules: Iterable[tuple[str, Any]]) -> tuple[Rule, ...]:
    """Rules from their kinds and values; InvalidRequest."""
    return tuple(Rule.of(kind, value) for kind, value in rules)


def _opt_in(snapshot: Snapshot, tenant: str) -> OptIn | None:
    found = snapshot.entities.get(f"optin/{tenant}")
    return found if isinstance(found, OptIn) else None


def _opted_in(snapshot: Snapshot, tenant: str) -> OptIn:
    tenant_of(snapshot, tenant)
    found = _opt_in(snapshot, tenant)
    if found is None:
        raise NotFound(f"The tenant {tenant!r} has not opted in to sampling, so nothing is kept of it.",
                       param="tenant")
    return found
