"""Features of an answer, the regression against scikit-learn, and heads that are used for the file they are of and for no other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeai.artifact import Artifact
from edgeai.engines.fake import FakeEngine
from edgeai.errors import UsageError
from edgeai.paths import home
from edgeai.routing import confidence
from edgeai.routing.confidence import (
    FEATURES,
    NOT_CALIBRATED,
    Fitted,
    Head,
    agreement,
    features,
    fit,
    fit_logistic,
    head_path,
    load_head,
    save_head,
)  # fmt: skip
from edgeai.types import TokenLogprob

HALF = math.log(0.5)


def token(logprob: float, *others: float, id_: int = 0) -> TokenLogprob:
    top = ((id_, "a", logprob), *((at, "b", other) for at, other in enumerate(others, start=1)))
    return TokenLogprob(id=id_, text="a", logprob=logprob, top=top)


# ---- features


def test_features_are_those_of_the_closed_forms() -> None:
    found = features([token(HALF, HALF), token(math.log(0.8), math.log(0.1))], "stop")
    assert tuple(found) == FEATURES
    assert found["mean"] == pytest.approx((HALF + math.log(0.8)) / 2)
    assert found["total"] == pytest.approx(2 * found["mean"])
    assert found["last"] == pytest.approx(math.log(0.8))
    assert found["least"] == found["first"] == found["low"] == pytest.approx(HALF)
    entropy = -(0.8 * math.log(0.8) + 2 * 0.1 * math.log(0.1))  # what is not among the alternatives counts as one
    assert found["entropy_first"] == pytest.approx(math.log(2))
    assert found["entropy"] == pytest.approx((math.log(2) + entropy) / 2)
    assert found["margin"] == pytest.approx((0 + math.log(8)) / 2)
    assert found["log_tokens"] == pytest.approx(math.log(2))
    assert found["stopped"] == 1.0


def test_more_alternatives_than_it_was_calibrated_with_change_nothing() -> None:
    few = [math.log(share) for share in (0.2, 0.1, 0.05, 0.05)]
    more = [*few, math.log(0.04), math.log(0.03)]
    assert features([token(HALF, *few)], "stop") == features([token(HALF, *more)], "stop")


def test_an_empty_answer_and_an_impossible_token_have_finite_features() -> None:
    for logprobs in ([], [token(-math.inf, -math.inf)]):
        assert all(map(math.isfinite, features(logprobs, "length").values()))
    assert features([], "length")["stopped"] == 0.0


def test_agreement_is_the_share_of_words_in_common() -> None:
    assert agreement("It is Paris", ["it is paris", "it is Rome"]) == pytest.approx((1 + 2 / 4) / 2)
    assert agreement("", [""]) == 1.0
    assert features([], "stop", agreed=0.25)["agreed"] == 0.25


# ---- the regression


def drawn(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Answers of which the first feature alone tells whether they are right; the log-odds are three times it."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, 3))
    return x, (draw.random(count) < 1 / (1 + np.exp(-3 * x[:, 0]))).astype(float)


@pytest.mark.parametrize("l2", [0.1, 1.0, 10.0])
def test_the_regression_is_that_of_scikit_learn(l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = drawn()
    theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=1000).fit(x, y)
    assert fit_logistic(x, y, l2) == pytest.approx([*theirs.coef_[0], theirs.intercept_[0]], abs=1e-5)


def test_a_regression_of_what_can_be_parted_stays_finite() -> None:
    x = np.array([[-1.0]] * 5 + [[1.0]] * 5)
    assert np.isfinite(fit_logistic(x, (x[:, 0] > 0).astype(float), 0.0)).all()


def test_probabilities_are_calibrated_on_answers_that_were_not_seen() -> None:
    from edgeai.routing.metrics import auroc, calibration_error

    x, y = drawn(1000)
    head = fit(x, y)
    fresh, right = drawn(2000, seed=1)
    probability = np.array([head.probability(row) for row in fresh])
    assert auroc(probability, right) > 0.9
    assert calibration_error(probability, right) < 0.04
    overconfident = np.array([replace(head, slope=5 * head.slope).probability(row) for row in fresh])
    assert calibration_error(overconfident, right) > 0.05


def test_features_that_tell_nothing_give_about_the_share_of_right_answers() -> None:
    x, _ = drawn(200)
    y = (np.random.default_rng(9).random(200) < 0.3).astype(float)
    head = fit(x, y)
    assert all(0.1 < head.probability(row) < 0.55 for row in x)
    assert head.slope >= 0


def test_a_feature_that_never_changes_has_no_weight() -> None:
    x, y = drawn()
    x[:, 2] = 7.0
    assert fit(x, y).weights[2] == pytest.approx(0.0, abs=1e-9)


def test_folds_part_all_answers_and_have_their_share_of_right_ones() -> None:
    y = np.array([1.0] * 20 + [0.0] * 40)
    parts = confidence.folds(y)
    assert sum(part.astype(int) for part in parts).tolist() == [1] * 60
    assert {int(y[part].sum()) for part in parts} == {4}


# ---- the file


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    return replace(FakeEngine().artifact, path=path, quant="Q4_K")


def head_of(artifact: Artifact) -> Head:
    fitted = Fitted((0.0,), (1.0,), (2.0,), 0.5, 1.5, -0.5)
    return Head(
        sha256=confidence.file_sha256(artifact), quant=artifact.quant, engine="fake", names=("mean",), fitted=fitted,
        settings={"samples": 2}, ability={"chat": 0.5}, counts={"chat": 40}, rows=40, made_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_a_head_is_kept_beside_its_file_and_comes_back_the_same(artifact: Artifact) -> None:
    head = head_of(artifact)
    path = save_head(head, artifact.path)
    assert path == artifact.path.with_name("m.gguf.confidence.json")
    assert load_head(artifact) == (head, str(path))
    assert load_head(artifact, engine="fake")[0] == head
    assert head.samples == 2
    assert head.probability({"mean": -0.25}) == pytest.approx(1 / (1 + math.exp(0.5)))


def test_without_a_head_the_file_is_not_even_read(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confidence, "file_sha256", lambda _: pytest.fail("the file was hashed"))
    assert load_head(artifact) == (None, NOT_CALIBRATED)


def test_other_bytes_another_quant_or_another_engine_have_no_head(artifact: Artifact) -> None:
    save_head(head_of(artifact), artifact.path)
    found, why = load_head(replace(artifact, quant="Q8_0"))
    assert found is None
    assert why.startswith(NOT_CALIBRATED)
    found, why = load_head(artifact, engine="genai")
    assert found is None
    assert why == "not calibrated for this file in genai: m.gguf.confidence.json is of fake"
    artifact.path.write_bytes(b"other weights")
    found, why = load_head(artifact)
    assert found is None
    assert why == "not calibrated for this file: m.gguf.confidence.json is of other bytes"


def test_a_hash_is_computed_once_for_a_file_as_it_is(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    first = confidence.file_sha256(artifact)
    monkeypatch.setattr("edgeai.paper.sha256_of", lambda _: "0" * 64)
    assert confidence.file_sha256(artifact) == first
    artifact.path.write_bytes(b"a longer file of weights")
    assert confidence.file_sha256(artifact) == "0" * 64


def test_the_head_of_a_folder_is_kept_elsewhere_so_that_its_proof_holds(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    artifact = replace(FakeEngine().artifact, path=folder)
    before = confidence.file_sha256(artifact)
    path = save_head(head_of(artifact), folder)
    assert head_path(folder) is None
    assert path == home() / "routing" / "confidence" / f"{before[:16]}.json"
    assert confidence.file_sha256(artifact) == before
    assert load_head(artifact)[0] == head_of(artifact)


def test_where_nothing_can_be_written_beside_the_file_it_goes_to_the_users_folder(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeai import shelf

    write = shelf.write_whole

    def refuse(path: Path, text: str) -> None:
        if path.parent == artifact.path.parent:
            raise PermissionError(13, "Permission denied")
        write(path, text)

    monkeypatch.setattr(shelf, "write_whole", refuse)
    path = save_head(head_of(artifact), artifact.path)
    assert path.is_relative_to(home())
    assert load_head(artifact)[0] == head_of(artifact)


DAMAGE: list[dict[str, Any]] = [
    {"format": 2}, {"names": ["mean", "least"]}, {"ability": {"chat": 2}}, {"fitted": {}}, {"quant": 4}, {"unknown": 1},
    {"fitted": {"means": [0], "scales": [0], "weights": [1], "bias": 0, "slope": 1, "shift": 0}},
    {"fitted": {"means": [0], "scales": [1], "weights": [math.nan], "bias": 0, "slope": 1, "shift": 0}},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_head_is_none(damage: dict[str, Any], artifact: Artifact) -> None:
    path = save_head(head_of(artifact), artifact.path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert load_head(artifact) == (None, "m.gguf.confidence.json is damaged")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_file_that_is_no_head_is_none(text: str, artifact: Artifact) -> None:
    artifact.path.with_name("m.gguf.confidence.json").write_text(text)
    assert load_head(artifact)[0] is None


def test_an_answer_that_was_not_judged_as_it_was_calibrated_is_an_error(artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="the confidence needs 'mean' of an answer"):
        head_of(artifact).probability({"least": 0.0})
