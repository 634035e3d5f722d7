"""Microsoft Agent Framework on the checkpoint store. The only file of this app that knows it.

Importing this module registers the framework's types with the codec.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any, TypedDict
from uuid import UUID

from agent_framework import (
    INTERNAL_SOURCE_ID,
    AgentExecutorRequest,
    AgentExecutorResponse,
    AgentResponse,
    AgentResponseUpdate,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Message,
    Workflow,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
    WorkflowEvent,
    WorkflowEventSource,
    WorkflowMessage,
)
from agent_framework._workflows._const import EXECUTOR_STATE_KEY
from agent_framework._workflows._runner_context import MessageType
from agent_framework_orchestrations import (
    GroupChatRequestMessage,
    MagenticOrchestrator,
    MagenticPlanReviewRequest,
    MagenticPlanReviewResponse,
    MagenticProgressLedger,
    MagenticProgressLedgerItem,
    MagenticResetSignal,
)
from agent_framework_orchestrations._base_group_chat_orchestrator import (
    GroupChatParticipantMessage,
    GroupChatResponseMessage,
)

from checkpoints_app import backends, codec, store
from checkpoints_app.chunks import Split, Splitter
from checkpoints_app.codec import JSON
from checkpoints_app.errors import CheckpointError, CheckpointReadOnly, UnstorableValue
from checkpoints_app.models import Checkpoint
from checkpoints_app.threads import in_thread

logger = logging.getLogger(__name__)

_COMPARED_VERSION = re.compile(r"1\.23\.")
"""Versions whose runner `spare_copies` was compared with, by its contract test."""

ORCHESTRATOR = MagenticOrchestrator.MANAGER_NAME
"""The executor that holds Magentic's own state."""

Phase = Checkpoint.Phase


class Description(TypedDict, total=False):
    """What the index can hold about a checkpoint beyond what its state tells."""

    workflow: str
    status: str
    team: str
    cost_usd: Decimal


type Describe = Callable[[], Description]


class DjangoCheckpointStorage:
    """The framework's `CheckpointStorage` protocol, scoped to one run.

    Checkpoints are listed and counted within the run, in the order of their `position`; `load`
    takes the id of any run's checkpoint, so that a fork can start from it. Database work runs on
    the event loop's default executor. One instance serves one run of one workflow at a time.
    """

    def __init__(
        self,
        run_id: str | UUID,
        *,
        backend: str = backends.DATABASE,
        describe: Describe | None = None,
        on_save: store.OnSave | None = None,
    ) -> None:
        """Save to `backend`, an address such as `redis`; load from wherever a checkpoint lies.

        `describe` is asked before each save for what people search by; it may read the database.
        `on_save` is called inside the transaction, after the row; what it raises refuses it.
        """
        self.run_id = str(run_id)
        self.backend = backend
        self.last_saved: Checkpoint | None = None
        """The newest checkpoint saved through this instance."""
        self.error: BaseException | None = None
        """Why a save failed. The framework logs such errors and goes on, so look here; it stays."""
        self._describe = describe
        self._on_save = on_save
        self._splitter = Splitter()
        self._said: set[bytes] = set()

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        try:
            # Encode before the first await: later steps mutate what the framework handed over.
            split = self._splitter.split(_tree_of(checkpoint))
            entry = _entry_of(checkpoint, run_id=self.run_id, backend=self.backend)
            self.last_saved = await in_thread(self._write, entry, split)
        except BaseException as error:
            self._splitter = Splitter()  # what the last one remembers may not have been stored
            self.error = error
            raise
        return checkpoint.checkpoint_id

    async def load(self, checkpoint_id: str) -> WorkflowCheckpoint:
        try:
            return await in_thread(load_checkpoint, checkpoint_id)
        except CheckpointError as error:
            raise WorkflowCheckpointException(str(error)) from error

    async def list_checkpoints(self, *, workflow_name: str) -> list[WorkflowCheckpoint]:
        return [
            await self.load(id)
            for id in await self.list_checkpoint_ids(workflow_name=workflow_name)
        ]

    async def list_checkpoint_ids(self, *, workflow_name: str) -> list[str]:
        rows = self._rows(workflow_name).order_by("position").values_list("id", flat=True)
        return await in_thread(lambda: list(map(str, rows)))

    async def get_latest(self, *, workflow_name: str) -> WorkflowCheckpoint | None:
        rows = self._rows(workflow_name).order_by("-position").values_list("id", flat=True)
        latest = await in_thread(rows.first)
        return None if latest is None else await self.load(str(latest))

    async def delete(self, checkpoint_id: str) -> bool:
        """Delete a checkpoint of this run; False when the run has none with this id."""
        self._splitter = Splitter()
        return await in_thread(self._delete, checkpoint_id)

    def _write(self, entry: Checkpoint, split: Split) -> Checkpoint:
        _fill_in(entry, self._describe)
        # What the splitter and `_said` remember is the state that was cut last.
        is_next = self.last_saved is not None and self.last_saved.pk == entry.parent_id
        if not is_next:
            self._said = store.said_at(entry.parent_id)
        added = split.added if is_next else None
        return store.save(entry, split, added=added, said=self._said, on_save=self._on_save)

    def _rows(self, workflow_name: str) -> Any:  # a queryset; its type needs a database model's id
        return Checkpoint.objects.filter(run_id=self.run_id, workflow_name=workflow_name)

    def _delete(self, checkpoint_id: str) -> bool:
        try:
            entry = store.entry_of(checkpoint_id)
        except CheckpointError:
            return False
        return entry.run_id == self.run_id and store.delete([entry.pk]) == 1


def create_checkpoint_storage(
    run_id: str | UUID,
    *,
    enabled: bool = True,
    storage_type: str = backends.DATABASE,
    storage_path: str = "",
    describe: Describe | None = None,
    on_save: store.OnSave | None = None,
) -> DjangoCheckpointStorage | None:
    """The storage that a section `checkpointing` asks for; None when it wants no checkpoints.

    `storage_path` is a folder or a URL; empty, the site's settings say where. An unknown type is
    logged and gives None too. Raises BackendUnavailable for a place that cannot be used.
    """
    if not enabled:
        return None
    if storage_type not in backends.TYPES:
        logger.warning(
            "There is no storage of type %r, so no checkpoint will be saved. Choose %s.",
            storage_type,
            ", ".join(backends.TYPES),
        )
        return None
    backend = backends.address_of(storage_type, storage_path)
    return DjangoCheckpointStorage(run_id, backend=backend, describe=describe, on_save=on_save)


def spare_copies(workflow: Workflow) -> bool:
    """Keep the framework from copying the whole history before each save. Call it after build.

    The stock runner copies every executor's state twice for each executor and once more on export,
    since a storage might keep what it is handed. `DjangoCheckpointStorage` encodes it before it
    gives up control and keeps nothing, so with that storage, and no other, the copies are wasted:
    at 100 rounds they are four fifths of a superstep. What is saved is the same, byte for byte.

    Returns False and changes nothing for versions of the framework it was not compared with.
    """
    runner = workflow._runner
    state = runner.state
    if not _COMPARED_VERSION.match(version("agent-framework-core")):
        return False

    async def save_executor_states() -> None:
        saved = {id: await executor.on_checkpoint_save() for id, executor in executors.items()}
        for id, executor_state in saved.items():
            if not isinstance(executor_state, dict):
                raise WorkflowCheckpointException(f"The state of executor {id} is not a dict.")
        state._pending[EXECUTOR_STATE_KEY] = saved

    executors = runner._executors
    runner._save_executor_states = save_executor_states  # type: ignore[method-assign]
    state.export_state = lambda: dict(state._committed)  # type: ignore[method-assign]
    return True


def load_checkpoint(checkpoint_id: str | UUID) -> WorkflowCheckpoint:
    """Rebuild a checkpoint of any run, sharing nothing with any other copy of it.

    Raises CheckpointNotFound, CheckpointCorrupt, UnknownType, or CheckpointReadOnly.
    """
    entry = store.entry_of(checkpoint_id)
    if entry.is_read_only:
        raise CheckpointReadOnly(
            f"Checkpoint {entry.pk} came in a bundle that no trusted key signed, so it can be read "
            "and compared, not run. Trust the key of its site and import the bundle again."
        )
    body = codec.decode(store.load_entry(entry))
    return WorkflowCheckpoint(
        workflow_name=entry.workflow_name,
        checkpoint_id=str(entry.pk),
        previous_checkpoint_id=str(entry.parent_id) if entry.parent_id else None,
        iteration_count=entry.superstep,
        **body,
    )


def save_checkpoint(
    checkpoint: WorkflowCheckpoint,
    *,
    run_id: str | UUID,
    source: Checkpoint.Source | str,
    backend: str = backends.DATABASE,
    describe: Describe | None = None,
    on_save: store.OnSave | None = None,
) -> Checkpoint:
    """Save one checkpoint outside a running workflow: a fork's first, an imported one.

    `on_save` and the errors are those of `store.save`; UnknownType and UnstorableValue too.
    """
    split = Splitter().split(_tree_of(checkpoint))
    entry = _entry_of(checkpoint, run_id=str(run_id), backend=backend, source=source)
    _fill_in(entry, describe)
    return store.save(entry, split, on_save=on_save)


def phase(checkpoint: WorkflowCheckpoint) -> str:
    """Where between two supersteps the run stands: one of `Checkpoint.Phase`."""
    return _phase_and_agent(checkpoint)[0]


def _tree_of(checkpoint: WorkflowCheckpoint) -> JSON:
    """The checkpoint without what its index row holds."""
    return codec.encode(
        {
            "graph_signature_hash": checkpoint.graph_signature_hash,
            "timestamp": checkpoint.timestamp,
            "version": checkpoint.version,
            "metadata": checkpoint.metadata,
            "messages": checkpoint.messages,
            "pending_request_info_events": checkpoint.pending_request_info_events,
            "state": checkpoint.state,
        }
    )


def _entry_of(
    checkpoint: WorkflowCheckpoint,
    *,
    run_id: str,
    backend: str,
    source: Checkpoint.Source | str | None = None,
) -> Checkpoint:
    phase, agent = _phase_and_agent(checkpoint)
    is_input = phase == Phase.ENTRY and checkpoint.previous_checkpoint_id is None
    previous = checkpoint.previous_checkpoint_id
    return Checkpoint(
        id=_uuid(checkpoint.checkpoint_id),
        run_id=run_id,
        backend=backend,
        parent_id=None if previous is None else _uuid(previous),
        source=source or (Checkpoint.Source.INPUT if is_input else Checkpoint.Source.LOOP),
        phase=phase,
        superstep=checkpoint.iteration_count,
        round=_round(checkpoint),
        agent=agent[:100],
        workflow_name=checkpoint.workflow_name,
        created_at=datetime.fromisoformat(checkpoint.timestamp),
    )


def _fill_in(entry: Checkpoint, describe: Describe | None) -> None:
    for field, value in (describe() if describe else {}).items():
        setattr(entry, field, value)


def _uuid(checkpoint_id: str) -> UUID:
    try:
        return UUID(checkpoint_id)
    except ValueError as error:
        raise UnstorableValue(
            f"A checkpoint's id must be a UUID, which {checkpoint_id[:64]!r} is not."
        ) from error


def _phase_and_agent(checkpoint: WorkflowCheckpoint) -> tuple[Phase, str]:
    magentic = _magentic_state(checkpoint)
    if checkpoint.pending_request_info_events:
        return Phase.AWAITING_HUMAN, _asking_agent(checkpoint)
    if "magentic_context" not in magentic and (magentic or checkpoint.iteration_count == 0):
        return Phase.ENTRY, ""
    if magentic.get("terminated"):
        return Phase.FINAL, ""
    found = dict(_under_way(checkpoint))
    for candidate in (Phase.AGENT_REPLIED, Phase.MANAGER_DECIDED, Phase.ANSWERED):
        if candidate in found:
            return candidate, found[candidate]
    return (Phase.RUNNING if any(checkpoint.messages.values()) else Phase.IDLE), ""


def _under_way(checkpoint: WorkflowCheckpoint) -> Iterator[tuple[Phase, str]]:
    """What each message in flight tells, and which agent it comes from or goes to."""
    for message in (m for messages in checkpoint.messages.values() for m in messages):
        data = message.data
        if isinstance(data, AgentExecutorResponse):
            yield Phase.AGENT_REPLIED, data.executor_id
        elif isinstance(data, GroupChatResponseMessage):
            # One from the orchestrator itself carries a person's instruction, not an agent's reply.
            is_agent = message.source_id != INTERNAL_SOURCE_ID(ORCHESTRATOR)
            yield Phase.AGENT_REPLIED, message.source_id if is_agent else ""
        elif isinstance(data, GroupChatRequestMessage) or (
            isinstance(data, AgentExecutorRequest) and data.should_respond
        ):
            yield Phase.MANAGER_DECIDED, message.target_id or ""
        elif message.type == MessageType.RESPONSE:
            yield Phase.ANSWERED, _agent_name(message.target_id)


def _asking_agent(checkpoint: WorkflowCheckpoint) -> str:
    requests = checkpoint.pending_request_info_events.values()
    return next(filter(None, (_agent_name(r.source_executor_id) for r in requests)), "")


def _agent_name(executor_id: str | None) -> str:
    return "" if executor_id in (None, ORCHESTRATOR) else str(executor_id)


def _round(checkpoint: WorkflowCheckpoint) -> int:
    """The round a checkpoint belongs to.

    The engine counts a round as it starts to decide, so a final decision counted one that no agent
    took part in. At a limit it stops before counting.
    """
    magentic = _magentic_state(checkpoint)
    context = magentic.get("magentic_context") or {}
    count = int(context.get("round_count", 0))
    if not magentic.get("terminated"):
        return count
    ledger = magentic.get("progress_ledger") or {}
    is_satisfied = (ledger.get("is_request_satisfied") or {}).get("answer")
    next_agent = (ledger.get("next_speaker") or {}).get("answer")
    ended_by_manager = is_satisfied or next_agent not in context.get("participant_descriptions", {})
    return max(0, count - 1) if ended_by_manager else count


def _magentic_state(checkpoint: WorkflowCheckpoint) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint.state.get("_executor_state", {}).get(ORCHESTRATOR, {})
    return state


# What a provider's client left on an object, and classes for parsing: neither can be rebuilt, and
# nothing in a resumed run reads them.
_LEFTOVERS = {"self", "raw_representation", "value", "response_format"}


def _fields_of(cls: type) -> frozenset[str]:
    """The constructor's parameters, which the framework's value classes keep under their names."""
    return frozenset(inspect.signature(cls.__init__).parameters) - _LEFTOVERS  # type: ignore[misc]


_MESSAGE_FIELDS = _fields_of(Message)
_CONTENT_FIELDS = _fields_of(Content)


def _dump_message(message: Message) -> dict[str, Any]:
    fields = _present(message, _MESSAGE_FIELDS)
    _clean_properties(fields)
    return fields


def _dump_content(content: Content) -> dict[str, Any]:
    fields = _present(content, _CONTENT_FIELDS)
    _clean_properties(fields)
    if not fields.get("informational_only"):
        fields.pop("informational_only", None)
    if "exception" in fields:
        # The text may hold secrets. The framework's own serialisation keeps a mark that it failed.
        fields["exception"] = content.to_dict()["exception"]
    if fields.get("annotations"):
        fields["annotations"] = [
            {key: item for key, item in annotation.items() if key != "raw_representation"}
            for annotation in fields["annotations"]
        ]
    return fields


def _dump_of(cls: type) -> Callable[[Any], dict[str, Any]]:
    names = _fields_of(cls)

    def dump(value: Any) -> dict[str, Any]:
        fields = _present(value, names)
        if properties := fields.get("additional_properties"):
            fields["additional_properties"] = _storable(properties)
        return fields

    return dump


def _present(value: Any, names: frozenset[str]) -> dict[str, Any]:
    return {key: item for key, item in vars(value).items() if item is not None and key in names}


def _clean_properties(fields: dict[str, Any]) -> None:
    if properties := fields.pop("additional_properties", None):
        fields["additional_properties"] = _storable(properties)


def _storable(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Without objects of a provider's library, such as log probabilities: as `to_dict` has it."""
    return {key: item for key, item in properties.items() if _is_storable(item)}


def _is_storable(value: Any) -> bool:
    try:
        codec.encode(value)
    except CheckpointError:
        return False
    return True


def _dump_event(event: WorkflowEvent[Any]) -> dict[str, Any]:
    return {key.lstrip("_"): item for key, item in vars(event).items() if item is not None}


def _register(cls: type, dump: Callable[[Any], Mapping[str, Any]]) -> None:
    codec.register(cls, name=f"af.{cls.__name__}", dump=dump, load=lambda fields: cls(**fields))


_register(Message, _dump_message)
_register(Content, _dump_content)
_register(WorkflowEvent, _dump_event)
_register(MagenticResetSignal, vars)
for _response in (AgentResponse, AgentResponseUpdate, ChatResponse, ChatResponseUpdate):
    _register(_response, _dump_of(_response))
for _simple in (
    AgentExecutorRequest,
    AgentExecutorResponse,
    GroupChatParticipantMessage,
    GroupChatRequestMessage,
    GroupChatResponseMessage,
    MagenticPlanReviewRequest,
    MagenticPlanReviewResponse,
    MagenticProgressLedger,
    MagenticProgressLedgerItem,
    MessageType,
    WorkflowEventSource,
    WorkflowMessage,
):
    codec.register(_simple, name=f"af.{_simple.__name__}")
