"""A GPU that stays unused has a reason, and the reason has a cure; what the library runs on counts more than what the driver lists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeai.cuda import built_for, explain_error, trouble, usable_devices
from edgeai.device import CPU, GPU, Device, Memory, NativeLibrary
from edgeai.errors import DeviceUnavailable
from edgeai.native import BackendDevice
from edgeai.plan import make_plan
from edgeai.selftest import Verdict

CUDA_BUILD = "CUDA : ARCHS = 750,800,890 | USE_GRAPHS = 1 | CPU : AVX2 = 1"
CPU_BUILD = "CPU : AVX2 = 1 | REPACK = 1"
CPU_DEVICE = BackendDevice(name="CPU", description="x", kind="cpu", memory_free=0, memory_total=0)
ADA = GPU(name="RTX 4090", memory_total=24 << 30, memory_free=23 << 30, driver="580.1", compute_capability="8.9")
MAXWELL = GPU(name="GTX 970", memory_total=4 << 30, memory_free=3 << 30, driver="580.1", compute_capability="5.2")
BLACKWELL = GPU(name="RTX 5090", memory_total=32 << 30, memory_free=31 << 30, driver="580.1", compute_capability="12.0")


def of(gpu: GPU, index: int = 0) -> BackendDevice:
    return BackendDevice(
        name=f"CUDA{index}",
        description=gpu.name,
        kind="gpu",
        memory_free=gpu.memory_free,
        memory_total=gpu.memory_total,
    )


def machine(
    *devices: BackendDevice, gpus: tuple[GPU, ...] = (), features: str = CUDA_BUILD, error: str | None = None,
    failure: str | None = None, problem: str | None = None,
) -> Device:  # fmt: skip
    return Device(
        system="test", cpu=CPU(name="x", physical=4, logical=8, usable=8, quota=None, isa=()),
        memory=Memory(total=16 << 30, available=8 << 30, limit=None), gpus=gpus, gpu_problem=problem,
        library=NativeLibrary(
            path="", version="", features=features, gpu_offload=bool(devices), devices=(*devices, CPU_DEVICE),
            verdict=Verdict(extra_bufts=True), cuda_error=error, cuda_failure=failure,
        ),
    )  # fmt: skip


def reason(device: Device, **environment: str) -> str:
    found = trouble(device, environment)
    assert found is not None
    assert found.mend
    return found.reason


@pytest.mark.parametrize(
    ("features", "archs"),
    [
        (CUDA_BUILD, (75, 80, 89)),
        ("CUDA : ARCHS = 900 | CPU : AVX2 = 1", (90,)),
        ("CUDA : USE_GRAPHS = 1 | CPU : X = 1", ()),
        (CPU_BUILD, None),
        ("", None),
    ],
)
def test_what_a_build_has_kernels_for_is_read_from_its_features(features: str, archs: tuple[int, ...] | None) -> None:
    assert built_for(features) == archs


def test_a_gpu_older_than_the_build_is_no_device_and_a_newer_one_is() -> None:
    devices = (of(MAXWELL, 0), of(ADA, 1), of(BLACKWELL, 2), CPU_DEVICE)
    usable = usable_devices(devices, (ADA, MAXWELL, BLACKWELL), (75, 80, 89))
    assert [device.name for device in usable] == ["CUDA1", "CUDA2"]


def test_a_gpu_that_the_driver_does_not_describe_is_usable() -> None:
    slice_of_a_gpu = replace(of(ADA), description="NVIDIA H100 MIG 1g.10gb")
    assert machine(slice_of_a_gpu, gpus=(ADA,)).cuda_devices == (slice_of_a_gpu,)


def test_cuda_runs_where_the_management_library_is_missing() -> None:
    assert trouble(machine(of(ADA), problem="NVML Shared Library Not Found")) is None


def test_the_only_gpu_being_too_old_is_said_with_both_numbers() -> None:
    said = reason(machine(of(MAXWELL), gpus=(MAXWELL,)))
    assert "GTX 970 has compute capability 5.2" in said
    assert "built for 7.5, 8.0, 8.9" in said


def test_a_cuda_build_whose_driver_fails_is_not_called_a_cpu_build() -> None:
    # llama_supports_gpu_offload is false whenever no device is there, with CUDA built in or not
    said = reason(machine(gpus=(ADA,), error="CUDA driver version is insufficient for CUDA runtime version"))
    assert "built without CUDA" not in said
    assert "driver 580.1 is older" in said


def test_a_gpu_beside_a_cpu_build_stays_unused() -> None:
    found = trouble(machine(gpus=(ADA,), features=CPU_BUILD))
    assert found is not None
    assert found.lost
    assert "built without CUDA" in found.reason
    assert "GGML_CUDA=on" in found.mend


def test_no_gpu_and_no_build_for_one_loses_nothing() -> None:
    found = trouble(machine(features=CPU_BUILD, problem="no NVIDIA driver answers"))
    assert found is not None
    assert not found.lost


def test_a_build_for_a_gpu_without_one_is_a_loss() -> None:
    found = trouble(machine(error="no CUDA-capable device is detected"), {})
    assert found is not None
    assert found.lost


@pytest.mark.parametrize("hidden", ["", "-1", "7"])
def test_a_gpu_hidden_by_the_environment_is_said_with_the_value(hidden: str) -> None:
    device = machine(gpus=(ADA,), error="no CUDA-capable device is detected")
    assert f"CUDA_VISIBLE_DEVICES={hidden!r}" in reason(device, CUDA_VISIBLE_DEVICES=hidden)
    assert "CUDA_VISIBLE_DEVICES" not in reason(device)


def test_an_environment_that_hides_nothing_is_not_blamed_for_a_bad_driver() -> None:
    said = explain_error("unknown error", (ADA,), None, {"CUDA_VISIBLE_DEVICES": "0"}).reason
    assert "CUDA_VISIBLE_DEVICES" not in said


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("CUDA driver version is insufficient for CUDA runtime version", "update the NVIDIA driver"),
        ("CUDA-capable device(s) is/are busy or unavailable", "end that process"),
        ("initialization error", "nvidia_uvm"),
        ("unknown error", "nvidia_uvm"),
        ("system has unsupported display driver / cuda driver combination", "restart"),
        ("no CUDA-capable device is detected", "--gpus all"),
        ("out of memory", "end what uses it"),
        ("something new", "nvidia-smi"),
    ],
)
def test_every_way_that_cuda_fails_to_start_keeps_its_words_and_has_a_cure(error: str, cure: str) -> None:
    found = explain_error(error, (ADA,), None, {})
    assert error in found.reason
    assert cure in found.mend


def test_a_gpu_that_fails_its_self_test_is_not_used() -> None:
    device = machine(of(ADA), gpus=(ADA,), failure="it died with SIGABRT (CUDA error: no kernel image is available)")
    assert device.cuda_devices == ()
    assert "no kernel image" in reason(device)
    assert "RTX 4090" in reason(device)


def test_an_explicit_device_fails_with_reason_and_cure() -> None:
    from edgeai.plan import LoadOptions
    from tests.test_plan import LLAMA

    device = machine(gpus=(ADA,), error="unknown error")
    with pytest.raises(DeviceUnavailable, match="unknown error") as caught:
        make_plan(LLAMA, device, LoadOptions(device="cuda"))
    assert (caught.value.exit_code, "nvidia_uvm" in (caught.value.hint or "")) == (6, True)
    made = make_plan(LLAMA, device, LoadOptions(device="auto"))
    assert (made.device, [notice.code for notice in made.notices]) == ("cpu", ["cpu-fallback"])
