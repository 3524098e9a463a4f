"""Which method for these machines? Each is really trained under a virtual clock, with the same data, seeds and budget.

    OUT/question.json            what is asked; another question needs another folder
    OUT/data.txt                 the hashes of the data that it was asked about, and of the author's code
    OUT/trials/NAME.json         one finished trial each, so that an interrupted comparison goes on where it was
    OUT/results.json report.html the answer

Fair means: every method meets the same machines and departures, passes over the same samples equally often from the
same first parameters, and has its learning rate chosen from the same grid. The grid is run with the first seed, and
where the best rate, by time to the target and then by accuracy, is the lowest or the highest one, half or twice of it
too, at most twice each way. The best rate is also run with the other seeds. The reference is plain SGD on the fastest
machine alone, tuned in the same way.
"""

import json
import tempfile
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from trainpool import __version__, wire
from trainpool.config import source_digest
from trainpool.crew import News, crew, perform
from trainpool.errors import ConfigError, RunError
from trainpool.journal import disk
from trainpool.machines import digest
from trainpool.pools.local import cores
from trainpool.question import Experiments, Question, differences, experiments
from trainpool.results import Results, best_rate, grid
from trainpool.trial import Bench, Outcome, Trial

__all__ = ["Follower", "compare", "document", "outcomes", "read_question", "results"]

QUESTION, DATA, TRIALS, RESULTS, REPORT = "question.json", "data.txt", "trials", "results.json", "report.html"


class Follower(Protocol):
    """Follows a comparison, for the screen."""

    def tell(self, news: Trial | News | Outcome, done: int, total: int) -> None:
        """A trial begins, goes on or has ended; so many are done by now, of at least so many in all."""


def read_question(out: Path) -> Question | None:
    """The question of a folder; None where there is nothing yet.

    Raises:
        RunError: the folder holds something else.
    """
    path = out / QUESTION
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            kind = "holds a run" if (out / "config.json").exists() else "exists and holds no comparison"
            raise RunError(f"{out} {kind}: choose another folder")
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Question)
    except msgspec.MsgspecError as error:
        raise RunError(f"{path} is damaged, or of another version of trainpool: {error}") from error


def outcomes(out: Path, question: Question) -> dict[Trial, Outcome]:
    """The finished trials of a folder.

    Raises:
        RunError: a file is damaged, or answers another question.
    """
    found = {}
    for path in sorted((out / TRIALS).glob("*.json")):
        try:
            outcome = msgspec.json.decode(path.read_bytes(), type=Outcome)
        except msgspec.MsgspecError as error:
            raise RunError(f"{path} is damaged, remove it: {error}") from error
        if outcome.question != question.hash:
            raise RunError(f"{path} answers another question than {out / QUESTION} or version: remove it")
        found[outcome.trial] = outcome
    return found


def compare(
    question: Question,
    out: str | Path,
    *,
    make: Experiments | None = None,
    cache: str | Path | None = None,
    follower: Follower | None = None,
    processes: int = 0,
) -> Results:
    """Answer a question, or go on answering it.

    Args:
        question: what is asked.
        out: the comparison's folder: new, or one in which the same question was begun.
        make: model and data by seed, where they are not those that the question names; trials then run one by one.
        cache: the folder where data and shards are kept; the user's cache folder by default.
        follower: told how it goes.
        processes: how many trials run at once; 0 is one a core. It changes no result.

    Raises:
        TrainpoolError: one line that says what is wrong and what to do.
        KeyboardInterrupt: after Ctrl+C; every finished trial is kept.
    """
    from trainpool.data import default_cache
    from trainpool.report import report

    if processes < 0:
        raise ConfigError(f"processes must be 0 (one a core) or more, not {processes}")
    home = Path(out)
    check(home, question)
    place = default_cache() if cache is None else Path(cache)
    done = outcomes(home, question)
    if open_methods := [label for label in question.labels if missing(question, label, done)]:
        before = (home / DATA).read_text().splitlines() if (home / DATA).exists() else []
        check_code(question, before)
        found = rehearse(question, open_methods, make or experiments(question, place), place)
        if before and hashes(before) != hashes(found):
            raise RunError("the data have changed since the comparison began: restore them, or begin anew")
        with disk(home):
            (home / TRIALS).mkdir(parents=True, exist_ok=True)
            if not (home / QUESTION).exists():
                wire.write(home / DATA, "\n".join(found).encode())
                wire.write(home / QUESTION, msgspec.json.format(msgspec.json.encode(question), indent=2))
            for news in trials(question, done, place, make, processes, home / "trials.log"):
                if isinstance(news, Outcome):
                    done[news.trial] = news
                    wire.write(home / TRIALS / f"{news.trial.name}.json", msgspec.json.encode(news))
                if follower:
                    follower.tell(news, len(done), expected(question, done))
    answer = results(question, done)
    with disk(home):
        wire.write(home / RESULTS, json.dumps(document(question, answer, done), indent=1, sort_keys=True).encode())
        wire.write(home / REPORT, report(question, answer, done).encode())
    return answer


def trials(
    question: Question,
    done: Mapping[Trial, Outcome],
    cache: Path,
    make: Experiments | None,
    processes: int,
    log: Path,
) -> Iterator[Trial | News | Outcome]:
    """Run what is missing: each trial as it begins, news of it, and its outcome, which must be in `done` afterwards."""
    waiting = deque(trial for label in question.labels for trial in missing(question, label, done))
    begun = set(waiting)

    def ended(outcome: Outcome) -> None:
        fresh = [trial for trial in missing(question, outcome.trial.method, done) if trial not in begun]
        waiting.extend(fresh)
        begun.update(fresh)

    if make is not None:
        while waiting:
            yield (trial := waiting.popleft())
            yield (outcome := perform(question, trial, make, cache))
            ended(outcome)
        return
    # A base rate may be missing where extensions of the grid are done: what waits is then more than what is expected.
    most = max(len(waiting), expected(question, done) - len(done))
    with crew(question, cache, min(processes or cores(), most), log) as hands:
        while waiting or hands.busy:
            while waiting and hands.free:
                yield waiting[0]
                hands.start(waiting.popleft())
            for news in hands.poll(0.5):
                yield news
                if isinstance(news, Outcome):
                    ended(news)


def missing(question: Question, label: str, done: Mapping[Trial, Outcome]) -> list[Trial]:
    """A method's trials that are not done: of the grid, then of its best rate with the other seeds."""
    known = tried(question, label, done)
    rates = grid(question.rates, known, question.target)
    if more := [rate for rate in rates if rate not in known]:
        return [Trial(label, rate, question.seeds[0]) for rate in more]
    rate = best_rate(known.values(), question.target)
    rest = [Trial(label, rate, seed) for seed in question.seeds]
    return [trial for trial in rest if trial not in done]


def tried(question: Question, label: str, done: Mapping[Trial, Outcome]) -> dict[float, Outcome]:
    """A method's outcomes by learning rate, with the seed that tunes it."""
    first = question.seeds[0]
    return {trial.rate: one for trial, one in done.items() if (trial.method, trial.seed) == (label, first)}


def expected(question: Question, done: Mapping[Trial, Outcome]) -> int:
    """How many trials there will be, as far as is known: a grid may yet have to be extended."""
    total = 0
    for label in question.labels:
        known = tried(question, label, done)
        total += len({*known, *grid(question.rates, known, question.target)}) + len(question.seeds) - 1
    return total


def check(home: Path, question: Question, fields: Container[str] | None = None) -> None:
    """See that a folder is new, or that the same question was begun there.

    Args:
        home: the folder.
        question: what is asked now.
        fields: that must be the same; all, where left out.

    Raises:
        RunError: the folder holds something else, or another question.
    """
    asked = read_question(home)
    found = {} if asked is None else differences(asked, question)
    wrong = [phrase for field, phrase in found.items() if fields is None or field in fields]
    if wrong:
        raise RunError(f"{home} answers another question: {'; '.join(wrong)}. Choose another folder")


def hashes(inputs: Iterable[str]) -> list[str]:
    """Of the data, among the lines that `rehearse` returns."""
    return [line for line in inputs if "  " not in line]


def check_code(question: Question, before: Iterable[str]) -> None:
    """See that the code and the files are what they were when the question was asked, and `rehearse` returned `before`.

    Raises:
        RunError: it is not: trials of different code must not be mixed.
    """
    if question.version != __version__:
        raise RunError(f"the comparison was begun with trainpool {question.version}: go on with that, or begin anew")
    trace = question.machines.trace
    code = [(file, was) for was, _, file in (line.partition("  ") for line in before) if file]
    for file, was, now in (
        (question.experiment, question.experiment_hash, source_digest(question.experiment)),
        (trace, question.machines.trace_hash, digest(trace)),
        *((file, was, digest(file)) for file, was in code),
    ):
        if was != now:
            raise RunError(f"{file} has changed since the comparison began: restore it, or begin anew")


def rehearse(question: Question, labels: list[str], make: Experiments, cache: Path) -> list[str]:
    """See that every method can begin, so that none fails after an hour of the others; it also cuts the shards.

    Returns the hashes of the training and test data, then those of the author's files with two spaces and their names:
    they say whether a comparison goes on with the same.

    Raises:
        TrainpoolError: a method cannot, and why.
    """
    from trainpool import training

    experiment, configs = make(question.seeds[0]), {}
    samples = len(experiment.sources()[0])
    for label in dict.fromkeys([question.labels[0], *labels]):
        trial = Trial(label, question.rates[0], question.seeds[0])
        recipe = msgspec.structs.replace(question.recipe, learning_rate=trial.rate)
        with tempfile.TemporaryDirectory(prefix="trainpool-", ignore_cleanup_errors=True) as folder:
            configs[label] = training.begin(
                experiment,
                out=folder,
                strategy=question.strategy(label, samples),
                recipe=recipe,
                pool=Bench(question.fleet(trial)),
                seed=trial.seed,
                cache=cache,
                source=question.experiment,
                **question.options(label),
            ).config
    config = configs[question.labels[0]]
    if config.test is None or not config.test.classes:
        raise ConfigError("methods are compared by accuracy, but this experiment's targets are not labels")
    return [config.train.id, config.test.id, *(f"{was}  {file}" for file, was in sorted(config.code.items()))]


def results(question: Question, done: Mapping[Trial, Outcome]) -> Results:
    """The answer, from all outcomes."""
    methods = [[o for trial, o in done.items() if trial.method == label] for label in question.labels]
    return Results.of(methods, question.target, question.epochs, question.capacity, question.seeds[0])


def document(question: Question, found: Results, done: Mapping[Trial, Outcome]) -> dict[str, Any]:
    """All numbers, for `results.json`: the same question gives the same bytes."""
    from trainpool.tables import headline

    trials = []
    for trial in sorted(done, key=lambda trial: (question.labels.index(trial.method), trial.rate, trial.seed)):
        outcome = msgspec.to_builtins(done[trial])
        del outcome["timeline"], outcome["question"]
        trials.append(outcome)
    return {
        "question": msgspec.to_builtins(question),
        "hash": question.hash,
        "machines": question.machines.fleet().describe(),
        "ideal_speedup": found.capacity.ideal,
        "headline": headline(found),
        "results": msgspec.to_builtins(found),
        "trials": trials,
    }
