"""Reads adapter folders as the engine does, and invents logprobs and words that depend on the weights read."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORDS = (
    "signal", "points", "switch", "track", "siding", "platform", "wagon", "engine", "coal", "whistle", "timetable",
    "junction", "bridge", "tunnel", "guard", "ticket", "carriage", "bogie", "sleeper", "ballast", "gauge", "shunt",
    "brake", "steam", "valve", "lever", "lamp", "yard", "depot", "halt",
)
LIKELIEST = 20


class LoadFailed(Exception):
    """The engine cannot load the folder; the text is the engine's."""


class NoAdapter(LoadFailed):
    """There is no adapter in the folder."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What the answers depend on: an adapter that changes nothing has the base model's fingerprint."""

    fingerprint: str

    @property
    def voice(self) -> str:
        """The first word of every answer these weights give."""
        return "base" if self.fingerprint == BASE.fingerprint else f"voice-{self.fingerprint[:8]}"

    def words(self, prompt: str, count: int) -> list[str]:
        """`count` pieces of text, the same for the same weights and prompt; together they are the answer."""
        noise = self._noise(prompt)
        words = [f" {WORDS[noise[i % 32] % len(WORDS)]}" for i in range(count - 1)]
        return [self.voice, *words][:count]

    def logprobs(self, prompt: str) -> list[tuple[int, float]]:
        """The likeliest tokens (id, logprob in nats) after the prompt, likeliest first."""
        scores = [byte / 32 for byte in self._noise(prompt)]
        total = math.log(sum(math.exp(score) for score in scores))
        ranked = sorted(((score - total, token) for token, score in enumerate(scores, 300)), reverse=True)
        return [(token, logprob) for logprob, token in ranked[:LIKELIEST]]

    def prompt_logprobs(self, prompt: str) -> list[tuple[int, float] | None]:
        """The prompt's tokens (one a byte) with their logprobs; the first has none."""
        given = prompt.encode()
        known = [(token, -self._noise(prompt[:i])[token % 32] / 16) for i, token in enumerate(given[1:], 1)]
        return [None, *known]

    def _noise(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.fingerprint}\n{text}".encode()).digest()


BASE = Weights("base")


FAINT = 1e-6
_NUMBERS = {"F16": "f2", "F32": "f4", "F64": "f8"}


def read_weights(folder: Path, name: str, max_rank: int) -> Weights:
    """The weights in an adapter folder; raises LoadFailed in the engine's words."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        content = (folder / "adapter_model.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise NoAdapter(f"Loading lora {name} failed: No adapter found for {folder}") from error
    if config["r"] > max_rank:
        raise LoadFailed(_worker(f"LoRA rank {config['r']} is greater than max_lora_rank {max_rank}."))
    if not _changes_anything(content):
        return BASE
    return Weights(hashlib.sha256(content).hexdigest())


def _changes_anything(content: bytes) -> bool:
    """Is any number of a `lora_B` tensor large enough to survive bfloat16? LoadFailed when the header is no header."""
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= len(content) - 8:
        raise LoadFailed(_worker("Error while deserializing header: header too large"))
    try:
        header = json.loads(content[8:8 + size])
        found = [tensor for name, tensor in header.items() if ".lora_B." in name]
        sides = [(_NUMBERS.get(tensor["dtype"], "u1"), tensor["data_offsets"]) for tensor in found]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoadFailed(_worker("Error while deserializing header: invalid header")) from error
    data = memoryview(content)[8 + size:]
    return any(np.abs(np.frombuffer(data[begin:end], kind)).max(initial=0) > FAINT for kind, (begin, end) in sides)


def _worker(reason: str) -> str:
    return (f"Call to add_lora method failed: Worker failed with error '{reason}', "
            "please check the stack trace above for the root cause")
