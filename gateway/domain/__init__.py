"""Values and decisions, pure: standard library only; no clock, no I/O, no async.

model.py        entities, phases, the snapshot      names.py         what things are called
routing.py      call → version and track            placement.py     version → replicas, in order
preflight.py    may an artifact serve at all?       reconcile.py     what replicas lack or hold too much
adapter_config.py architecture.py findings.py       its parts        fleet.py   replicas as last seen
errors.py       every failure a caller can act on
"""
