"""The plan of what lies where: it adds up, keeps to its limit, and takes the device first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.calibrate.memory import WAITING, MemoryPlan, Texts, memory_plan
from tests.small import COMMITTED, LLAMA2_7B, LLAMA31_8B, SMOLLM2

TEXTS = Texts(calibration=16384, calibration_batch=2048, measured=20000, batch=20000, predictions=8192)
GIB = 2.0**30


def plan(device_gib: float, host_gib: float = 64) -> MemoryPlan:
    return memory_plan(
        LLAMA2_7B, COMMITTED.evaluate, TEXTS, "cuda", 2, device_gib * GIB, host_gib * GIB, Path("cache")
    )


@given(device=st.floats(1, 200), host=st.floats(0, 100))
def test_what_does_not_fit_goes_to_the_host_and_what_does_not_fit_there_to_the_disk(
    device: float, host: float
) -> None:
    found = plan(device, host)
    assert found.on_device + found.in_host_memory + found.on_disk == pytest.approx(found.whitenings)
    assert min(found.on_device, found.in_host_memory, found.on_disk) >= 0
    assert found.on_device == 0 or found.needed + found.on_device <= device * GIB * (1 + 1e-9)
    assert found.in_host_memory <= host * GIB
    if found.in_host_memory:
        assert found.on_device == pytest.approx(max(0.0, device * GIB - found.needed))
    if found.on_disk > 1:
        assert found.in_host_memory == pytest.approx(host * GIB)
    room = found.room
    assert (room.device_bytes, room.host_bytes) == (int(found.on_device), int(found.host_bytes))


def test_seven_billion_parameters() -> None:
    """As measured on one H200: 36.2 GiB with nothing bounded, and all of it on the GPU."""
    found = plan(70)
    assert found.on_device == found.whitenings == 4 * 32 * (4096**2 + 11008**2)
    assert (found.needed + found.on_device) / GIB == pytest.approx(36.2, rel=0.1)
    bounded = plan(24)
    assert 0 < bounded.in_host_memory < bounded.whitenings
    assert bounded.on_disk == 0


def test_weights_of_an_architectures_own_have_room_beside_the_whitenings() -> None:
    """What solving a site and the copies in float32 take is kept free of whitenings."""
    section = COMMITTED.evaluate
    without, with_them = (
        memory_plan(LLAMA2_7B, section, TEXTS, "cuda", 2, 32 * GIB, 64 * GIB, Path("cache"), own_weights=own)
        for own in (0, 3)
    )
    outside = 2 * 32000 * 4096 * (2 + 4)
    projections = 2 * 32 * 4096 * (4096 + 11008)
    more = sum(with_them.always.values()) - sum(without.always.values())
    assert more == outside + projections
    assert with_them.phases["second repair"]["solving a site"] == 28 * 11008 * (11008 + 4096)
    assert without.on_device - with_them.on_device >= more
    assert with_them.needed + with_them.on_device <= 32 * GIB


def test_eight_billion_parameters_on_a_bounded_gpu_make_their_own_weights_in_host_memory() -> None:
    """As measured on one H200 bounded to 74 GiB: 64 GB of host memory in use; states that waited took 24."""
    texts = Texts(128 * 2048, 2048, 154_272, 65_536, 16_384)
    calibration = COMMITTED.evaluate.calibration.model_copy(update={"samples": 128, "sequence_length": 2048})
    section = COMMITTED.evaluate.model_copy(update={"calibration": calibration, "cache_mb": 4096})

    def planned(device_gib: float, cache_mb: int = 4096) -> MemoryPlan:
        asked = section.model_copy(update={"cache_mb": cache_mb})
        return memory_plan(LLAMA31_8B, asked, texts, "cuda", 2, device_gib * GIB, 200 * GIB, own_weights=3)

    tight = planned(0.9 * 74)
    assert tight.beside[WAITING] == 1.5 * 128 * 2048 * 2 * (4 * 4096 + 14336)
    assert tight.in_host_memory + sum(tight.beside.values()) == pytest.approx(60e9, rel=0.1)
    assert WAITING not in planned(0.9 * 139).beside
    together = planned(0.9 * 74, cache_mb=40_000)
    assert together.beside[WAITING] == 1.5 * 128 * 2048 * 2 * (6 * 4096 + 14336)


def test_a_chat_model_writes_within_the_plan() -> None:
    found = plan(24).phases["conversations"]
    assert found["keys and values"] == 32 * (64 + 192 + 64) * 2 * 32 * 4096 * 2
    none = COMMITTED.evaluate.calibration.model_copy(update={"conversations": 0})
    section = COMMITTED.evaluate.model_copy(update={"calibration": none})
    assert "conversations" not in memory_plan(LLAMA2_7B, section, TEXTS, "cuda", 2, GIB, 0.0).phases


def test_a_cpu_holds_the_weights_twice_and_one_kind_of_memory() -> None:
    found = memory_plan(SMOLLM2, COMMITTED.evaluate, TEXTS, "cpu", 4, 8 * GIB, 0.0, Path("cache"))
    assert found.always["weights, twice"] == 8 * SMOLLM2.total_parameters
    assert found.on_device == found.whitenings
    assert found.projections >= 4 * 30 * 576 * (576 + 1536)
