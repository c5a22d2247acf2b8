"""A tokenizer as a GGUF vocabulary.

Whatever has no twin in the runtime raises UnsupportedModel before any tensor is read; that the twin gives the same ids is proved in
`converters.tokenproof`.
"""

from converters.tokenizer.bytelevel import merges_reach_every_token
from converters.tokenizer.read import read_vocabulary
from converters.tokenizer.source import source_tokenizer, without_control
from converters.tokenizer.strip import plain_name
from converters.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    CUTS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Inexact,
    Vocabulary,
    add_vocabulary,
    byte_alphabet,
)

__all__ = [
    "BYTE",
    "CONTROL",
    "CUTS",
    "NORMAL",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "Inexact",
    "Vocabulary",
    "add_vocabulary",
    "byte_alphabet",
    "merges_reach_every_token",
    "plain_name",
    "read_vocabulary",
    "source_tokenizer",
    "without_control",
]
