"""Problems of a data set, and their lines in a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

Item = TypeVar("Item")

#: Is told the part that is looked at, how many of its pictures have been, and how many there are.
Watch = Callable[[str, int, int], None]

#: Sentences of each kind that a printed report has; the JSON has all.
_SHOWN = 5


class Severity(Enum):
    """The consequence of a problem."""

    #: Training and evaluation end with it.
    REFUSED = "refused"
    #: It is used; the sentence says how.
    NOTED = "noted"


@dataclass(frozen=True)
class Problem:
    """Something wrong or unusual in a data set.

    Attributes:
        severity: its consequence.
        kind: a few words, by which problems are counted.
        sentence: the problem and the file.
    """

    severity: Severity
    kind: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return {"severity": self.severity.value, "kind": self.kind, "sentence": self.sentence}


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """The lines of a printed report: refused problems first, by kind, with the first few of each."""
    lines = []
    for severity in Severity:
        chosen = [problem for problem in problems if problem.severity is severity]
        for kind, count in Counter(problem.kind for problem in chosen).items():
            lines.append(f"  {severity.value}: {kind}, {count} times")
            shown = [problem for problem in chosen if problem.kind == kind][:_SHOWN]
            lines += [f"    {problem}" for problem in shown]
            if count > len(shown):
                lines.append(f"    and {count - len(shown)} more")
    return lines


def refused(problems: Iterable[Problem]) -> int:
    """Number of problems that stop training and evaluation."""
    return sum(problem.severity is Severity.REFUSED for problem in problems)


def watched(items: Sequence[Item], part: str, watch: Watch | None) -> Iterator[Item]:
    """Iterate over the pictures of a part, and call ``watch``, if given, with the progress."""
    for number, item in enumerate(items, 1):
        yield item
        if watch is not None:
            watch(part, number, len(items))
