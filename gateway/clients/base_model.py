"""What a base model is, from its config.json: in a local folder, the Hugging Face cache, or the hub."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from gateway.clients.sources import in_thread
from gateway.domain.architecture import architecture_of
from gateway.domain.preflight import BaseModelFacts

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


async def base_model_facts(id_or_path: str, *, names: Sequence[str] = ()) -> BaseModelFacts | None:
    """The base model's facts, `names` being what the pool calls it (else its id or path alone).

    None when there is no config.json to be had, offline included. The cache comes before the hub: it is what the engine
    was started from.
    """
    raw = await in_thread(_read_config, id_or_path)
    if raw is None:
        return None
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    return BaseModelFacts(tuple(names) or (id_or_path,), architecture_of(config), hashlib.sha256(raw).hexdigest())


def _read_config(id_or_path: str) -> bytes | None:
    try:
        local = Path(id_or_path) / "config.json"
        if local.is_file():
            return local.read_bytes()
        if not _HUB_NAME.fullmatch(id_or_path):
            return None
        return Path(_from_hub(id_or_path)).read_bytes()
    except OSError:  # unreadable, unreachable or unknown: the hub's own errors are OSErrors too
        return None


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
        return cached if isinstance(cached, str) else str(hf_hub_download(name, "config.json", etag_timeout=5))
    except HFValidationError as error:
        raise FileNotFoundError(name) from error
