from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_app import backends, chunks, locks, retention, store
from checkpoints_app.audit import SYSTEM
from checkpoints_app.errors import CheckpointError
from checkpoints_app.models import AuditEvent, Checkpoint, Chunk
from checkpoints_app.retention import Policy, Row, expired, prune, sweep

from .lines import save, save_line

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ONE = Policy(max_count=1)

rows = st.lists(
    st.builds(
        Row,
        id=st.uuids(),
        run_id=st.sampled_from("abc"),
        created_at=st.integers(0, 50).map(lambda days: NOW - timedelta(days=days)),
        is_held=st.booleans(),
    )
).map(lambda rows: sorted(rows, key=lambda row: row.created_at, reverse=True))
limits = st.none() | st.integers(1, 60)
policies = st.builds(Policy, max_age_days=limits, max_count=limits, max_total_bytes=limits)


def row(number: int, *, days: int = 0, run_id: str = "run-1", is_held: bool = False) -> Row:
    created_at = NOW - timedelta(days=days)
    return Row(id=UUID(int=number), run_id=run_id, created_at=created_at, is_held=is_held)


def gone(rows: list[Row], policy: Policy, **options: Any) -> list[int]:
    return [id.int for id in expired(rows, policy, NOW, **options)]


def age(*checkpoints: Checkpoint, days: int) -> None:
    pks = [checkpoint.pk for checkpoint in checkpoints]
    Checkpoint.objects.filter(pk__in=pks).update(created_at=timezone.now() - timedelta(days=days))


def kept() -> set[UUID]:
    return set(Checkpoint.objects.values_list("pk", flat=True))


def test_it_lets_old_ones_go():
    assert gone([row(1, days=29), row(2, days=31)], Policy(max_age_days=30)) == [2]


def test_it_keeps_the_newest_of_each_run():
    found = [row(1), row(2, run_id="run-2"), row(3), row(4), row(5, run_id="run-2")]

    assert gone(found, Policy(max_count=2)) == [4]


def test_it_keeps_the_newest_that_fit_and_leaves_no_holes():
    sizes = {1: 4, 2: 5, 3: 90, 4: 1}

    found = gone(
        [row(n) for n in sizes], Policy(max_total_bytes=10), weigh=lambda row: sizes[row.id.int]
    )

    assert found == [3, 4]


def test_it_counts_held_ones_before_all_others():
    found = [row(1), row(2, is_held=True)]

    assert gone(found, Policy(max_total_bytes=10), weigh=lambda row: 10) == [1]


@given(rows, policies)
def test_it_never_lets_go_of_what_is_held(rows, policy):
    found = set(expired(rows, policy, NOW, weigh=lambda row: 7))

    assert not found & {row.id for row in rows if row.is_held}


@given(rows, policies)
def test_it_leaves_what_the_policy_allows_and_not_less(rows, policy):
    found = set(expired(rows, policy, NOW, weigh=lambda row: 7))

    free = [row for row in rows if row.id not in found and not row.is_held]
    held = sum(row.is_held for row in rows)
    oldest = NOW - timedelta(days=policy.max_age_days or 1000)
    assert all(row.created_at >= oldest for row in free)
    assert not free or 7 * (held + len(free)) <= (policy.max_total_bytes or 10**9)
    assert found or all(r.created_at >= oldest for r in rows if not r.is_held)


@given(rows)
def test_it_lets_nothing_go_without_a_limit(rows):
    assert list(expired(rows, Policy(), NOW)) == []


@pytest.mark.parametrize("name", ["max_age_days", "max_count", "max_total_bytes"])
def test_it_refuses_a_policy_that_keeps_nothing(name):
    with pytest.raises(CheckpointError, match=f"{name} is 0. Set it to 1 or more"):
        Policy(**{name: 0})


@pytest.mark.parametrize(("days", "expected"), [(0, None), (30, 30)])
def test_it_reads_the_team_files_section(days, expected):
    section = SimpleNamespace(cleanup_after_days=days)

    assert retention.policy_of(section) == Policy(max_age_days=expected)


@pytest.mark.django_db
class TestPrune:
    def test_it_deletes_what_is_too_many_and_keeps_the_tip(self):
        line = save_line(4)

        report = prune(ONE, actor=SYSTEM)

        assert kept() == {line[-1].pk}
        assert (report.checkpoints, report.kept) == (3, 1)
        assert [named["position"] for named in report.named] == [0, 1, 2]

    def test_it_keeps_a_tip_of_any_age(self):
        tip = save_line(2)[-1]
        age(*Checkpoint.objects.all(), days=400)

        prune(Policy(max_age_days=30), actor=SYSTEM)

        assert kept() == {tip.pk}

    @pytest.mark.parametrize("mark", ["is_pinned", "is_read_only"])
    def test_it_keeps_what_is_marked(self, mark):
        first, _, tip = save_line(3)
        Checkpoint.objects.filter(pk=first.pk).update(**{mark: True})

        prune(ONE, actor=SYSTEM)

        assert kept() == {first.pk, tip.pk}

    def test_it_keeps_what_a_fork_stands_on(self):
        _, middle, tip = save_line(3)
        fork = save(run_id="run-2", parent=middle)

        prune(ONE, actor=SYSTEM)

        assert kept() == {middle.pk, tip.pk, fork.pk}

    @pytest.mark.parametrize("phase", ["answered", "awaiting_human"])
    def test_it_keeps_where_a_turn_that_still_runs_began(self, phase):
        _, began = save_line(2)
        asking = save(parent=began, phase=phase)

        prune(ONE, actor=SYSTEM)

        assert kept() == {began.pk, asking.pk}

    def test_it_keeps_what_is_needed_outside(self, monkeypatch):
        first, _, tip = save_line(3)
        monkeypatch.setattr(retention, "_holds", [lambda ids: {first.pk} & set(ids)])

        prune(ONE, actor=SYSTEM)

        assert kept() == {first.pk, tip.pk}

    def test_it_keeps_what_was_pinned_after_it_looked(self, monkeypatch):
        first, tip = save_line(2)
        found = retention._doom

        def pin_too_late(*args: Any) -> None:
            found(*args)
            Checkpoint.objects.filter(pk=first.pk).update(is_pinned=True)

        monkeypatch.setattr(retention, "_doom", pin_too_late)
        report = prune(ONE, actor=SYSTEM)

        assert kept() == {first.pk, tip.pk}
        assert report.checkpoints == 0

    def test_it_applies_a_workflows_own_policy_to_it_alone(self):
        save_line(3, run_id="a", workflow="one")
        save_line(3, run_id="b", workflow="two")

        prune(Policy(), by_workflow=[("one", ONE)], actor=SYSTEM)

        runs = Checkpoint.objects.values_list("run_id", flat=True)
        assert (list(runs).count("a"), list(runs).count("b")) == (1, 3)

    def test_it_keeps_to_a_total_size_exactly(self):
        save_line(6)
        limit = Chunk.objects.count() and stored_bytes() - 10

        report = prune(Policy(max_total_bytes=limit), actor=SYSTEM)

        assert report.checkpoints >= 1
        assert stored_bytes() <= limit

    def test_it_says_in_a_dry_run_exactly_what_would_happen(self):
        save_line(5)
        before = stored_bytes()

        told = prune(ONE, dry_run=True, actor=SYSTEM)

        assert (stored_bytes(), Checkpoint.objects.count()) == (before, 5)
        assert not AuditEvent.objects.exists()
        assert prune(ONE, actor=SYSTEM) == told
        assert before - stored_bytes() == told.freed_bytes > 0

    def test_it_records_what_it_deleted_and_why(self):
        first, _ = save_line(2)

        prune(ONE, actor=SYSTEM)

        entry = AuditEvent.objects.get(verb="checkpoints.prune")
        assert entry.details == {"policy": {"max_count": 1}, "count": 1, "ids": [str(first.pk)]}

    def test_it_stops_between_batches(self):
        save_line(2)

        report = prune(ONE, actor=SYSTEM, is_stopping=lambda: True)

        assert (report.checkpoints, Checkpoint.objects.count()) == (0, 2)

    def test_the_daily_clean_up_honours_both_policies(self, settings, monkeypatch):
        settings.CHECKPOINT_RETENTION = {"max_count": 2}
        monkeypatch.setattr(retention, "_policies", [lambda: [("one", ONE)]])
        save_line(3, run_id="a", workflow="one")
        save_line(3, run_id="b")

        retention.clean_up()

        runs = Checkpoint.objects.values_list("run_id", flat=True)
        assert (list(runs).count("a"), list(runs).count("b")) == (1, 2)


def stored_bytes() -> int:
    manifests = Checkpoint.objects.values_list("manifest", flat=True)
    return backends.at("database").usage().size_bytes + sum(map(len, manifests))


forests = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans(), st.integers(0, 60)),
    min_size=1,
    max_size=12,
)


@pytest.mark.django_db(transaction=True)
@settings(max_examples=25, deadline=None)
@given(forests, policies)
def test_every_checkpoint_that_is_kept_loads_bit_for_bit(forest, policy):
    saved: list[Checkpoint] = []
    try:
        for run_id, parent, is_pinned, days in forest:
            texts = [f"text {n} " * 60 for n in range(parent, len(saved) + 2)]
            stands_on = saved[parent] if parent < len(saved) else None
            saved.append(save({"said": texts}, run_id=run_id, parent=stands_on))
            Checkpoint.objects.filter(pk=saved[-1].pk).update(is_pinned=is_pinned)
            age(saved[-1], days=days)
        states = {checkpoint.pk: store.load(checkpoint.pk) for checkpoint in saved}
        must_stay = must_stay_of(saved, [is_pinned for _, _, is_pinned, _ in forest])

        prune(policy, actor=SYSTEM)

        assert must_stay <= kept()
        assert {pk: store.load(pk) for pk in kept()} == {pk: states[pk] for pk in kept()}
        assert sweep().chunks == 0
    finally:
        Checkpoint.objects.all().delete()
        Chunk.objects.all().delete()
        AuditEvent.objects.all().delete()


def must_stay_of(saved: list[Checkpoint], pins: list[bool]) -> set[UUID]:
    tips = {checkpoint.run_id: checkpoint.pk for checkpoint in saved}
    run_of = {checkpoint.pk: checkpoint.run_id for checkpoint in saved}
    parents = {c.parent_id for c in saved if c.parent_id and run_of[c.parent_id] != c.run_id}
    return {*tips.values(), *parents, *(c.pk for c, pin in zip(saved, pins, strict=True) if pin)}


@pytest.mark.django_db
class TestSweep:
    def test_it_takes_what_nothing_refers_to_and_nothing_else(self):
        line = save_line(3)
        states = [store.load(checkpoint.pk) for checkpoint in line[1:]]
        lost = b"t" + b"nobody needs it" * 99
        backends.at("database").put({chunks.digest_of(lost): chunks.seal(lost)})

        swept = sweep()

        assert (swept.chunks, swept.freed_bytes) == (1, len(chunks.seal(lost)))
        assert [store.load(checkpoint.pk) for checkpoint in line[1:]] == states

    def test_it_leaves_everything_when_it_cannot_see_all(self):
        checkpoint = save()
        save_line(2, run_id="run-2")
        digest = bytes(Chunk.objects.values_list("digest", flat=True)[0])
        backends.at("database").delete([digest])
        left = Chunk.objects.count()

        swept = sweep()

        assert "missing" in swept.skipped["database"]
        assert (Chunk.objects.count(), swept.chunks) == (left, 0)
        assert Checkpoint.objects.filter(pk=checkpoint.pk).exists()

    def test_it_does_not_touch_a_place_that_no_checkpoint_names(self, tmp_path):
        stranger = backends.at(f"file:{tmp_path}")
        stranger.put({b"d" * 32: b"of another site"})

        sweep()

        assert list(stranger.digests()) == [b"d" * 32]

    def test_it_walks_again_just_before_it_deletes(self, monkeypatch):
        (old,) = save_line(1)
        state = store.load(old.pk)
        store.delete([old.pk])
        saved: list[Checkpoint] = []
        enter = locks.sweeping

        def save_first() -> Any:
            saved.extend(save_line(1))  # finds the chunk that is about to be swept
            return enter()

        monkeypatch.setattr(locks, "sweeping", save_first)
        swept = sweep()

        assert swept.chunks == 0
        assert store.load(saved[0].pk) == state


@pytest.mark.django_db
def test_a_save_trusts_what_it_knows_only_while_its_parent_is_kept():
    first = save({"text": "long " * 99})
    split = chunks.Splitter().split({"text": "long " * 99})
    Checkpoint.objects.all().delete()
    sweep()

    entry = Checkpoint(run_id="run-1", source="loop", phase="idle", superstep=1, parent_id=first.pk)
    store.save(entry, split, added=())

    assert store.load(entry.pk) == {"text": "long " * 99}
