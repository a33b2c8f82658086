"""One request, from its bytes to the last byte of the reply; never waits for Redis. Read serving.py first.

serving.py    the whole story                   replicas.py   who is up, what is loaded where
body.py       what we read and set of it        relay.py      the reply, renamed on its way
snapshots.py  the registry's truth, in memory   salts.py      keeps tenants apart in the prefix cache
shadows.py    copies, once all is answered      answers.py    what an answer said
quality.py    samples, scored in the background
tally.py      what rollouts are judged by       ports.py      what it needs of the outside
"""
