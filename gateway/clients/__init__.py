"""Doers: each moves bytes to one foreign thing and lets no foreign exception out.

registry.py   Redis or Valkey (registry_urls.py, _scripts.py, _rows.py)  valkey.py      the embedded Valkey
http1.py      inference, over pooled HTTP/1.1                            vllm.py        one replica's management
artifacts.py  the artifact store (staging.py, archives.py, sources.py, safetensors.py, parity_file.py)
tallies.py    what all gateways counted, in Redis                         webhooks.py    signed JSON to receivers
replays.py    answers to writes with a key, in Redis
quality.py    samples' scores and candidates, in Redis                judge.py       a model's opinion of an answer
patterns.py   operators' regular expressions, in linear time
base_model.py what a base model is                                       children.py    processes that die with us
"""
