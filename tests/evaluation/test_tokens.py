"""What the rows about tokens say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.tokenizer import Inexact, read_vocabulary
from edgeai.evaluation.tokens import chat_ids_row


def test_conversations_that_an_inexact_tokenizer_reads_otherwise_are_told(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    exact = read_vocabulary(checkpoint, plan_model(checkpoint).vocab_size)
    row, _ = chat_ids_row(exact, ["a"], [[1, 2]], {})
    assert not row.ok
    allowed = replace(exact, inexact=Inexact(texts=1, found={}, tokens=0.1, example="", reason=""))
    row, notices = chat_ids_row(allowed, ["a"], [[1, 2]], {})
    assert row.ok
    assert [notice.code for notice in notices] == ["tokenizer-inexact"]
