"""edgeai's own router as a subject of the fault lab."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from edgeai.chaos.answers import LOCAL_ANSWER, TOOL
from edgeai.chaos.faults import (
    ATTEMPTS, CONNECT_S, FIRST_TOKEN_S, LEAST_BYTES_S, MAX_BYTES, STALL_S,
)  # fmt: skip
from edgeai.chaos.lab import Lab
from edgeai.chaos.subject import Outcome, RouterSubject, Setting
from edgeai.config import CloudSettings, Config, LedgerSettings, PrivacySettings, RoutingSettings, Timeouts
from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import Channel, ChunkStream
from edgeai.errors import Busy, ContextExceeded, DoesNotFit, EdgeAIError, EngineCrashed, ModelNotFound
from edgeai.routing.ledger import Ledger
from edgeai.routing.local import LocalModel
from edgeai.routing.router import Router
from edgeai.routing.surroundings import Surroundings
from edgeai.types import Chunk, GenerationConfig, Message, Prompt

__all__ = ["subject"]
