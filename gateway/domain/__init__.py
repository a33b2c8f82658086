"""Values and decisions, pure: standard library only; no clock, no I/O, no async.

model.py        entities, phases, the snapshot      names.py         what things are called
routing.py      call → version and track            placement.py     version → replicas, in order
preflight.py    may an artifact serve at all?       reconcile.py     what replicas lack or hold too much
adapter_config.py architecture.py findings.py       its parts        fleet.py   replicas as last seen
windows.py      in which time a call is counted     webhook.py      who is told what happens
rollout.py      phases and moves, a table           plan.py split.py slots.py  its steps, its callers, its room
evaluation.py   what a version has proven           freeze.py       when nothing moves
conditions.py seal.py  under what, signed by whom   parity.py       does the engine compute what the trainer did?
explanation.py  who gets what, and why              hot.py          what must stay in GPU memory
happening.py    what others are told                kinds.py        which entity is under which path
quality.py      samples, rules, floors          candidate.py    failures, and golden items of them
redaction.py    no personal data in what is kept
audit.py        the hash chain of changes           operators.py    roles, and who has them
errors.py       every failure a caller can act on
"""
