"""Doers: each moves bytes to one foreign thing and lets no foreign exception out.

registry.py  Redis or Valkey       valkey.py     the embedded Valkey      vllm.py   one replica
http1.py     pooled HTTP/1.1       artifacts.py  artifact store, archives, hubs, object stores
"""
