"""Doors: the only place that knows HTTP and the web framework.

openai.py  the request path (raw ASGI)   chat.py  the simple door      admin.py   operators
ops.py     health and metrics            auth.py  who is calling       schemas.py admin bodies   errors.py  error → HTTP
idempotency.py a write with a key is done once
"""
