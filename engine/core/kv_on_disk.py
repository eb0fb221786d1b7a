"""Opens the KV cache's folder for a model that is loaded, under the fingerprint of all that decides on its bits."""

from __future__ import annotations

from .. import writable
from ..config import EngineConfig
from ..generation.disk.kv_disk import KVDisk
from ..generation.disk.page_files import PageFiles
from ..generation.schedule.state_slots import StateSlots
from ..model.kv_cache import PageTable
from ..model.windows import Windows
from ..sizes import parse_kv_disk
from .fingerprint import fingerprint
from .parts import EngineParts

WHAT = "the KV cache"


def check_folder(config: EngineConfig) -> None:
    """Raises OptionError where the folder that is asked for cannot be written."""
    if config.kv_disk is not None:
        folder, _ = parse_kv_disk(str(config.kv_disk))
        error = writable.problem(folder / "probe", with_folders=True)
        if error is not None:
            raise writable.refusal(folder, WHAT, error) from error


def open_disk(parts: EngineParts, table: PageTable, states: StateSlots | None, windows: Windows) -> KVDisk | None:
    """What a model's cache has on disk; None where none is asked for. Raises OptionError."""
    if parts.config.kv_disk is None:
        return None
    folder, limit = parse_kv_disk(str(parts.config.kv_disk))
    try:
        files = PageFiles(folder, fingerprint(parts), int(limit * 1e9))
    except OSError as error:
        raise writable.refusal(folder, WHAT, error) from error
    return KVDisk(files, parts.decoder.cache, table, states, windows)
