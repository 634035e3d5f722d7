from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from agent_framework import (
    AgentExecutorRequest,
    AgentResponseUpdate,
    ChatResponseUpdate,
    Content,
    InMemoryCheckpointStorage,
    Message,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
    WorkflowEvent,
    WorkflowMessage,
)
from agent_framework_orchestrations import (
    GroupChatRequestMessage,
    MagenticPlanReviewResponse,
    MagenticResetSignal,
)
from agent_framework_orchestrations._base_group_chat_orchestrator import (
    GroupChatParticipantMessage,
    GroupChatResponseMessage,
)
from asgiref.sync import sync_to_async

from checkpoints_app import store
from checkpoints_app.adapters.agent_framework import (
    DjangoCheckpointStorage,
    load_checkpoint,
    phase,
    save_checkpoint,
)
from checkpoints_app.errors import CheckpointNotFound, UnknownType, UnstorableValue
from checkpoints_app.models import Checkpoint, Chunk, MessageText

from .fakes import Script, add_with_approval, drive, team

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database_threads"),
]


class Recorder(DjangoCheckpointStorage):
    """Keeps what the framework handed over, to compare it with what comes back."""

    def __init__(self, run_id: str = "run-1") -> None:
        super().__init__(run_id)
        self.copies = InMemoryCheckpointStorage()

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        await self.copies.save(checkpoint)
        return await super().save(checkpoint)

    async def assert_all_came_back(self) -> None:
        assert self.error is None
        saved = await self.list_checkpoints(workflow_name="team")
        assert saved
        assert len(saved) == len(await self.copies.list_checkpoint_ids(workflow_name="team"))
        for checkpoint in saved:
            original = await self.copies.load(checkpoint.checkpoint_id)
            assert fields(checkpoint) == fields(original)


def fields(value: Any) -> Any:
    """Everything an object holds, as comparable data; the framework's classes lack equality."""
    if isinstance(value, dict):
        return {key: fields(item) for key, item in value.items() if key not in LEFTOVERS}
    if isinstance(value, list | tuple):
        return [fields(item) for item in value]
    if isinstance(value, WorkflowCheckpoint):
        return fields(value.to_dict())
    if type(value).__module__.startswith("agent_framework") and not isinstance(value, type):
        return type(value).__name__, fields(vars(value))
    return type(value).__name__, repr(value)


LEFTOVERS = {"raw_representation", "_response_format", "_value", "_value_parsed", "logprobs"}


@sync_to_async
def rows(run_id: str = "run-1") -> list[Checkpoint]:
    return list(Checkpoint.objects.filter(run_id=run_id).order_by("position"))


def checkpoint(data: Any = None, **options: Any) -> WorkflowCheckpoint:
    messages = {"a": [WorkflowMessage(data, source_id="a", target_id="b")]} if data else {}
    return WorkflowCheckpoint(
        workflow_name="team", graph_signature_hash="g", **{"messages": messages, **options}
    )


async def test_it_gives_back_every_checkpoint_of_a_run_with_tools():
    storage = Recorder()

    outputs, _ = await drive(team(Script(tool_user="coder"), storage), message="Analyse")

    assert outputs
    await storage.assert_all_came_back()


async def test_it_describes_each_checkpoint_of_a_run():
    await drive(team(Script(rounds=2), DjangoCheckpointStorage("run-1")), message="Analyse")

    assert [(c.phase, c.round, c.agent, c.source) for c in await rows()] == [
        ("entry", 0, "", "input"),
        ("manager_decided", 1, "researcher", "loop"),
        ("agent_replied", 1, "researcher", "loop"),
        ("manager_decided", 2, "coder", "loop"),
        ("agent_replied", 2, "coder", "loop"),
        ("final", 2, "", "loop"),
        ("final", 2, "", "loop"),
    ]


async def test_it_chains_each_checkpoint_to_the_one_before():
    await drive(team(Script(rounds=2), DjangoCheckpointStorage("run-1")), message="Analyse")

    saved = await rows()
    assert [c.parent_id for c in saved] == [None, *(c.pk for c in saved[:-1])]


@pytest.mark.parametrize("position", range(7))
async def test_it_resumes_from_any_checkpoint_to_the_same_end(position):
    first, _ = await drive(
        team(Script(rounds=2), DjangoCheckpointStorage("run-1")), message="Analyse"
    )
    chosen = (await rows())[position]
    script = Script(rounds=2)

    again, _ = await drive(
        team(script, DjangoCheckpointStorage("run-2")), checkpoint_id=str(chosen.pk)
    )

    assert again == ([] if chosen.phase == "final" else first)
    assert len(script.calls) == [8, 5, 4, 3, 2, 0, 0][position]


async def test_it_waits_for_a_plan_review_and_a_tool_approval_across_restarts():
    storage = Recorder()
    script = Script(rounds=2, tool_user="researcher")

    def restarted() -> Any:
        return team(script, storage, tool=add_with_approval, enable_plan_review=True)

    async def resume(**options: Any) -> Any:
        return await drive(restarted(), checkpoint_id=str(storage.last_saved.pk), **options)

    _, requests = await drive(restarted(), message="Analyse")
    [(request_id, plan)] = requests.items()
    _, requests = await resume(responses={request_id: plan.approve()})
    [(request_id, call)] = requests.items()
    approval = call.to_function_approval_response(approved=True)
    outputs, _ = await resume(responses={request_id: approval})

    assert outputs
    await storage.assert_all_came_back()
    assert [(c.phase, c.round, c.agent) for c in await rows()] == [
        ("entry", 0, ""),
        ("awaiting_human", 0, ""),
        ("answered", 0, ""),
        ("manager_decided", 1, "researcher"),
        ("awaiting_human", 1, "researcher"),
        ("answered", 1, "researcher"),
        ("agent_replied", 1, "researcher"),
        ("final", 1, ""),
        ("final", 1, ""),
    ]


async def test_it_asks_again_after_a_restart_without_calling_a_model():
    script = Script()
    storage = DjangoCheckpointStorage("run-1")
    _, asked = await drive(team(script, storage, enable_plan_review=True), message="Analyse")
    calls = len(script.calls)

    _, again = await drive(
        team(script, storage, enable_plan_review=True), checkpoint_id=str(storage.last_saved.pk)
    )

    assert again.keys() == asked.keys()
    assert len(script.calls) == calls


async def test_it_gives_back_every_checkpoint_around_a_stall_reset():
    storage = Recorder()

    outputs, _ = await drive(
        team(Script(rounds=2, stalls=2), storage, max_stall_count=1), message="Analyse"
    )

    assert outputs
    await storage.assert_all_came_back()
    after_reset = (await rows())[3]
    assert (after_reset.phase, after_reset.round) == ("manager_decided", 3)


async def test_it_gives_back_a_plan_review_after_a_stall():
    storage = Recorder()
    workflow = team(Script(stalls=1), storage, max_stall_count=0, enable_plan_review=True)
    _, requests = await drive(workflow, message="Analyse")
    [(request_id, plan)] = requests.items()

    _, requests = await drive(workflow, responses={request_id: plan.approve()})

    [stalled] = requests.values()
    assert stalled.is_stalled
    assert stalled.current_progress
    await storage.assert_all_came_back()


async def test_it_counts_the_round_at_which_a_limit_ended_the_run():
    workflow = team(Script(rounds=9), DjangoCheckpointStorage("run-1"))
    workflow.executors["magentic_orchestrator"]._max_rounds = 2

    await drive(workflow, message="Analyse")

    last = (await rows())[-1]
    assert (last.phase, last.round) == ("final", 2)


async def test_it_stores_a_run_of_many_rounds_in_a_fraction_of_its_states():
    workflow = team(Script(rounds=30, reply_bytes=2048), DjangoCheckpointStorage("run-1"))

    await drive(workflow, message="Analyse")

    saved = await rows()
    assert len(saved) == 63
    assert sum(c.new_bytes for c in saved) < sum(c.size_bytes for c in saved) / 30
    assert max(len(c.manifest) for c in saved) < 2000


async def test_it_shares_chunks_between_a_run_and_its_fork():
    storage = DjangoCheckpointStorage("run-1")
    await drive(team(Script(reply_bytes=2048), storage), message="Analyse")
    derived = await sync_to_async(load_checkpoint)(storage.last_saved.pk)
    derived.previous_checkpoint_id, derived.checkpoint_id = derived.checkpoint_id, str(uuid.uuid4())

    saved = await sync_to_async(save_checkpoint)(derived, run_id="run-2", source="fork")

    assert (saved.source, saved.position) == ("fork", 0)
    assert str(saved.parent_id) == derived.previous_checkpoint_id
    assert saved.digest == storage.last_saved.digest
    assert saved.new_bytes == len(saved.manifest)


async def test_it_shares_nothing_mutable_between_two_loads():
    storage = DjangoCheckpointStorage("run-1")
    await drive(team(Script(rounds=2), storage), message="Analyse")
    saved = await rows()
    first, second = [await storage.load(str(saved[4].pk)) for _ in range(2)]
    before = fields(copy.deepcopy(second))

    first.state["_executor_state"]["coder"]["full_conversation"][0].contents[0].text = "changed"
    first.state["_executor_state"]["magentic_orchestrator"]["magentic_context"]["task"] = "changed"
    first.messages.clear()

    assert fields(second) == before
    assert fields(await storage.load(str(saved[4].pk))) == before


async def test_it_notices_a_message_that_was_changed_in_place():
    storage = DjangoCheckpointStorage("run-1")
    message = Message("user", ["first"], additional_properties={"count": 1})
    state = {"history": [message] * 9}
    await storage.save(checkpoint(state=state))

    message.additional_properties["count"] = True
    changed = checkpoint(state=state)
    await storage.save(changed)

    back = await storage.load(changed.checkpoint_id)
    assert back.state["history"][0].additional_properties["count"] is True


async def test_it_encodes_before_anything_else_can_run():
    storage = DjangoCheckpointStorage("run-1")
    sent = checkpoint(state={"n": 1})

    saving = asyncio.create_task(storage.save(sent))
    await asyncio.sleep(0)  # the save runs up to its first await
    sent.state["n"] = 2
    await saving

    assert (await storage.load(sent.checkpoint_id)).state == {"n": 1}


async def test_it_refuses_a_save_that_its_owner_refuses():
    def refuse(saved: Checkpoint) -> None:
        raise PermissionError(f"attempt of {saved.run_id} is over")

    storage = DjangoCheckpointStorage("run-1", on_save=refuse)

    with pytest.raises(PermissionError):
        await storage.save(checkpoint(state={"text": "long " * 100}))

    assert isinstance(storage.error, PermissionError)
    assert storage.last_saved is None
    assert await rows() == []
    assert not await sync_to_async(Chunk.objects.exists)()


def refusing_once() -> Any:
    refusals = [PermissionError("once")]

    def on_save(saved: Checkpoint) -> None:
        if refusals:
            raise refusals.pop()

    return on_save


async def test_it_remembers_an_error_that_the_framework_swallows():
    storage = DjangoCheckpointStorage("run-1", on_save=refusing_once())

    outputs, _ = await drive(team(Script(rounds=2), storage), message="Analyse")

    assert outputs
    assert isinstance(storage.error, PermissionError)


async def test_it_stores_again_what_a_refused_save_had_encoded():
    storage = DjangoCheckpointStorage("run-1", on_save=refusing_once())
    state = {"text": "long " * 100}
    with pytest.raises(PermissionError):
        await storage.save(checkpoint(state=state))

    saved = checkpoint(state=state)
    await storage.save(saved)

    assert (await storage.load(saved.checkpoint_id)).state == state


async def test_it_lists_its_own_run_in_order():
    ours, theirs = DjangoCheckpointStorage("run-1"), DjangoCheckpointStorage(uuid.uuid4())
    saved = [checkpoint(iteration_count=n) for n in (5, 3, 3)]
    for one in saved:
        await ours.save(one)
    await theirs.save(checkpoint())

    listed = await ours.list_checkpoints(workflow_name="team")
    latest = await ours.get_latest(workflow_name="team")

    assert [c.checkpoint_id for c in listed] == [c.checkpoint_id for c in saved]
    assert latest.checkpoint_id == saved[-1].checkpoint_id
    assert await ours.list_checkpoint_ids(workflow_name="other") == []
    assert await ours.get_latest(workflow_name="other") is None


async def test_it_deletes_checkpoints_of_its_own_run_alone():
    ours, theirs = DjangoCheckpointStorage("run-1"), DjangoCheckpointStorage("run-2")
    saved = checkpoint()
    await ours.save(saved)

    assert not await theirs.delete(saved.checkpoint_id)
    assert await ours.delete(saved.checkpoint_id)
    assert not await ours.delete(saved.checkpoint_id)
    assert not await ours.delete("../nowhere")


async def test_it_tells_the_framework_what_is_missing_in_its_own_words():
    storage = DjangoCheckpointStorage("run-1")

    for missing in (str(uuid.uuid4()), "../dir/file"):
        with pytest.raises(WorkflowCheckpointException, match="no checkpoint"):
            await storage.load(missing)


def test_it_says_not_found_to_services():
    with pytest.raises(CheckpointNotFound):
        load_checkpoint(uuid.uuid4())


def test_it_refuses_an_id_that_is_no_uuid():
    with pytest.raises(UnstorableValue, match="must be a UUID"):
        save_checkpoint(checkpoint(checkpoint_id="mine"), run_id="run-1", source="import")


def test_it_names_a_type_of_the_users_that_is_not_registered():
    with pytest.raises(UnknownType, match=r"SimpleNamespace.*codec\.register"):
        save_checkpoint(checkpoint(state={"mine": SimpleNamespace()}), run_id="r", source="loop")


def test_it_shows_pages_a_checkpoint_as_plain_json():
    sent = checkpoint(AgentExecutorRequest([Message("user", ["hello"])]), state={"n": (1, 2)})

    saved = save_checkpoint(sent, run_id="run-1", source="loop")

    shown = store.state(saved.pk)
    assert shown["state"] == {"n": [1, 2]}
    [message] = shown["messages"]["a"]
    assert message["data"]["messages"][0]["contents"][0]["text"] == "hello"


CALL = Content.from_function_call("call-1", "add", arguments='{"a": 1}')
IN_FLIGHT = [
    Message("assistant", [CALL], message_id="m", additional_properties={"_attribution": {"a": 1}}),
    Message("tool", [Content.from_function_result("call-1", result=[{"a": 1}])]),
    Content.from_function_approval_request("request-1", CALL),
    Content.from_function_approval_response(False, "request-1", CALL),
    Content.from_data(b"\x00\xff", "image/png"),
    Content.from_uri("https://example.org/x.png", media_type="image/png"),
    Content.from_usage({"input_token_count": 1}),
    Content.from_error(message="failed", error_code="429"),
    Content.from_text_reasoning(text="because", protected_data="sealed"),
    Content.from_hosted_file("file-1"),
    ChatResponseUpdate(contents=[CALL], role="assistant", additional_properties={}),
    AgentResponseUpdate(contents=[CALL], role="assistant", agent_id="coder"),
    GroupChatResponseMessage(Message("assistant", ["done"])),
    GroupChatRequestMessage(additional_instruction="go", metadata={"k": [1]}),
    GroupChatParticipantMessage([Message("assistant", ["for all"])]),
    MagenticPlanReviewResponse.revise("another plan"),
    MagenticResetSignal(),
    "a plain task",
    [Message("user", ["a task"])],
]


@pytest.mark.parametrize("data", IN_FLIGHT, ids=lambda data: type(data).__name__)
def test_it_gives_back_whatever_is_in_flight(data):
    sent = checkpoint(data)

    saved = save_checkpoint(sent, run_id="run-1", source="loop")

    assert fields(load_checkpoint(saved.pk)) == fields(sent)


def test_it_gives_back_a_pending_request_with_the_class_of_its_answer():
    event = WorkflowEvent.request_info("id-1", "coder", {"question": "?"}, bool)
    sent = checkpoint(pending_request_info_events={"id-1": event})

    saved = save_checkpoint(sent, run_id="run-1", source="loop")

    back = load_checkpoint(saved.pk).pending_request_info_events["id-1"]
    assert (back.request_type, back.response_type, back.data) == (dict, bool, {"question": "?"})
    assert (saved.phase, saved.agent) == ("awaiting_human", "coder")


def test_it_drops_what_a_providers_client_left_behind():
    left = SimpleNamespace()
    content = Content("text", text="t", raw_representation=left, annotations=[{"type": "citation"}])
    content.annotations[0]["raw_representation"] = left
    message = Message("user", [content], additional_properties={"logprobs": left, "kept": 1})

    saved = save_checkpoint(checkpoint(message), run_id="run-1", source="loop")

    back = load_checkpoint(saved.pk).messages["a"][0].data
    assert back.additional_properties == {"kept": 1}
    assert back.contents[0].annotations == [{"type": "citation"}]


def test_it_keeps_that_a_tool_failed_but_not_the_text_that_may_hold_secrets():
    failed = Content.from_function_result("call-1", exception="token=hunter2", result="Error")

    saved = save_checkpoint(checkpoint(failed), run_id="run-1", source="loop")

    back = load_checkpoint(saved.pk).messages["a"][0].data
    assert back.exception == failed.to_dict()["exception"]
    assert "hunter2" not in str(store.state(saved.pk))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (checkpoint(), "entry"),
        (checkpoint(iteration_count=3), "idle"),
        (checkpoint("anything", iteration_count=3), "running"),
        (checkpoint(GroupChatRequestMessage(), iteration_count=3), "manager_decided"),
    ],
)
def test_it_tells_the_phase_of_workflows_that_are_not_magentic(sent, expected):
    assert phase(sent) == expected


@sync_to_async
def said(run_id: str) -> list[tuple[int, str]]:
    """Position and text of every indexed message of a run."""
    texts = MessageText.objects.filter(checkpoint__run_id=run_id).order_by("id")
    return list(texts.values_list("checkpoint__position", "text"))


async def test_it_indexes_each_message_of_a_run_once_as_soon_as_it_is_said():
    await drive(
        team(Script(rounds=12, reply_bytes=400), DjangoCheckpointStorage("run-1")),
        message="Analyse",
    )

    found = await said("run-1")
    replies = [(position, text) for position, text in found if " says " in text]
    assert [position for position, _ in replies] == [2 * n for n in range(1, 13)]
    assert len({text for _, text in found}) == len(found)


async def test_it_indexes_nothing_twice_when_a_run_is_resumed():
    await drive(team(Script(rounds=4), DjangoCheckpointStorage("run-1")), message="Analyse")
    before = await said("run-1")
    [*_, late] = [c for c in await rows() if c.phase == "agent_replied"]

    await drive(
        team(Script(rounds=5), DjangoCheckpointStorage("run-2")), checkpoint_id=str(late.pk)
    )

    assert {text for _, text in before}.isdisjoint(text for _, text in await said("run-2"))


async def test_it_fills_in_what_the_caller_says_about_a_checkpoint():
    costs = itertools.count()
    storage = DjangoCheckpointStorage(
        "run-1",
        describe=lambda: {
            "workflow": "w-1",
            "status": "running",
            "team": "coder",
            "cost_usd": Decimal(next(costs)),
        },
    )

    await drive(team(Script(rounds=1), storage), message="Analyse")

    saved = await rows()
    assert {(c.workflow, c.status, c.team) for c in saved} == {("w-1", "running", "coder")}
    assert [c.cost_usd for c in saved] == list(range(len(saved)))
