from __future__ import annotations

import base64
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from checkpoints_app import search
from checkpoints_app.errors import InvalidSearch
from checkpoints_app.models import Checkpoint, Chunk, MessageText

from .saving import message, save, save_line

pytestmark = pytest.mark.django_db

MANY = 100_000
START = datetime(2026, 1, 1, tzinfo=UTC)


def ids(page: search.Page) -> list[uuid.UUID]:
    return [hit.checkpoint.pk for hit in page.hits]


def all_pages(*, limit: int, **arguments: Any) -> list[search.Page]:
    pages = [search.search(limit=limit, **arguments)]
    while pages[-1].next:
        pages.append(search.search(limit=limit, after=pages[-1].next, **arguments))
    return pages


def test_it_lists_the_newest_first():
    saved = [save(created_at=START + timedelta(days=n)) for n in (1, 3, 2)]

    assert ids(search.search()) == [saved[1].pk, saved[2].pk, saved[0].pk]


def test_it_reads_no_state():
    save({"a": "long " * 1000})

    [hit] = search.search().hits

    assert {"manifest", "digest"} <= hit.checkpoint.get_deferred_fields()


def test_it_pages_through_everything_once_even_where_times_are_equal():
    saved = {save(created_at=START + timedelta(days=n // 4)).pk for n in range(10)}

    pages = all_pages(limit=3)

    assert [len(page.hits) for page in pages] == [3, 3, 3, 1]
    assert {id for page in pages for id in ids(page)} == saved


def test_it_keeps_its_place_when_newer_checkpoints_come():
    saved = [save(created_at=START + timedelta(days=n)) for n in range(4)]
    first = search.search(limit=2)

    save(created_at=START + timedelta(days=9))

    assert ids(search.search(limit=2, after=first.next)) == [saved[1].pk, saved[0].pk]


def test_it_pages_through_messages_too():
    save_line(*([message(f"word {n}") for n in range(m)] for m in range(1, 8)))

    pages = all_pages(limit=3, text="word")

    assert [len(page.hits) for page in pages] == [3, 3, 1]
    assert len({id for page in pages for id in ids(page)}) == 7


ONE = {
    "workflow": "w-1", "run_id": "r-1", "status": "failed", "phase": "agent_replied",
    "source": "fork", "agent": "coder", "team": "coder, analyst", "round": 4, "cost_usd": "0.5",
    "created_at": START, "tags": ["good", "x.y"], "name": "Before the fork", "is_pinned": True,
}  # fmt: skip
OTHER = {
    "workflow": "w-2", "run_id": "r-2", "status": "running", "phase": "final", "source": "loop",
    "agent": "", "team": "", "round": 9, "cost_usd": "7", "created_at": START + timedelta(days=9),
    "tags": ["goo"],
}  # fmt: skip
FITTING = [
    ("workflow", "w-1"), ("run", "r-1"), ("status", "failed"), ("phase", "agent_replied"),
    ("source", "fork"), ("agent", "coder"), ("team", "coder, analyst"), ("round", "4"),
    ("round", "3..4"), ("round", "..4"), ("cost", "0.5"), ("cost", "0.1..0.5"), ("cost", "..6.9"),
    ("until", "2026-01-01"), ("until", "2026-01-01T00:00Z"), ("tag", "good"), ("tag", "GOOD"),
    ("tag", "x.y"), ("name", "before"), ("pinned", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), FITTING)
def test_it_filters(key, value):
    one, _ = save(**ONE), save(**OTHER)

    assert ids(search.search({key: value})) == [one.pk]


@pytest.mark.parametrize(
    ("key", "value"), [("round", "5.."), ("cost", "1.."), ("since", "2026-01-02"), ("pinned", "no")]
)
def test_it_filters_from_the_other_end(key, value):
    _, other = save(**ONE), save(**OTHER)

    assert ids(search.search({key: value})) == [other.pk]


@pytest.mark.parametrize(("key", "value"), FITTING)
def test_it_filters_messages_by_the_same_keys(key, value):
    one = save([message("word")], **ONE)
    save([message("word")], **OTHER)

    assert ids(search.search({key: value}, text="word")) == [one.pk]


def test_it_knows_a_filter_for_every_key_it_tests():
    assert {key for key, _ in FITTING} | {"since"} == set(search.FILTERS)


def test_it_wants_all_of_several_values():
    one, _ = save(tags=["a", "b"]), save(tags=["a"])

    assert ids(search.search({"tag": ["a", "b"]})) == [one.pk]


def test_it_wants_all_of_several_filters():
    one, _ = save(agent="coder", round=1), save(agent="coder", round=2)

    assert ids(search.search({"agent": "coder", "round": "1"})) == [one.pk]


@pytest.mark.parametrize("value", ["x' OR '1'='1", "%", "_", '"]', "[]", "x\\", "'); --"])
def test_it_binds_values(value):
    save(tags=["good"], agent="coder")

    assert ids(search.search({"tag": value})) == ids(search.search({"agent": value})) == []


@pytest.mark.parametrize("key", ["manifest", "run__id", "parent__agent", "", "id' OR 1=1"])
def test_it_refuses_an_unknown_filter_and_names_the_known(key):
    with pytest.raises(InvalidSearch, match=r"no filter .*Choose workflow, run, status"):
        search.search({key: "x"})


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("phase", "asleep", "one of entry, manager_decided"),
        ("round", "-1", "a number or a range, such as 3 or 3..5"),
        ("round", "1..two", "a number or a range"),
        ("round", "9" * 30, "a number or a range"),
        ("cost", "NaN", "a number or a range"),
        ("cost", "1e999", "a number or a range"),
        ("since", "yesterday", "a date or a time, such as"),
        ("until", "2026-13-01", "month"),
        ("pinned", "maybe", "yes or no"),
        ("agent", "", "1 to 200 characters"),
        ("agent", "a\x00", "1 to 200 characters"),
        ("agent", "a" * 201, "1 to 200 characters"),
    ],
)
def test_it_refuses_a_value_that_means_nothing(key, value, hint):
    with pytest.raises(InvalidSearch, match=f"does not fit the filter {key}: .*{hint}"):
        search.search({key: value})


@pytest.mark.parametrize(
    "after",
    ["x", "é", "====", base64.b64encode(b"a|b").decode(), base64.b64encode(b"2026-01-01").decode(),
     base64.b64encode(f"2026-01-01T00:00:00|{uuid.uuid4()}".encode()).decode()],
)  # fmt: skip
def test_it_refuses_a_page_that_it_never_named(after):
    with pytest.raises(InvalidSearch, match="first page"):
        search.search(after=after)


@pytest.mark.parametrize("after", ["x", base64.b64encode(b"message|x").decode()])
def test_it_refuses_a_page_of_messages_that_it_never_named(after):
    with pytest.raises(InvalidSearch, match="first page"):
        search.search(text="word", after=after)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_it_refuses_pages_without_entries_or_without_end(limit):
    with pytest.raises(InvalidSearch, match="1 to 500"):
        search.search(limit=limit)


def test_it_shows_where_a_message_was_found():
    _, saved = save_line([], [message("EMEA leads.", author="analyst")])

    [hit] = search.search(text="emea").hits

    assert (hit.checkpoint.pk, hit.author) == (saved.pk, "analyst")
    assert hit.snippet == (("EMEA", True), (" leads.", False))


def test_it_draws_the_tree_of_one_workflow():
    origin, tip = save_line([], [], workflow="w-1")
    [fork] = save_line([], parent=origin, run_id="run-2", workflow="w-1")
    save(workflow="w-2")

    places = search.tree_of("w-1")

    assert [(place.checkpoint, place.parent, place.lane) for place in places] == [
        (origin.pk, None, 0),
        (tip.pk, origin.pk, 0),
        (fork.pk, origin.pk, 1),
    ]


def test_it_draws_the_tree_without_reading_manifests():
    save_line([], [], workflow="w-1")

    with CaptureQueriesContext(
        connection,
    ) as queries:
        search.tree_of("w-1")

    [query] = queries
    assert "manifest" not in query["sql"]


def test_it_rebuilds_the_index_out_of_the_states():
    a, b, c = (message(text) for text in ("alpha", "beta", "gamma"))
    origin, *_ = save_line([a], [a, b], [a, b, c])
    save_line([a, c], parent=origin, run_id="run-2")
    before = list(MessageText.objects.order_by("id").values_list("checkpoint", "author", "text"))
    MessageText.objects.all().delete()

    assert search.reindex() == (4, [])

    rows = MessageText.objects.order_by("id").values_list("checkpoint", "author", "text")
    assert sorted(rows) == sorted(before)


def test_it_rebuilds_the_index_of_a_line_with_gaps():
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    said = [message(word) for word in words]
    first, _, _, fourth, fifth = save_line(*(said[: n + 1] for n in range(5)))
    Checkpoint.objects.exclude(pk__in=[first.pk, fourth.pk, fifth.pk]).delete()

    search.reindex()

    found = [[row.text for row in c.message_texts.order_by("id")] for c in (first, fourth, fifth)]
    assert found == [["alpha"], ["beta", "gamma", "delta"], ["epsilon"]]


def test_it_indexes_what_came_without_a_run():
    line = save_line([message("alpha")], [message("alpha"), message("beta")])
    MessageText.objects.all().delete()

    search.index(line)

    assert [[row.text for row in c.message_texts.all()] for c in line] == [["alpha"], ["beta"]]


def test_it_rebuilds_the_index_twice_to_the_same():
    save_line([message("alpha")], [message("alpha"), message("beta")])

    search.reindex()
    search.reindex()

    assert [len(search.search(text=word).hits) for word in ("alpha", "beta")] == [1, 1]


def test_it_rebuilds_the_rest_when_a_state_cannot_be_read():
    broken, _ = save([message("alpha " * 100)]), save([message("beta")])
    Chunk.objects.all().delete()
    MessageText.objects.filter(text="beta").delete()

    assert search.reindex() == (1, [broken.pk])

    assert len(search.search(text="alpha").hits) == len(search.search(text="beta").hits) == 1


def test_it_says_how_to_switch_the_index_on(settings):
    settings.CHECKPOINT_SEARCH_INDEX = False

    with pytest.raises(InvalidSearch, match="CHECKPOINT_SEARCH_INDEX"):
        search.reindex()


@pytest.fixture
def many() -> None:
    """100,000 checkpoints, each with a message: rows alone, since no state is read."""
    sql = NUMBERS[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"""
            WITH RECURSIVE numbers(n) AS (
                SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {MANY}
            )
            INSERT INTO checkpoints_app_checkpoint (
                id, run_id, position, source, phase, superstep, round, agent, workflow, status,
                team, tags, is_pinned, manifest, digest, size_bytes, new_bytes, created_at,
                workflow_name, backend, cost_usd, name, note, is_read_only
            )
            SELECT
                {sql["id"]}, 'run-' || (n % 2000), n / 2000, 'loop', 'idle', 0, n / 4000,
                'agent-' || (n % 5), 'workflow-' || (n % 500),
                CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'running' END, 'team-' || (n % 7),
                {sql["tags"]}, n % 10000 = 1, {sql["bytes"]}, {sql["bytes"]}, 1, 1, {sql["time"]},
                '', 'database', 0, '', '', {sql["no"]}
            FROM numbers
        """)  # noqa: S608
        cursor.execute(f"""
            WITH RECURSIVE numbers(n) AS (
                SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {MANY}
            )
            INSERT INTO checkpoints_app_messagetext (checkpoint_id, author, text)
            SELECT {sql["id"]}, 'coder', 'common word' || (n % 997)
                || CASE WHEN n = 777 THEN ' needle' ELSE ' hay' END
            FROM numbers
        """)  # noqa: S608
        cursor.execute("ANALYZE")


NUMBERS = {
    "sqlite": {
        "id": "printf('%032x', n)",
        "tags": "CASE WHEN n % 10000 = 0 THEN '[\"rare\"]' ELSE '[]' END",
        "bytes": "zeroblob(200)",
        "time": "datetime('2026-01-01', '+' || n || ' seconds')",
        "no": "0",
    },
    "postgresql": {
        "id": "lpad(to_hex(n), 32, '0')::uuid",
        "tags": "CASE WHEN n % 10000 = 0 THEN '[\"rare\"]'::jsonb ELSE '[]'::jsonb END",
        "bytes": "decode(repeat('00', 200), 'hex')",
        "time": "timestamptz '2026-01-01 00:00Z' + n * interval '1 second'",
        "no": "false",
    },
}


def plan_of(**arguments: Any) -> str:
    """How the database would run the one query of a page."""
    with CaptureQueriesContext(connection) as queries:
        assert search.search(**arguments).hits
    [query] = queries
    explain = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    with connection.cursor() as cursor:
        cursor.execute(f"{explain} {query['sql']}")
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


def whole_tables(plan: str) -> list[str]:
    """What a plan reads from end to end, or sorts."""
    return re.findall(r"Seq Scan.*|Sort.*|TEMP B-TREE.*|SCAN checkpoints_app_\w+$", plan, re.M)


LATEST: list[dict[str, Any]] = [
    {},
    {"filters": {"workflow": "workflow-7"}},
    {"filters": {"status": "failed"}},
    {"filters": {"agent": "agent-3", "status": "running"}},
    {"filters": {"team": "team-3"}},
    {"filters": {"pinned": "yes"}},
    {"filters": {"since": "2026-01-01", "until": "2026-01-02"}},
]


def test_it_reads_one_page_of_a_large_table_in_order(many):
    after = search.search(limit=50).next
    searches = [*LATEST, {"after": after}, {"filters": {"agent": "agent-3"}, "after": after}]

    plans = [(arguments, plan_of(**arguments)) for arguments in searches]

    assert [(arguments, plan) for arguments, plan in plans if whole_tables(plan)] == []


def test_it_finds_words_and_tags_in_a_large_table_by_their_indexes(many):
    word, tag = plan_of(text="needle"), plan_of(filters={"tag": "rare"})

    assert "checkpoint_tagged" in tag
    assert re.search(r"messagetext_words( VIRTUAL TABLE INDEX)?", word)
    assert not re.search(r"Seq Scan|SCAN checkpoints_app_\w+$", f"{word}\n{tag}", re.M)


def test_it_finds_common_words_in_a_large_table_without_sorting_them(many):
    assert whole_tables(plan_of(text="common")) == []
