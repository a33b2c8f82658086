"""A fake vLLM replica: `FakeVllm` is an ASGI app, `python -m tests.fakes.vllm` serves one.

app.py        doors, keys, control routes       inference.py  the course of one request
engine.py     adapters, slots, how it dies      weights.py    reads adapters, invents words and logprobs
prompts.py    bodies to prompts, validation     behaviour.py  what tests steer, what was seen
shapes.py other_shapes.py metrics.py            the bytes of vLLM's answers      wire.py  ASGI in small
"""

from tests.fakes.vllm.app import FakeVllm
from tests.fakes.vllm.behaviour import Behaviour
from tests.fakes.vllm.weights import BASE, Weights, read_weights

__all__ = ["BASE", "Behaviour", "FakeVllm", "Weights", "read_weights"]
