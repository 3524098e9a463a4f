"""Fleets: their speeds, their departures, their traces, and what cannot be."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trainpool.errors import ConfigError
from trainpool.pools.availability import Availability, Pieces, Session
from trainpool.pools.fleet import Fleet, Machine, fleet
from trainpool.pools.simulated import SimulatedPool


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("spread", [1.0, 2.0, 8.0, 100.0])
def test_the_fastest_and_the_slowest_are_exactly_as_asked(n: int, spread: float) -> None:
    speeds = [machine.speed for machine in fleet(n, spread=spread, speed=1000.0).machines]
    assert max(speeds) == 1000.0
    assert max(speeds) / min(speeds) == spread
    assert len(set(speeds)) == (1 if spread == 1 else n)


def test_speeds_are_log_normal() -> None:
    logs = sorted(math.log(machine.speed) for machine in fleet(5001, spread=10).machines)
    centred = [value - statistics.fmean(logs) for value in logs]
    deviation = statistics.pstdev(centred)
    within = sum(abs(value) < deviation for value in centred) / len(centred)
    assert within == pytest.approx(0.683, abs=0.02)
    assert centred[2500] == pytest.approx(0, abs=0.05 * deviation)


def test_one_machine_has_the_speed() -> None:
    assert fleet(1, spread=8, speed=50.0).machines == (Machine(50.0),)


def test_given_speeds_are_taken() -> None:
    made = fleet(speeds=[3.0, 1.0, 2.0], bandwidth=(8.0, 80.0), latency=0.5)
    assert made.machines == tuple(Machine(speed, 8.0, 80.0, 0.5) for speed in (3.0, 1.0, 2.0))
    assert made.total == 6.0
    assert made.best == 3.0
    assert len(made) == 3


def test_a_fleet_is_the_same_every_time_and_another_with_another_seed() -> None:
    assert fleet(5, spread=4, seed=1) == fleet(5, spread=4, seed=1)
    assert fleet(5, spread=4, seed=1).machines != fleet(5, spread=4, seed=2).machines


def stays(made: Fleet, machine: int, count: int = 40) -> list[Session]:
    return list(itertools.islice(Availability(made).sessions(machine), count))


def test_departures_depend_on_the_seed_and_the_machine_alone() -> None:
    small, large = fleet(3, churn=0.3, seed=7), fleet(1000, churn=0.3, spread=9, seed=7, hidden=0.2, lost=0.1)
    shared = Availability(large)
    others = [shared.sessions(machine) for machine in range(1000)]
    for _ in range(3):
        for iterator in others[500:]:
            next(iterator)
    for machine in range(3):
        assert stays(small, machine) == list(itertools.islice(others[machine], 40))
    assert stays(small, 0) != stays(small, 1)
    assert stays(small, 0) != stays(dataclasses.replace(small, seed=8), 0)


def test_the_part_away_the_length_of_stays_and_the_part_of_crashes_are_as_asked() -> None:
    made = fleet(1, churn=0.25, session=20.0, crash=0.3)
    found = stays(made, 0, 20_000)
    there = [session.end - session.start for session in found]
    assert statistics.fmean(there) == pytest.approx(20.0, rel=0.03)
    assert statistics.pstdev(there) == pytest.approx(20.0, rel=0.05)  # exponential
    assert sum(there) / found[-1].end == pytest.approx(0.75, abs=0.01)
    assert statistics.fmean(session.crash for session in found) == pytest.approx(0.3, abs=0.01)
    assert all(a.end < b.start for a, b in itertools.pairwise(found))


def test_some_are_away_at_the_start() -> None:
    made = fleet(2000, churn=0.4)
    availability = Availability(made)
    begun = [next(availability.sessions(machine)).start == 0 for machine in range(2000)]
    assert statistics.fmean(begun) == pytest.approx(0.6, abs=0.04)


def test_without_churn_all_stay() -> None:
    assert stays(fleet(2), 1) == [Session(0.0, math.inf, False)]


def test_hidden_tabs_are_slower_for_the_part_asked() -> None:
    made = fleet(1, speed=100.0, hidden=0.2, slowdown=5.0)
    pieces = list(itertools.islice(Availability(made).pieces(0), 20_000))
    begin, seconds = 0.0, {100.0: 0.0, 20.0: 0.0}
    for until, speed in pieces:
        seconds[speed] += until - begin
        begin = until
    assert seconds[20.0] / sum(seconds.values()) == pytest.approx(0.2, abs=0.01)


def test_speed_is_integrated_over_its_changes() -> None:
    def changes() -> Iterator[tuple[float, float]]:
        yield 2.0, 10.0
        yield 5.0, 1.0
        yield math.inf, 4.0

    pieces = Pieces(changes())
    assert pieces.finish(0.0, 20.0) == 2.0
    assert pieces.finish(0.0, 21.0) == 3.0
    assert pieces.finish(1.0, 17.0) == 6.0
    assert pieces.done(1.0, 6.0) == 17.0
    assert pieces.done(1.0, 1.0) == 0.0
    assert pieces.finish(3.0, 1.0) == 4.0
    assert pieces.done(4.0, 5.5) == 3.0
    assert pieces.finish(100.0, 8.0) == 102.0


TRACE = """worker,time,event,value
anna,0,join,100
bert,1,speed,50
bert,1.5,join,
anna,2,speed,10
anna,4,leave,
bert,5,crash
anna,7,join,10
bert,9,join,200
"""


def trace(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_says_who_is_there_and_how_fast(tmp_path: Path) -> None:
    made = fleet(trace=trace(tmp_path, TRACE), latency=0.1)
    assert made.names == ("anna", "bert")
    assert made.machines == (Machine(100.0, latency=0.1), Machine(50.0, latency=0.1))
    assert stays(made, 0) == [Session(0.0, 4.0, False), Session(7.0, math.inf, False)]
    assert stays(made, 1) == [Session(1.5, 5.0, True), Session(9.0, math.inf, False)]
    availability = Availability(made)
    assert list(availability.pieces(0)) == [(2.0, 100.0), (math.inf, 10.0)]
    assert list(availability.pieces(1)) == [(9.0, 50.0), (math.inf, 200.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: a trace begins with the line worker,time,event,value"),
        ("worker,time\n", "line 1: a trace begins"),
        ("worker,time,event,value\n", "no worker ever joins; add a line such as w0,0,join,1000"),
        ("worker,time,event,value\na,0,speed,1\n", "no worker ever joins"),
        ("worker,time,event,value\na,0,join,1\na,1\n", "line 3: 2 columns"),
        ("worker,time,event,value\na,0,jion,1\n", "line 2: no event 'jion' .did you mean 'join'"),
        ("worker,time,event,value\na,x,join,1\n", "line 2: time and value must be numbers, not 'x'"),
        ("worker,time,event,value\na,-1,join,1\n", "line 2: time must be 0 or more seconds"),
        ("\ufeffworker,time,event,value\na,0,join,\n", "line 2: a joins without a speed"),  # as Excel saves it
        ("worker,time,event,value\na,0,join,\n", "line 2: a joins without a speed"),
        ("worker,time,event,value\na,0,join,0\n", "line 2: a speed must be above 0"),
        ("worker,time,event,value\na,0,speed,\n", "line 2: a speed must be above 0 samples a second, not nothing"),
        ("worker,time,event,value\na,0,speed,inf\n", "line 2: a speed must be above 0"),
        ("worker,time,event,value\na,0,leave,\n", "line 2: a cannot leave: it is not there"),
        ("worker,time,event,value\na,0,join,1\n\na,1,join,1\n", "line 4: a cannot join: it is there already"),
        ("worker,time,event,value\na,5,join,1\na,1,leave,\n", "line 3: time goes back from 5 to 1 for a"),
        ("worker,time,event,value\n,5,join,1\n", "line 2: the worker has no name"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = trace(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        fleet(trace=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.csv cannot be read"):
        fleet(trace=tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least one machine"),
        ({"speeds": []}, "at least one machine"),
        ({"n": 3, "speeds": [1.0]}, "n is 3, but there are 1 speeds"),
        ({"n": 2, "spread": 0.5}, "1 or more, not 0.5"),
        ({"n": 2, "spread": math.nan}, "1 or more, not nan"),
        ({"n": 2, "speed": 0.0}, "above 0 samples a second"),
        ({"speeds": [1.0, -2.0]}, "above 0 samples a second and finite, not -2"),
        ({"n": 2, "bandwidth": (0.0, 5.0)}, "bandwidth must be above 0 bits a second, not 0 up and 5 down"),
        ({"n": 2, "latency": -1.0}, "latency must be 0 or more"),
        ({"n": 2, "churn": 1.0}, "churn is a part of the whole, from 0 to below 1, not 1"),
        ({"n": 2, "hidden": -0.1}, "hidden is a part"),
        ({"n": 2, "lost": 1.5}, "lost is a part"),
        ({"n": 2, "duplicated": math.nan}, "duplicated is a part"),
        ({"n": 2, "lost": 0.5, "duplicated": 0.5}, "must add up to less than 1"),
        ({"n": 2, "crash": 1.1}, "from 0 to 1, not 1.1"),
        ({"n": 2, "session": 0.0}, "above 0 and finite"),
        ({"n": 2, "slowdown": 0.5}, "slowdown must be 1 or more"),
        ({"n": 2, "bandwidth": 20e6}, "bandwidth is two numbers, bits a second up and down, not 20000000"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        fleet(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"churn": 0.1}, {"hidden": 0.1}, {"speeds": [1.0, 2.0]}, {"spread": 2.0}, {"speed": 5.0}]
)
def test_a_trace_leaves_nothing_else_to_say(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="with a trace leave out"):
        fleet(trace=trace(tmp_path, TRACE), **options)


def test_a_machine_whose_speed_changes_counts_with_the_most_that_it_ever_has(tmp_path: Path) -> None:
    rows = "a,0,join,10\nb,0,join,300\na,5,speed,500\na,9,speed,20\nb,9,speed,30\n"
    made = fleet(trace=trace(tmp_path, "worker,time,event,value\n" + rows))
    assert made.speeds == (500.0, 300.0)
    assert (made.best, made.total) == (500.0, 800.0)
    assert [made.describe()[key] for key in ("fastest", "slowest", "total")] == [500.0, 300.0, 800.0]
    assert SimulatedPool(made, fidelity="timing").conditions(50).speeds == (500.0, 300.0)


def test_a_fleet_is_described_in_json(tmp_path: Path) -> None:
    made = fleet(9, spread=3, churn=0.1, bandwidth=(1e6, math.inf))
    described = json.loads(json.dumps(made.describe(), allow_nan=False))
    assert described["machines"] == 9
    assert described["fastest"] / described["slowest"] == pytest.approx(3)
    assert (described["up"], described["down"], described["churn"]) == (1e6, None, 0.1)
    for each in (made, fleet(trace=trace(tmp_path, TRACE))):
        assert msgspec.convert(msgspec.to_builtins(each), Fleet) == each


def test_random_numbers_are_kept_for_few_blocks_and_a_machine_that_is_behind_gets_the_same() -> None:
    made = fleet(3, lost=0.1)
    together = Availability(made)
    ahead = [*itertools.islice(together.luck(0), 5000)]
    behind = [*itertools.islice(together.luck(1), 100)]
    assert max(len(kept) for kept in together.blocks.values()) == 2
    alone = Availability(made)
    assert behind == [*itertools.islice(alone.luck(1), 100)]
    assert ahead == [*itertools.islice(alone.luck(0), 5000)]
