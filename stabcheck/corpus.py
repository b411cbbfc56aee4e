"""The corpus: committed reproducers, each collected by pytest as a test of its own and replayed before anything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stabcheck.errors import NotAllowed, UsageError
from stabcheck.outcomes import Outcomes, Session
from stabcheck.reproducers import SCHEMA, Reproducer, kernel_of, read, trial_of
from stabcheck.targets import short
from stabcheck.trial import Tally, Trial


def is_reproducer(path: Path) -> bool:
    """Whether a file of the corpus says that it is one, of any version, or is too damaged to say."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return isinstance(data, dict) and str(data.get("schema")).startswith(SCHEMA.partition("/")[0])


class CorpusFile(pytest.File):
    """One reproducer's JSON file; a damaged one is an error of collection."""

    shared: Callable[[], Session]  # may be wrong use, which is told when the file is collected

    @classmethod
    def of(cls, parent: Any, path: Path, session: Callable[[], Session]) -> CorpusFile:
        made: CorpusFile = cls.from_parent(parent, path=path)
        made.shared = session
        return made

    def collect(self) -> Iterator[pytest.Item]:
        try:
            reproducer, session = read(self.path), self.shared()
        except UsageError as error:
            raise self.CollectError(str(error)) from None
        item: CorpusItem = CorpusItem.from_parent(self, name=reproducer.id)
        item.session_state = session
        item.reproducer, item.corpus = reproducer, reproducer.id
        yield item


class CorpusItem(Outcomes, pytest.Item):  # type: ignore[misc]  # pytest's own classes disagree on repr_failure
    """Replays one reproducer. Of a kernel that is not under test nothing is imported, and the item does not run."""

    reproducer: Reproducer
    trial: Trial | None = None

    @property
    def identity(self) -> dict[str, str]:
        r = self.reproducer
        return {"kernel": f"{r.operation}[{r.kernel}]", "property": r.property_name, "dtype": r.dtype}

    @property
    def target(self) -> str:
        return self.reproducer.target

    def tally(self) -> dict[str, Any]:
        return (self.trial.tally if self.trial else Tally()).data()

    def examine(self) -> None:
        session, recipe = self.session_state, self.reproducer.recipe
        try:
            places = [target.partition(":")[0] for target in (*session.targets, *session.adopted)]
            kernel = kernel_of(self.reproducer, places)
            self.trial = trial = trial_of(self.reproducer, kernel, session.device)
        except NotAllowed:
            pytest.skip(f"the reproducer's kernel is not under test: {self.target.partition(':')[0]} is not among the targets")
        except UsageError as error:
            pytest.fail(str(error), pytrace=False)
        if why := trial.law.why_not(kernel, session.device):
            pytest.skip(why)
        outcome = trial.examine(recipe)
        trial.tally.count(recipe, outcome)
        if not outcome.ok:
            self.found = [trial.finding(recipe, outcome).with_(files=(short(self.path),))]

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"reproducer {self.name}"
