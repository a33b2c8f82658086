"""The operator's key: the settings', else one that is made once and kept in the state folder."""

import os
from pathlib import Path

from gateway.settings import Settings
from gateway.system import System


def find_or_make(settings: Settings, system: System) -> tuple[str, bool]:
    """The key, and whether it was made just now; safe when several processes start at once."""
    if settings.operator_key is not None:
        return settings.operator_key.get_secret_value(), False
    path = settings.operator_key_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = _write_new(path, f"sy-operator-{system.token(32)}", system)
    return path.read_text(encoding="ascii").strip(), made


def _write_new(path: Path, key: str, system: System) -> bool:
    """Put the key there in one step, unless one is there already."""
    part = path.with_name(f"{path.name}.{system.hex(4)}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(key + "\n")
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True
