"""A prompt that was computed once, as a file: what it is of, its tokens, and the state that the native library made of them.

    magic (8) · version u32 · bytes of the header u32 · bytes of the state u64 · header (JSON) · state · sha256 of all before (32)

It appears whole or not at all, and is read with every size and the sum checked before anything in it is used.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from converters.output import OutputFile, check_name
from edgeai.errors import InvalidModel, OutputError

__all__ = ["PromptFile", "Subject", "read_prompt_file", "write_prompt_file"]

MAGIC, VERSION = b"EDGEAIps", 1
FRONT = struct.Struct("<8sIIQ")
SUM_BYTES = 32
MOST_HEADER = 1 << 26
AGAIN = "save the prompt again: Model.save_prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a state holds for; all of it must be equal where it is loaded.

    `model` and `template` are sha256 sums, `library` is that of the native libraries, `long_context` says whether rotary frequencies for
    long contexts are in use.
    """

    model: str
    template: str
    library: str
    kv_type: str
    long_context: bool

    def check(self, other: Subject, where: str) -> None:
        """Raise InvalidModel unless OTHER, read from the file WHERE, is the same."""
        for field, what in (
            ("model", "another model file"),
            ("template", "a model file with another chat template"),
            ("library", "another build of the native library"),
            ("kv_type", "a KV cache of another type"),
            ("long_context", "a context of another kind of length"),
        ):
            mine, its = getattr(self, field), getattr(other, field)
            if mine != its:
                shown = f" ({its!r}, and here it is {mine!r})" if field == "kv_type" else ""
                raise InvalidModel(f"the prompt {where} was saved with {what}{shown}", hint=AGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The contents of a file: the tokens, and the native state after the last of them."""

    subject: Subject
    tokens: tuple[int, ...]
    state: bytes


def write_prompt_file(path: Path, prompt: PromptFile) -> None:
    """Write PROMPT to PATH, whole or not at all. Raises OutputError where it cannot be written."""
    header = json.dumps({**asdict(prompt.subject), "tokens": prompt.tokens}).encode()
    front = FRONT.pack(MAGIC, VERSION, len(header), len(prompt.state))
    digest = hashlib.sha256(front)
    digest.update(header)
    digest.update(prompt.state)
    check_name(path)
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder", hint="name a file")
    with OutputFile(path) as output:
        temporary = output.temporary()
        try:
            with temporary.open("wb") as file:
                for part in (front, header, prompt.state, digest.digest()):
                    file.write(part)
        except OSError as error:
            raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
        output.commit(temporary)


def read_prompt_file(path: Path, subject: Subject, *, vocab: int, most_tokens: int) -> PromptFile:
    """Return what the file PATH holds, once its sizes, its sum and what it is of are right.

    Raises InvalidModel that says why for a file that is damaged, cut off, of another SUBJECT, of another version, with tokens beyond
    VOCAB, or with more than MOST_TOKENS.
    """
    where = repr(str(path))
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise InvalidModel(f"the prompt {where} is not a file", hint=AGAIN)
        with path.open("rb") as file:
            data = file.read(len(MAGIC))
            data += file.read() if data == MAGIC else b""  # a file of another kind may be larger than the memory
    except OSError as error:
        raise InvalidModel(f"the prompt {where} cannot be read: {error.strerror or error}", hint=AGAIN) from error
    header, state = _parts(data, where)
    try:
        said = json.loads(header)
        tokens = said.pop("tokens")
        found = Subject(**said)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"the prompt {where} has a header that is not valid", hint=AGAIN) from error
    _check_types(found, tokens, where)
    subject.check(found, where)
    if wrong := [token for token in tokens if not 0 <= token < vocab]:
        raise InvalidModel(f"the prompt {where} has the token {wrong[0]}, and the model has {vocab}", hint=AGAIN)
    if not 0 < len(tokens) <= most_tokens:
        raise InvalidModel(
            f"the prompt {where} has {len(tokens)} tokens, and {most_tokens} fit",
            hint="load the model with a larger `ctx`",
        )
    return PromptFile(subject=found, tokens=tuple(tokens), state=state)


def _parts(data: bytes, where: str) -> tuple[bytes, bytes]:
    """Return header and state of the file's DATA, both of the size and the sum that it says."""
    if not data.startswith(MAGIC) or len(data) < FRONT.size:
        raise InvalidModel(f"{where} is no saved prompt (it begins with {data[:8]!r})", hint=AGAIN)
    _, version, header_bytes, state_bytes = FRONT.unpack_from(data)
    if version != VERSION:
        raise InvalidModel(f"the prompt {where} is of version {version}, and {VERSION} can be read", hint=AGAIN)
    whole = FRONT.size + header_bytes + state_bytes + SUM_BYTES
    if header_bytes > MOST_HEADER or len(data) != whole:
        raise InvalidModel(f"the prompt {where} has {len(data)} bytes, and says it has {whole}", hint=AGAIN)
    if hashlib.sha256(memoryview(data)[:-SUM_BYTES]).digest() != data[-SUM_BYTES:]:
        raise InvalidModel(f"the prompt {where} is damaged: its sum is not that of its bytes", hint=AGAIN)
    middle = FRONT.size + header_bytes
    return data[FRONT.size : middle], data[middle:-SUM_BYTES]


def _check_types(found: Subject, tokens: Any, where: str) -> None:
    texts = all(type(getattr(found, field.name)) in (str, bool) for field in fields(found))
    if not texts or not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InvalidModel(f"the prompt {where} has a header that is not valid", hint=AGAIN)
