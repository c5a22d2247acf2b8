"""Where edgeai keeps things on this machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """Return the folder of models, caches and locks: EDGEAI_HOME, or the platform's folder for user data."""
    override = os.environ.get("EDGEAI_HOME")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_path("edgeai"))
