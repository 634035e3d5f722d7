"""What is known and what is left to do, worked out from the conversation alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from workflows.engine.tools import markdown

from . import steps
from .conversation import Block, Conversation, tool_of
from .data import TableProfile, focus_of, names_rows, parse_profile, words
from .steps import Step, Subject


@dataclass(frozen=True)
class Analysis:
    """A conversation with the conclusions that the manager draws from it. Holds no other state."""

    conversation: Conversation

    @cached_property
    def profiles(self) -> list[TableProfile]:
        (block,) = steps.profile().blocks
        return parse_profile(self.conversation.results.get(block.key, ""))

    @cached_property
    def subject(self) -> Subject | None:
        """The table that the task is about, and its rows in focus; None before it is known."""
        if not self.profiles:
            return None
        table = max(self.profiles, key=self._fitness)
        focus = focus_of(
            table, self.conversation.task, self.conversation.instructions, self._looked_up(table)
        )
        return Subject(table=table, focus=focus)

    @cached_property
    def steps(self) -> list[Step]:
        """All steps in order, as far as they can be foreseen; those done are among them."""
        found: list[Step] = []
        if self.tables:
            found += [steps.profile(), *self._table_steps()]
        if names := [file.name for file in self.conversation.texts]:
            found += steps.of_texts(names, self.conversation.task, self.conversation.instructions)
        return found

    @property
    def tables(self) -> list[str]:
        return [file.table for file in self.conversation.files if file.table]

    @cached_property
    def pending(self) -> list[tuple[Step, list[Block]]]:
        """Steps with blocks that nobody was asked for yet and that somebody has the tool for."""
        left = []
        for step in self.steps:
            blocks = [block for block in step.blocks if self._is_open(block)]
            if blocks:
                left.append((step, blocks))
        return left

    def result(self, block: Block) -> str:
        """What came of a block; "" when it was not done or went wrong."""
        found = self.conversation.results.get(block.key, "")
        return "" if found.startswith("Error") else found

    def table_of(self, block: Block) -> markdown.Table | None:
        return markdown.parse(self.result(block))

    def agent_for(self, step: Step, block: Block) -> str:
        agents = self.conversation.agents_with(tool_of(block))
        return agents[-1 if step.prefers_last else 0]

    @cached_property
    def failures(self) -> list[tuple[Block, str]]:
        """Blocks that were tried in vain, with the first line of the reason."""
        asked = {block.key: block for step in self.steps for block in step.blocks}
        return [
            (asked[key], result.partition("\n")[0])
            for key, result in self.conversation.results.items()
            if key in asked and result.startswith("Error")
        ]

    @property
    def is_empty(self) -> bool:
        """Whether the focus is known to hold no row at all."""
        if self.subject is None:
            return False
        counted = self.table_of(steps.totals(self.subject).blocks[0])
        return bool(counted and counted.rows and counted.rows[0][0] == "0")

    def _is_open(self, block: Block) -> bool:
        has_agent = bool(self.conversation.agents_with(tool_of(block)))
        return has_agent and block.key not in self.conversation.results

    def _table_steps(self) -> list[Step]:
        if self.subject is None:
            return []
        searches = [
            step
            for instruction in self.conversation.instructions
            if (step := self._search_for(self.subject.table, instruction))
        ]
        if self.is_empty:
            return [*searches, steps.totals(self.subject)]
        others = [table for table in self.profiles if table is not self.subject.table]
        return [*searches, *steps.of_table(self.subject), *steps.of_other_tables(others)]

    def _search_for(self, table: TableProfile, instruction: str) -> Step | None:
        """A search for what the instruction names, when that is no value we know of."""
        return None if names_rows(table, instruction, ()) else steps.lookup(table, instruction)

    def _looked_up(self, table: TableProfile) -> Iterable[tuple[str, str]]:
        for instruction in self.conversation.instructions:
            step = self._search_for(table, instruction)
            found = self.table_of(step.blocks[0]) if step else None
            for row in found.rows if found else ():
                yield row[0], row[1]

    def _fitness(self, table: TableProfile) -> tuple[int, int, int, int]:
        """Named by the user, then able to answer most, then largest."""
        said = words(" ".join((self.conversation.task, *self.conversation.instructions)))
        file = next((f.name for f in self.conversation.files if f.table == table.name), "")
        is_named = table.name in said or file.lower() in self.conversation.task.lower()
        kinds = bool(table.measures) + bool(table.dimensions) + bool(table.date)
        return int(bool(file) and is_named), kinds, table.rows, len(table.columns)
