"""The tree of prefixes gives what comparing all token lists gives; the cache reuses, keeps and evicts by it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeai.engines.llamacpp.composing import PromptPace, share_out
from edgeai.engines.llamacpp.prefix import PrefixTree
from edgeai.engines.llamacpp.speculate import Lookup, Pace

TEXTS = st.lists(st.integers(0, 2), max_size=12)


def common(first: list[int], second: list[int]) -> int:
    return next(
        (at for at, (one, two) in enumerate(zip(first, second, strict=False)) if one != two),
        min(len(first), len(second)),
    )


@given(texts=st.lists(TEXTS, max_size=6), wanted=TEXTS, limit=st.integers(0, 12))
def test_the_longest_match_is_that_of_comparing_all(texts: list[list[int]], wanted: list[int], limit: int) -> None:
    tree = PrefixTree()
    for number, text in enumerate(texts):
        tree.put(number, text)
    best = max((min(common(text, wanted), limit) for text in texts), default=0)
    found = next(iter(tree.matches(wanted, limit)), (0, set()))
    assert found[0] == best
    assert all(common(texts[number], wanted) >= found[0] for number in found[1])


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 12), max_size=6),
    gone=st.sets(st.integers(0, 5)),
)
def test_tokens_are_counted_once_however_they_came_and_went(
    texts: list[list[int]], cuts: list[int], gone: set[int]
) -> None:
    tree = PrefixTree()
    for number, text in enumerate(texts):  # a text may come in two parts, as a prompt that is read in parts does
        tree.put(number, text[: cuts[number] if number < len(cuts) else 0])
    for number, text in enumerate(texts):
        tree.put(number, text)
    for number in gone:
        tree.remove(number)
    left = [text for number, text in enumerate(texts) if number not in gone]
    assert tree.tokens() == len({tuple(text[: at + 1]) for text in left for at in range(len(text))})


@given(texts=st.lists(TEXTS, min_size=1, max_size=6), running=st.sets(st.integers(0, 5)))
def test_what_running_sequences_hold_is_not_kept(texts: list[list[int]], running: set[int]) -> None:
    tree = PrefixTree()
    for number, text in enumerate(texts):
        tree.put(number, text)
    held = {tuple(text[: at + 1]) for number, text in enumerate(texts) if number in running for at in range(len(text))}
    every = {tuple(text[: at + 1]) for text in texts for at in range(len(text))}
    assert tree.tokens(without=running) == len(every - held)


def test_a_sequence_that_another_contains_is_covered() -> None:
    tree = PrefixTree()
    tree.put(0, [1, 2])
    tree.put(1, [1, 3])
    tree.put(2, [1, 2, 4])
    assert tree.covered(2) == {0}


@given(pending=st.lists(st.integers(1, 600), max_size=9), allowance=st.integers(1, 512))
def test_a_batch_is_filled_and_the_oldest_is_never_starved(pending: list[int], allowance: int) -> None:
    shares = share_out(pending, allowance)
    assert sum(shares) == min(allowance, sum(pending))
    assert all(0 <= share <= wish for share, wish in zip(shares, pending, strict=True))
    assert not pending or shares[0] >= min(pending[0], max(1, allowance // 2))


def test_a_short_question_does_not_wait_for_a_long_one() -> None:
    assert share_out([8000, 4000, 20], 512)[2] == 20


def test_prompts_get_as_many_tokens_as_fit_into_the_stall_that_is_allowed() -> None:
    pace = PromptPace(512)
    pace.learn(512, 1.024, computed=True)  # 2 ms each
    assert [pace.allowance(answering) for answering in (1, 8, 60)] == [63, 56, 32]  # whole tiles of 64 together
    fast = PromptPace(512)
    fast.learn(512, 0.0512, computed=True)
    assert fast.allowance(8) == 512  # the batch itself ends it


def test_lookup_guesses_what_followed_the_same_tokens_before() -> None:
    lookup = Lookup()
    assert lookup.guess([1, 2, 3, 4, 5, 6, 1, 2, 3], 3) == [4, 5, 6]
    assert lookup.guess([1, 2, 3, 4, 5, 6, 1, 2, 3, 9], 3) == []


def test_guesses_become_fewer_while_they_are_wrong_and_more_while_they_are_right() -> None:
    pace = Pace(8)
    pace.learn(4, 0)
    assert pace.count == 1
    for _ in range(4):
        pace.learn(pace.count, pace.count)
    assert pace.count == 8
