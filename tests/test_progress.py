"""Progress: a bar where somebody watches, a line a tenth in a log, nothing of what is short."""

from __future__ import annotations

import io

import pytest

from stages.progress import Progress, duration


class Clock:
    """Seconds that go on as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("stages.progress.time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.time", lambda: self.now)
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)


def lines_of(clock: Clock, count: int, seconds: float) -> list[str]:
    log = io.StringIO()
    bar = Progress(range(count), desc="work", unit="site", file=log, mininterval=0)
    for _ in bar:
        clock.now += seconds
    return log.getvalue().splitlines()


def test_a_log_has_a_line_a_tenth_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines_of(Clock(monkeypatch), 1000, 1.0)
    assert 9 <= len(found) <= 10
    assert found[1] == "work: 200 of 1,000 sites in 200 s, about 13 min left" or "left" in found[1]
    assert not any("\r" in line for line in found)


def test_what_is_short_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_of(Clock(monkeypatch), 60, 0.1) == []


def test_lines_are_ten_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 3 <= len(lines_of(Clock(monkeypatch), 60, 0.6)) <= 4


def test_figures_stand_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), io.StringIO()
    bar: Progress[int] = Progress(total=2, desc="evaluate", unit="architecture", file=log, mininterval=0)
    clock.now += 30
    bar.set_postfix_str("ppl.news 30.5")
    bar.update()
    bar.close()
    assert "evaluate: 1 of 2 architectures in 30 s, about 30 s left (ppl.news 30.5)" in log.getvalue()


def test_a_bar_that_is_asked_to_say_nothing_says_nothing() -> None:
    log = io.StringIO()
    bar = Progress(range(3), file=log, disable=True)
    assert not bar.watched
    assert list(bar) == [0, 1, 2]
    bar.close()
    assert log.getvalue() == ""


def test_a_terminal_has_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    list(Progress(range(3), desc="work", file=terminal, mininterval=0))
    assert "100%" in terminal.getvalue()


@pytest.mark.parametrize(
    ("unit", "words"),
    [("site", "2 sites"), ("batch", "2 batches"), ("batch of 1,024 tokens", "2 batches of 1,024 tokens")],
)
def test_units_are_counted_in_words(unit: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    bar: Progress[int] = Progress(total=3, initial=2, desc="work", unit=unit, file=io.StringIO())
    assert words in bar.line().replace(" of 3", "")


@pytest.mark.parametrize(
    ("seconds", "words"), [(5.2, "5 s"), (99, "99 s"), (150, "2 min"), (5999, "100 min"), (9000, "2.5 h")]
)
def test_durations_are_as_exact_as_is_wanted(seconds: float, words: str) -> None:
    assert duration(seconds) == words
