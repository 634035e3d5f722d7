"""What a run page tells: the line a run grew along, its events as one story, its timeline.

A fork's story begins with what happened on its ancestors up to the checkpoint it grew from. All of
it is read from events, so that a page and the socket that continues it can never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from django.db.models import Q, QuerySet

from .events import FINAL_KINDS, EventKind
from .models import Event, ModelCall, Run

ENDS_STREAM = frozenset({EventKind.MESSAGE, EventKind.ANSWER, EventKind.WAITING, *FINAL_KINDS})
"""What was being written when one of these happened is written, or never will be."""

CHANGES_CONTROLS = frozenset(
    {
        *(EventKind.STARTED, EventKind.CHECKPOINT, EventKind.WAITING, EventKind.ANSWERED),
        *(EventKind.RETRYING, *FINAL_KINDS),
    }
)
"""After one of these a reader may do something else with the run than before."""

_PLAN_FOLLOWS = "Here is the plan to follow as best as possible:"  # Magentic's own words


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan event's text: the steps, and what the manager wrote before them."""

    facts: str
    steps: str

    @classmethod
    def of(cls, text: str) -> Plan:
        facts, marker, steps = text.partition(_PLAN_FOLLOWS)
        if not marker:
            return cls(facts="", steps=text)
        return cls(facts=facts.strip(), steps=steps.strip())


@dataclass(frozen=True, kw_only=True)
class Step:
    """A place on the timeline: one checkpoint, from which a new run can grow."""

    checkpoint_id: UUID | None
    run_id: UUID
    sequence: int
    phase: str
    source: str
    round: int
    agent: str
    is_inherited: bool = False
    forks: tuple[Run, ...] = ()

    @classmethod
    def of(cls, event: Event) -> Step:
        """The step that a `checkpoint` event tells of."""
        return cls(
            checkpoint_id=event.checkpoint_id,
            run_id=event.run_id,
            sequence=event.sequence,
            phase=event.data.get("phase", ""),
            source=event.data.get("source", ""),
            round=event.round,
            agent=event.agent,
        )

    @property
    def is_minor(self) -> bool:
        """True for the steps between rounds, which the timeline draws smaller."""
        return self.source != "fork" and self.phase not in {"entry", "agent_replied", "final"}

    @property
    def label(self) -> str:
        if self.source == "fork":
            return "Fork"
        names = {
            "entry": "Start",
            "agent_replied": f"Round {self.round}",
            "manager_decided": "Decision",
            "final": "Final answer",
            "awaiting_human": "Question",
        }
        return names.get(self.phase) or self.phase.replace("_", " ").capitalize()

    @property
    def place(self) -> str:
        """Where it is, as the end of a sentence: "Fork from …"."""
        if self.source == "fork":
            return "the start of this branch"
        names = {
            "entry": "the start",
            "agent_replied": f"round {self.round}",
            "manager_decided": f"the decision of round {self.round}",
            "final": "the final answer",
            "awaiting_human": f"the question in round {self.round}",
        }
        return names.get(self.phase) or f"round {self.round} ({self.phase.replace('_', ' ')})"


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One run in the drawn tree, as a template needs it to open and close nested lists.

    `opens` starts a list before it; after it, `closes` ends that many lists and their items.
    """

    run: Run
    has_forks: bool
    opens: bool
    closes: range


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the top of the page says about a run beyond its own row."""

    run: Run
    is_offline: bool
    is_cost_known: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run and the ancestors it grew from, oldest first, with all the workflow's runs."""

    run: Run
    runs: list[Run]
    ancestors: list[Run]

    @classmethod
    def of(cls, run: Run) -> Line:
        """One query. The runs share one workflow object and know their parents without asking."""
        runs = list(run.workflow.runs.order_by("number"))
        by_id = {each.id: each for each in runs}
        for each in runs:
            each.workflow = run.workflow
            each.parent = by_id.get(each.parent_id) if each.parent_id else None
        run = by_id[run.id]
        return cls(run=run, runs=runs, ancestors=list(_ancestors(run))[::-1])

    def events(self, *kinds: EventKind) -> tuple[list[Event], list[Event]]:
        """Inherited events, in the order of the story, and the run's own. Two queries at most.

        With `kinds`, only those.
        """
        wanted = Q(run=self.run)
        for run, cut in self._cuts():
            wanted |= Q(run=run, sequence__lte=cut)
        found = Event.objects.filter(wanted)
        if kinds:
            found = found.filter(kind__in=kinds)
        order = {run.id: place for place, run in enumerate([*self.ancestors, self.run])}
        events = sorted(found, key=lambda event: (order[event.run_id], event.sequence))
        line = {run.id: run for run in [*self.ancestors, self.run]}
        for event in events:
            event.run = line[event.run_id]
        inherited = [event for event in events if event.run_id != self.run.id]
        return inherited, events[len(inherited) :]

    def steps(self, events: Iterable[Event]) -> list[Step]:
        """The timeline that `events` give, each step with the runs that grew from it."""
        return [
            replace(
                Step.of(event),
                is_inherited=event.run_id != self.run.id,
                forks=tuple(run for run in self.runs if run.forked_from == event.checkpoint_id),
            )
            for event in events
            if event.kind == EventKind.CHECKPOINT
        ]

    def branches(self) -> list[Branch]:
        """The tree of all runs as a flat walk that a template can draw as nested lists."""
        children: dict[UUID | None, list[Run]] = {}
        for run in self.runs:
            children.setdefault(run.parent_id, []).append(run)
        return list(_walk(children))

    def _cuts(self) -> Iterator[tuple[Run, int]]:
        """Each ancestor with the sequence of the last event that still belongs to this line."""
        if not self.ancestors:
            return
        followers = [*self.ancestors[1:], self.run]
        saved = Event.objects.filter(
            kind=EventKind.CHECKPOINT,
            run__in=self.ancestors,
            checkpoint_id__in=[run.forked_from for run in followers],
        )
        cuts = {event.checkpoint_id: event.sequence for event in saved}
        for ancestor, follower in zip(self.ancestors, followers, strict=True):
            yield ancestor, cuts.get(follower.forked_from, 0)


def headline(run: Run) -> Headline:
    """Two queries. The cost is unknown while one call that used tokens has no known price."""
    started = run.events.filter(kind=EventKind.STARTED).order_by("-sequence").first()
    return Headline(
        run=run,
        is_offline=bool(started and started.data.get("offline")),
        is_cost_known=not unpriced_calls().filter(run=run).exists(),
    )


def unpriced_calls() -> QuerySet[ModelCall]:
    """Calls that were paid for at a price we do not know."""
    used_tokens = Q(input_tokens__gt=0) | Q(output_tokens__gt=0)
    return ModelCall.objects.filter(used_tokens, cost_usd=None)


def _ancestors(run: Run) -> Iterator[Run]:
    while run.parent is not None:
        run = run.parent
        yield run


def _walk(children: dict[UUID | None, list[Run]]) -> Iterator[Branch]:
    """Depth first without recursion: a chain of forks may be deeper than Python's stack."""
    waiting = [(run, place, 0) for place, run in enumerate(children.get(None, []))][::-1]
    while waiting:
        run, place, depth = waiting.pop()
        below = children.get(run.id, [])
        waiting += [(child, at, depth + 1) for at, child in enumerate(below)][::-1]
        next_depth = waiting[-1][2] if waiting else 0
        yield Branch(
            run=run,
            has_forks=bool(below),
            opens=depth > 0 and place == 0,
            closes=range(max(0, depth - next_depth)),
        )
