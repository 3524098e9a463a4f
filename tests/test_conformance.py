"""Every strategy that the package discovers keeps the contract."""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from math import inf, nan
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from trainpool.errors import ConfigError
from trainpool.messages import Recipe, ShardId, Update
from trainpool.strategies import AnyStrategy, Plan, Serial, build, discover
from trainpool.testing import CHECKS, CONVERGENCE, Logistic, Quadratic, check_strategy

Check = Callable[[AnyStrategy], None]


def alternatives(kind: Any, default: Any) -> list[Any]:
    """Other values of a hyper-parameter: of a choice or a switch, and anything above zero for what is off."""
    if get_origin(kind) is Literal:
        return [value for value in get_args(kind) if value != default]
    if kind is bool:
        return [not default]
    return {int: [3], float: [1e-3]}.get(kind, []) if default == 0 else []


def variants() -> Iterator[Any]:
    """Each strategy as it comes, and with one setting changed."""
    for name, kind in discover().items():
        yield pytest.param(build(name), id=name)
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            for value in alternatives(hints[field.name], field.default):
                yield pytest.param(build(name, {field.name: value}), id=f"{name}-{field.name}={value}")


def by_name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", CHECKS, ids=by_name)
@pytest.mark.parametrize("strategy", list(variants()))
def test_contract(strategy: AnyStrategy, check: Check) -> None:
    check(strategy)


@pytest.mark.parametrize("name", discover())
def test_no_setting_takes_a_number_that_is_not_finite_or_of_another_kind(name: str) -> None:
    kind, problem = discover()[name], Quadratic()
    plan = Plan.of(problem.sizes, Recipe(batch_size=8), 10)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        numeric = float in (hints[field.name], *get_args(hints[field.name]))
        for value in (nan, inf, -inf, "much") if numeric else ("much",):
            for made in (
                lambda: dataclasses.replace(build(name), **{field.name: value}).init(np.zeros(6), plan),  # noqa: B023
                lambda: build(name, {field.name: str(value)}),  # noqa: B023
            ):
                with pytest.raises(ConfigError) as error:
                    made()
                assert str(error.value).startswith(f"{name}: {field.name}: ")
                assert "\n" not in str(error.value)


@pytest.mark.parametrize("check", CONVERGENCE, ids=by_name)
@pytest.mark.parametrize("name", discover())
def test_converges_although_a_quarter_of_the_tasks_is_lost(name: str, check: Check) -> None:
    check(build(name))


@pytest.mark.parametrize("name", discover())
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_crash_at_any_event_replays_to_the_same_bits(name: str, seed: int) -> None:
    (check,) = [check for check in CHECKS if check.__name__ == "check_replay"]
    check(build(name), seed)  # type: ignore[call-arg]


def test_the_problems_optima_are_those_of_scikit_learn_and_the_normal_equations() -> None:
    problem = Logistic()
    model = LogisticRegression(C=1 / (problem.l2 * len(problem.y)), fit_intercept=False, tol=1e-10, max_iter=1000)
    np.testing.assert_allclose(model.fit(problem.x, problem.y).coef_[0], problem.optimum, atol=1e-6)
    square = Quadratic()
    np.testing.assert_allclose(square.x.T @ (square.x @ square.optimum - square.y), 0, atol=1e-11)


@pytest.mark.parametrize("problem", [Quadratic(), Logistic()], ids=["quadratic", "logistic"])
def test_the_problems_gradients_are_the_slopes_of_their_losses(problem: Quadratic | Logistic) -> None:
    w = np.linspace(-1, 1, problem.layout.size)
    _, g = problem.gradient(w, problem.x, problem.y)
    for i, direction in enumerate(np.eye(w.size) * 1e-6):
        slope = (problem.objective(w + direction) - problem.objective(w - direction)) / 2e-6
        assert slope == pytest.approx(g[i], abs=1e-7)


@dataclasses.dataclass(frozen=True)
class Broken(Serial):
    """A strategy with one fault (which inherits, as no real one should, to be short)."""

    fault: str = ""

    def init(self, parameters: np.ndarray, plan: Any) -> Any:
        state = super().init(parameters, plan)
        return msgspec.structs.replace(state, parameters=parameters) if self.fault == "shares" else state

    def wanted(self, state: Any) -> Collection[ShardId]:
        return [] if self.fault == "idle" else super().wanted(state)

    def assign(self, state: Any, shard: ShardId) -> Any:
        if self.fault == "assign":
            state.parameters[0] += 1
        return super().assign(state, shard)

    def merge(self, state: Any, shard: ShardId, update: Update) -> Any:
        if self.fault == "mutates":
            update.delta[:] *= 0.5
        result = super().merge(state, shard, update)
        match self.fault:
            case "version":
                return msgspec.structs.replace(result, version=state.version)
            case "type":
                return msgspec.structs.replace(result, parameters=result.parameters.astype(np.float64))
            case "keeps":
                return msgspec.structs.replace(result, parameters=update.delta)
            case "hides":
                merged = getattr(self, "merged", 0) + 1
                object.__setattr__(self, "merged", merged)
                result.parameters[:] *= 1 - 1e-3 * merged
        return result


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("shares", "must copy"),
        ("idle", "wants no shard"),
        ("assign", "changed the state"),
        ("mutates", "changed the update"),
        ("version", "the version did not"),
        ("type", "became float64"),
        ("keeps", "the run stopped"),
        ("hides", "outside the state"),
    ],
)
def test_a_broken_strategy_is_caught(fault: str, reason: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=reason):
        check_strategy(Broken(fault=fault))


def test_all_checks_pass_for_a_sound_one() -> None:
    check_strategy(Broken())
