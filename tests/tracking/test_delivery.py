"""How long a stage waits for what it told a store."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from stages.tracking import delivery
from stages.tracking.delivery import Delivery
from stages.tracking.outbox import Kind, Letter


def letters(count: int) -> list[Letter]:
    return [Letter(Kind.MODEL, cast(Any, None), at) for at in range(count)]


def waited(made: Delivery, sent: list[Letter], work_s: float) -> tuple[str | None, float]:
    """The answer to the last letter, and the seconds until it came."""
    made.start()
    made.put(sent)
    start = time.monotonic()
    answer = made.answer(sent[-1], work_s)
    took = time.monotonic() - start
    made.finish(killed=True)
    return answer, took


def test_work_that_takes_its_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.1)

    def slow(_: Letter) -> str:
        time.sleep(0.6)
        return "there"

    assert waited(Delivery(slow, lambda _: None, steady=False), letters(1), work_s=30.0)[0] == "there"


def test_a_store_that_fails_has_no_work_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 11 GB may take three hours to copy; a store that takes nothing is not given them."""
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.5)
    failed: list[Exception] = []

    def broken(_: Letter) -> str:
        raise OSError("no such store")

    answer, took = waited(Delivery(broken, failed.append, steady=False), letters(20), work_s=10_000.0)
    assert answer is None
    assert failed
    assert took < 5
