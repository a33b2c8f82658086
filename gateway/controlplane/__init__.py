"""One change: read, decide, compare-and-set, audit.

tenants.py   tenants and API keys                   catalog.py     adapters and versions, from an artifact on
releases.py  what takes traffic, what no longer     prepare.py     from preparing to ready, or refused
parity.py    compared with its trainer on the way
fleet.py     the replicas                           removal.py     from retiring to gone
rollouts.py  canaries and shadows, move by move     activation.py  loaded first, then the traffic
evaluations.py what versions have proven            freezes.py     when nothing moves
aliases.py   other names for adapters, versions     operators.py   who may change what
changes.py   how every change is made               leases.py      what only one gateway may do at a time
secrets.py   what all gateways share                reconciler.py  replicas hold what the registry says
quality.py   opt-ins, policies, candidates          drift.py       shows quality, tells of its floor
analyst.py   judges live canaries, moves them       notify.py      tells operators' webhooks
"""
