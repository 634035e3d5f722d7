"""Import and decoding, fed with whatever mutations make of true data: bounded and repeatable."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints_app import bundle, chunks, codec, predecessor, store
from checkpoints_app.audit import SYSTEM
from checkpoints_app.errors import BundleRefused, CheckpointConflict, CheckpointError
from checkpoints_app.models import AuditEvent, Checkpoint

from .bundles import entries_of, exported, forget_everything, imported, packed
from .lines import save, save_line
from .values import json_values

ROUNDS = 300
DANGEROUS = ("subprocess.", "os.", "shutil.", "socket.", "ctypes.", "pty.", "import")
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and arguments[1] and set(str(arguments[1])) & set("wax+")
    if writes or event.startswith(DANGEROUS):
        _seen.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_watch)


@contextmanager
def touching_nothing() -> Iterator[None]:
    """Fail when the code within writes a file, starts a process, or imports a module."""
    global _seen
    _seen = []
    try:
        yield
        assert _seen == []
    finally:
        _seen = None


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, cut out, doubled, or put in."""
    found = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(found))
        end = start + chance.choice([1, 1, 4, 40, 512])
        change = chance.randrange(4)
        if change == 0:
            found[start] ^= 1 << chance.randrange(8)
        elif change == 1:
            del found[start:end]
        elif change == 2:
            found[start:start] = found[start:end]
        else:
            found[start:start] = chance.randbytes(chance.randrange(1, 9))
    return bytes(found)


def mutated_entry(entries: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    """One entry changed, under its true name and a true signature."""
    path = chance.choice(sorted(entries))
    data = mutated(entries[path], chance)
    if path.startswith("chunks/"):  # as whoever builds a bundle would do it
        entries = {name: found for name, found in entries.items() if name != path}
        path = f"chunks/{chunks.digest_of(data).hex()}"
    manifest = entries["manifest.json"]
    return {"manifest.json": manifest} | dict(sorted({**entries, path: data}.items()))


def mutated_row(entries: dict[str, bytes], chance: random.Random) -> dict[str, bytes]:
    """One field of one index row replaced by something else."""
    path = chance.choice([path for path in entries if path.startswith("checkpoints/")])
    row = json.loads(entries[path])
    strange = [None, "", -1, 2**64, 1.5, [], {}, [None], "\ud800", "\0", "x" * 70000, True, "é"]
    row[chance.choice(sorted(row))] = chance.choice([*strange, *row.values()])
    return entries | {path: bundle.dump(row)}


@pytest.fixture
def data() -> bytes:
    line = save_line(3)
    save({"$": "a key of the user's", "t": (1, {2}, b"x")}, run_id="run-2", parent=line[1])
    data = exported()
    forget_everything()
    return data


@pytest.mark.django_db
class TestImport:
    def check(self, data: bytes, make: Callable[[random.Random], bytes]) -> None:
        imported(data)  # imports what is imported lazily
        outcomes = set()
        for seed in range(ROUNDS):
            forget_everything()
            outcomes.add(self.outcome(make(random.Random(seed))))
        assert BundleRefused in outcomes

    def outcome(self, data: bytes) -> type[Exception] | None:
        try:
            with touching_nothing():
                imported(data)
        except (BundleRefused, CheckpointConflict) as error:
            assert not Checkpoint.objects.exists()
            return type(error)
        for entry in Checkpoint.objects.all():
            codec.plain(store.load_entry(entry))
        return None

    def test_it_survives_changed_bytes(self, data):
        self.check(data, lambda chance: mutated(data, chance))

    def test_it_survives_changed_bytes_below_the_compression(self, data):
        with zstandard.ZstdDecompressor().stream_reader(data) as stream:
            plain = stream.read()

        self.check(data, lambda chance: zstandard.compress(mutated(plain, chance)))

    def test_it_survives_changed_entries(self, data):
        entries = entries_of(data)

        self.check(data, lambda chance: packed(mutated_entry(entries, chance)))

    def test_it_survives_changed_fields(self, data):
        entries = entries_of(data)

        self.check(data, lambda chance: packed(mutated_row(entries, chance)))


@pytest.mark.django_db
def test_the_predecessors_format_survives_changed_bytes():
    document = {
        "checkpoint_id": "0b2c9d34-1111-4222-8333-444455556666",
        "workflow_id": "w",
        "timestamp": "2025-01-01T00:00:00",
        "current_round": 3,
        "stall_count": 0,
        "last_response": "text",
        "context": {"a": [1, 2]},
        "metadata": {"status": "completed", "round": 3},
    }
    text = json.dumps(document).encode()
    for seed in range(ROUNDS):
        forget_everything()
        with touching_nothing():
            try:
                predecessor.import_documents([mutated(text, random.Random(seed))], actor=SYSTEM)
            except CheckpointError:
                assert not Checkpoint.objects.exists()
                continue
        codec.plain(store.load_entry(Checkpoint.objects.get()))
    assert AuditEvent.objects.exists()


names = st.sampled_from(["tuple", "set", "dict", "type", "int", "uuid", "af.Message", "os.system"])
hostile = st.recursive(
    json_values,
    lambda inner: st.fixed_dictionaries(
        {"$": names | inner}, optional={"items": inner, "value": inner, "name": inner | names}
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile)
def test_decoding_fails_only_as_it_says(tree):
    with touching_nothing():
        for read in (codec.decode, codec.plain):
            with suppress(CheckpointError):
                read(tree)


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0))
def test_joining_fails_only_as_it_says(seed):
    split = chunks.Splitter().split({"list": [{"n": n, "t": "x" * 300} for n in range(30)]})
    contents = {digest: chunks.content_of(chunk) for digest, chunk in split.chunks.items()}
    chance = random.Random(seed)
    digest = chance.choice(sorted(contents))
    contents[digest] = mutated(contents[digest], chance)
    with touching_nothing(), suppress(CheckpointError):
        chunks.join(
            split.manifest, lambda wanted: {d: contents[d] for d in wanted & contents.keys()}
        )


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_unsealing_fails_only_as_it_says(stored):
    with touching_nothing(), suppress(CheckpointError):
        chunks.unseal(stored)


def test_what_is_watched_is_seen(tmp_path):
    with pytest.raises(AssertionError), touching_nothing():
        (tmp_path / "file").write_text("x")
