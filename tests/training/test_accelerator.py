from __future__ import annotations

import pytest
import torch

from edgeai.device import CPU
from edgeai.errors import DeviceUnavailable, UsageError
from edgeai.training import accelerator


def test_cuda_asked_for_where_it_cannot_run_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceUnavailable, match="built without CUDA"):
        accelerator.choose("cuda")


def test_auto_says_why_an_nvidia_gpu_is_left_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(accelerator, "_nvidia_gpu", lambda: "GeForce 256")
    chosen = accelerator.choose("auto")
    assert chosen.device == "cpu"
    assert [notice.code for notice in chosen.notices] == ["cpu_fallback"]
    assert "GeForce 256" in chosen.notices[0].message


@pytest.mark.parametrize(("wanted", "gpu"), [("auto", None), ("cpu", "GeForce 256")])
def test_cpu_without_a_gpu_or_by_choice_needs_no_excuse(
    monkeypatch: pytest.MonkeyPatch, wanted: str, gpu: str | None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(accelerator, "_nvidia_gpu", lambda: gpu)
    assert not accelerator.choose(wanted).notices


def test_threads_are_what_affinity_and_cgroup_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the one thread of the other tests
    monkeypatch.setattr(
        accelerator, "cpu_facts", lambda: CPU(name="x", physical=8, logical=16, usable=3, quota=2.5, isa=())
    )
    assert accelerator.choose("cpu").threads == 3


def test_unknown_device_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'tpu'"):
        accelerator.choose("tpu")
