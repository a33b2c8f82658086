"""One request, from its bytes to the last byte of the reply; never waits for Redis. Read serving.py first.

serving.py    the whole story              snapshots.py  the registry's truth, in memory
body.py       what we read and set of it   replicas.py   who is up, what is loaded where
relay.py      the reply, renamed on its way    tally.py       what became of calls, added up
"""
