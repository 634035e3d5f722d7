from __future__ import annotations

import base64
import io
import json
import tarfile
import uuid
from typing import Any

import pytest
import zstandard

from checkpoints_app import archive, bundle, chunks, codec, search, store
from checkpoints_app.adapters.agent_framework import load_checkpoint
from checkpoints_app.audit import SYSTEM
from checkpoints_app.bundle import Limits
from checkpoints_app.errors import (
    BundleRefused,
    CheckpointConflict,
    CheckpointError,
    CheckpointReadOnly,
)
from checkpoints_app.models import AuditEvent, Checkpoint, Chunk

from .bundles import changed, entries_of, exported, forget_everything, imported, packed
from .lines import LONG, save, save_line

pytestmark = pytest.mark.django_db

FOREIGN = b"k" * 32


def states() -> dict[Any, Any]:
    return {entry.pk: store.load_entry(entry) for entry in Checkpoint.objects.all()}


def foreign(data: bytes) -> bytes:
    return packed(entries_of(data), key=FOREIGN)


class TestRoundTrip:
    def test_it_brings_everything_back_bit_for_bit(self):
        line = save_line(4)
        save(run_id="run-2", parent=line[1])
        before = states()
        data = exported()
        forget_everything()

        found = imported(data)

        assert states() == before
        assert (found.checkpoints, found.signed_by) == (5, "this site")

    def test_it_keeps_the_index_and_the_marks(self):
        (entry,) = save_line(1, team="fleet", cost_usd="1.25", tags=["a"], name="n", note="ünï")
        data = exported()
        forget_everything()

        imported(data)

        found = Checkpoint.objects.get(pk=entry.pk)
        kept = (found.team, str(found.cost_usd), found.tags, found.name, found.note)
        assert kept == ("fleet", "1.250000", ["a"], "n", "ünï")
        assert (found.created_at, found.source) == (entry.created_at, "import")

    def test_it_counts_exactly_the_bytes_that_it_adds(self):
        save_line(3)
        data = exported()
        forget_everything()

        imported(data)

        manifests = sum(len(row.manifest) for row in Checkpoint.objects.all())
        stored = sum(len(chunk.data) for chunk in Chunk.objects.all())
        assert sum(row.new_bytes for row in Checkpoint.objects.all()) == manifests + stored

    def test_it_exports_one_checkpoint_without_its_parent(self):
        parent, child = save_line(2)
        file = io.BytesIO()
        archive.export_bundle(Checkpoint.objects.filter(pk=child.pk), file, actor=SYSTEM)
        forget_everything()

        imported(file.getvalue())

        assert Checkpoint.objects.get().parent_id == parent.pk

    def test_it_exports_from_wherever_the_chunks_lie(self, tmp_path):
        save_line(2)
        save_line(2, run_id="run-2", backend=f"file:{tmp_path}")
        before = states()
        data = exported()
        forget_everything()

        imported(data)

        assert states() == before

    def test_it_makes_what_it_imports_searchable(self):
        save({"chat": [{"type": "message", "author_name": "coder", "text": f"zebra {LONG}"}]})
        data = exported()
        before = len(search.search({}, text="zebra").hits)
        forget_everything()

        imported(data)

        assert len(search.search({}, text="zebra").hits) == before

    def test_it_takes_the_applications_events_along(self, monkeypatch):
        save_line(2)
        tell = lambda runs: [{"run": run, "kind": "started"} for run in runs]  # noqa: E731
        monkeypatch.setattr(archive, "_events", [tell])

        data = exported()

        assert json.loads(entries_of(data)["events/00000001.json"])["run"] == "run-1"
        assert imported(data).events == 1

    def test_it_can_be_read_by_any_tar(self):
        save_line(2)

        with tarfile.open(fileobj=io.BytesIO(unpacked(exported()))) as tar:
            names = tar.getnames()

        assert (names[0], names[-1]) == ("manifest.json", "end.json")

    def test_it_holds_no_key(self, settings):
        save_line(1)

        data = unpacked(exported())

        assert archive.site_key().hex().encode() not in data
        assert settings.SECRET_KEY.encode() not in data

    def test_it_says_that_there_is_nothing_to_export(self):
        with pytest.raises(CheckpointError, match="no such checkpoints"):
            archive.export_bundle(Checkpoint.objects.all(), io.BytesIO(), actor=SYSTEM)

    def test_it_is_audited(self):
        save_line(2)

        imported(exported())

        verbs = list(AuditEvent.objects.order_by("id").values_list("verb", flat=True))
        assert verbs == ["checkpoints.export", "checkpoints.import"]


class TestRepeating:
    def test_it_leaves_alone_what_is_there(self):
        save_line(3)
        data = exported()
        before = list(Checkpoint.objects.values())

        found = imported(data)

        assert (found.checkpoints, found.already_there) == (0, 3)
        assert list(Checkpoint.objects.values()) == before

    def test_it_adds_what_is_missing(self):
        line = save_line(3)
        data = exported()
        store.delete([line[1].pk])

        assert imported(data).checkpoints == 1

    def test_it_refuses_other_content_under_an_id(self):
        (entry,) = save_line(1)
        data = exported()
        forget_everything()
        save({"other": 1}, id=entry.pk)

        with pytest.raises(CheckpointConflict, match=f"{entry.pk} is here already"):
            imported(data)

    def test_it_refuses_another_checkpoint_at_the_same_place_in_a_run(self):
        save_line(2)
        data = exported()
        forget_everything()
        save_line(1)
        before = (states(), Chunk.objects.count())

        with pytest.raises(CheckpointConflict, match="same positions"):
            imported(data)

        assert (states(), Chunk.objects.count()) == before

    def test_it_gives_new_ids_and_rewrites_the_lineage(self):
        line = save_line(3, workflow="tree")
        data = exported()

        found = imported(data, new_ids=True)

        new = [Checkpoint.objects.get(pk=found.ids[entry.pk]) for entry in line]
        assert [entry.parent_id for entry in new] == [None, new[0].pk, new[1].pk]
        assert len({entry.run_id for entry in new} | {"run-1"}) == 2
        assert len({entry.workflow for entry in new} | {"tree"}) == 2
        assert [store.load(entry.pk) for entry in new] == [store.load(entry.pk) for entry in line]


class TestTrust:
    def test_it_imports_a_foreign_bundle_read_only(self):
        save_line(2)
        data = foreign(exported())
        forget_everything()

        found = imported(data)

        assert not found.is_trusted
        entry = Checkpoint.objects.first()
        assert entry.is_read_only
        assert store.state(entry.pk)["n"] == 0
        with pytest.raises(CheckpointReadOnly, match="no trusted key"):
            load_checkpoint(entry.pk)

    def test_it_trusts_a_named_key(self, settings):
        save_line(1)
        data = foreign(exported())
        forget_everything()
        settings.FLEET_TRUSTED_BUNDLE_KEYS = [f"lab:{FOREIGN.hex()}"]

        assert imported(data).signed_by == "lab"
        assert not Checkpoint.objects.get().is_read_only

    def test_it_lifts_the_hold_once_the_key_is_trusted(self, settings):
        save_line(1)
        data = foreign(exported())
        forget_everything()
        imported(data)
        settings.FLEET_TRUSTED_BUNDLE_KEYS = [f"lab:{FOREIGN.hex()}"]

        imported(data)

        assert not Checkpoint.objects.get().is_read_only

    def test_it_does_not_launder_what_it_passes_on(self):
        save_line(1)
        data = foreign(exported())
        forget_everything()
        imported(data)
        passed_on = exported()
        forget_everything()

        assert imported(passed_on).is_trusted
        assert Checkpoint.objects.get().is_read_only

    def test_it_trusts_keys_that_were_replaced(self, settings):
        save_line(1)
        data = exported()
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another one"

        assert imported(data).signed_by == "this site"

    def test_it_pins_nothing_for_strangers(self):
        (entry,) = save_line(1)
        Checkpoint.objects.update(is_pinned=True)
        data = foreign(exported())
        forget_everything()

        imported(data)

        assert not Checkpoint.objects.get(pk=entry.pk).is_pinned

    def test_it_lets_no_stranger_add_to_a_run_of_this_site(self):
        line = save_line(3)
        data = foreign(exported())
        store.delete([line[2].pk])
        kept = changed_run(data, drop=2)

        with pytest.raises(CheckpointConflict, match="can't add to it"):
            imported(kept)

    def test_it_says_that_a_trusted_key_is_no_key(self, settings):
        save_line(1)
        settings.FLEET_TRUSTED_BUNDLE_KEYS = ["lab:xyz"]

        with pytest.raises(BundleRefused, match=r"'lab' that is not NAME:HEX"):
            imported(exported())


def changed_run(data: bytes, *, drop: int) -> bytes:
    """The bundle without its first checkpoints, and without what only they needed."""
    entries = entries_of(data)
    rows = [path for path in entries if path.startswith("checkpoints/")]
    by_position = sorted(rows, key=lambda path: json.loads(entries[path])["position"])
    for path in by_position[:drop]:
        del entries[path]
    return packed(entries, key=FOREIGN)


def unpacked(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data) as stream:
        return stream.read()


def zipped(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


class TestHostile:
    @pytest.fixture
    def data(self) -> bytes:
        save_line(3)
        data = exported()
        forget_everything()
        return data

    def refuse(self, data: bytes, reason: str, **options: Any) -> None:
        before = AuditEvent.objects.count()
        with pytest.raises(BundleRefused, match=reason):
            imported(data, **options)
        assert (Checkpoint.objects.count(), Chunk.objects.count()) == (0, 0)
        assert AuditEvent.objects.count() == before

    @pytest.mark.parametrize("noise", [b"", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"x" * 5000])
    def test_it_refuses_what_is_no_bundle(self, noise):
        self.refuse(noise, "damaged|too early")

    @pytest.mark.parametrize("part", [0.3, 0.8, 0.999])
    def test_it_refuses_a_part_of_a_bundle(self, data, part):
        self.refuse(data[: int(len(data) * part)], "too early|damaged")

    @pytest.mark.parametrize(
        "path", ["../../etc/passwd", "/etc/passwd", "chunks/../x", "checkpoints/x.json", "chunks/"]
    )
    def test_it_refuses_paths_of_its_own(self, data, path):
        self.refuse(packed({**entries_of(data), path: b"x"}), "No bundle has an entry")

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"L"])
    def test_it_refuses_anything_but_plain_files(self, kind):
        info = tarfile.TarInfo("manifest.json")
        info.type, info.linkname = kind, "/etc/passwd"

        self.refuse(zipped(info.tobuf(tarfile.USTAR_FORMAT)), "no plain file")

    def test_it_refuses_headers_with_something_to_hide(self, data):
        plain = bytearray(unpacked(data))
        info = tarfile.TarInfo("manifest.json")
        info.size, info.mode = int(plain[124:135], 8), 0o4755
        plain[:512] = info.tobuf(tarfile.USTAR_FORMAT)

        self.refuse(zipped(bytes(plain)), "header of 'manifest.json'")

    def test_it_refuses_a_bomb(self, data):
        entries = entries_of(data)
        path = next(path for path in entries if path.startswith("chunks/"))
        entries[path] = bytes(3_000_000)

        self.refuse(packed(entries), "fill the disk", limits=Limits(free_bytes=1_000_000))

    @pytest.mark.parametrize(
        "limits",
        [
            Limits(packed_bytes=100),
            Limits(unpacked_bytes=2000),
            Limits(checkpoints=2),
            Limits(chunks=2),
            Limits(chunk_bytes=100),
            Limits(document_bytes=100),
        ],
    )
    def test_it_refuses_more_than_its_limits(self, data, limits):
        self.refuse(data, "are the most|larger than|more than", limits=limits)

    def test_it_refuses_a_duplicate(self, data):
        plain = unpacked(data)
        size = 512 + -(-int(plain[124:135], 8) // 512) * 512

        self.refuse(zipped(plain[:size] + plain), "twice, or in the wrong place")

    def test_it_refuses_entries_in_another_order(self, data):
        self.refuse(packed(dict(reversed(entries_of(data).items()))), "begins with")

    @pytest.mark.parametrize("folder", ["chunks/", "checkpoints/"])
    def test_it_refuses_a_bundle_that_lacks_something(self, data, folder):
        entries = {p: e for p, e in entries_of(data).items() if not p.startswith(folder)}

        self.refuse(packed(entries), "lacks chunk|holds no checkpoint")

    def test_it_refuses_a_chunk_that_none_needs(self, data):
        content = b"tnobody needs it"
        path = f"chunks/{chunks.digest_of(content).hex()}"
        entries = dict(sorted({**entries_of(data), path: content}.items()))
        manifest = {"manifest.json": entries.pop("manifest.json")}

        self.refuse(packed(manifest | entries), "which none needs")

    def test_it_refuses_a_chunk_under_a_wrong_name(self, data):
        entries = entries_of(data)
        path = next(path for path in entries if path.startswith("chunks/"))
        entries[path] += b"!"

        self.refuse(packed(entries), "SHA-256")

    def test_it_refuses_one_changed_byte(self, data):
        plain = bytearray(unpacked(data))
        at = plain.index(b'"position"')
        plain[at + 11] ^= 1

        self.refuse(zipped(bytes(plain)), "SHA-256|position|JSON")

    def test_it_refuses_a_forged_signature(self, data):
        forged = unpacked(data).replace(b'"signature":"', b'"signature":"0')
        end = forged.rindex(b"end.json")
        info = tarfile.TarInfo("end.json")
        info.size = int(forged[end + 124 : end + 135], 8)
        document = forged[end + 512 : end + 512 + info.size + 1]
        info.size = len(document)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        data = forged[:end] + header + document + bytes(-len(document) % 512 + 1024)

        self.refuse(zipped(data), "claims to be signed by this site")

    @pytest.mark.parametrize("version", [2, 0, "1", None, [1]])
    def test_it_refuses_other_versions(self, data, version):
        manifest = bundle.dump({"kind": bundle.KIND, "format": version})

        self.refuse(packed(entries_of(data) | {"manifest.json": manifest}), "Upgrade")

    def test_it_refuses_other_kinds(self, data):
        self.refuse(packed(entries_of(data) | {"manifest.json": b"{}"}), "no bundle of checkpoints")

    def test_it_refuses_a_lineage_that_runs_in_a_circle(self, data):
        rows = [json.loads(e) for p, e in entries_of(data).items() if p.startswith("checkpoints/")]
        first = next(n for n, row in enumerate(rows) if row["parent"] is None)
        last = Checkpoint(id=uuid.UUID(int=0))
        ids = [p[12:48] for p in entries_of(data) if p.startswith("checkpoints/")]
        last.pk = ids[next(n for n, row in enumerate(rows) if row["position"] == 2)]

        found = changed(data, lambda row: row.update(parent=str(last.pk)), which=first)

        self.refuse(found, "its own ancestor")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("position", -1),
            ("position", 10**30),
            ("position", "1"),
            ("position", True),
            ("phase", "rm -rf"),
            ("run_id", ""),
            ("run_id", "x" * 65),
            ("agent", "nul\0"),
            ("note", "\ud800"),
            ("tags", {"a": 1}),
            ("tags", [1]),
            ("parent", "../../x"),
            ("created_at", "2026-01-01"),
            ("created_at", "0001-01-01T00:00:00+14:00"),
            ("cost_usd", "NaN"),
            ("cost_usd", 1),
            ("digest", "00"),
            ("manifest", "????"),
            ("is_pinned", 1),
            ("extra", 1),
        ],
    )
    def test_it_refuses_bad_fields(self, data, field, value):
        self.refuse(changed(data, lambda row: row.update({field: value})), "Checkpoint [0-9a-f]")

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            ({"$": "os.system", "value": "true"}, "'os.system', which is not registered"),
            ({"a": [{"$": "subprocess.Popen"}]}, "'subprocess.Popen'"),
            ({"$": "type", "name": "posix.system"}, "'posix.system'"),
            ({"$": 7}, "not by a string"),
            ({"$": "type"}, "without its name"),
            ([{"long": "x" * 300, "$": "builtins.eval"}] * 9, "'builtins.eval'"),
        ],
    )
    def test_it_refuses_foreign_types(self, state, reason):
        self.refuse(bundle_of(chunks.Splitter().split(state)), reason)

    def test_it_refuses_states_that_nest_too_deep(self):
        state: Any = 1
        for _ in range(archive.DEPTH + 1):
            state = [state]

        self.refuse(bundle_of(chunks.Splitter().split(state)), "deep")

    def test_it_refuses_a_format_of_states_from_the_future(self):
        split = chunks.Splitter().split({})
        manifest = bytes([codec.FORMAT + 1]) + split.manifest[1:]

        self.refuse(bundle_of_manifest(manifest, {}), "Upgrade")

    def test_it_refuses_a_few_chunks_that_unfold_without_end(self):
        content = b"t" + b"x" * 300
        contents = {chunks.digest_of(content): content}
        for _ in range(12):
            below = list(contents)[-1]
            content = b"n\xdc\x00\x40" + (b"\xc7\x20\x01" + below) * 64
            contents[chunks.digest_of(content)] = content
        manifest = bytes([codec.FORMAT]) + b"\xc7\x20\x01" + list(contents)[-1]

        self.refuse(bundle_of_manifest(manifest, contents), "are the most")


def bundle_of(split: chunks.Split) -> bytes:
    contents = {digest: chunks.content_of(chunk) for digest, chunk in split.chunks.items()}
    return bundle_of_manifest(split.manifest, contents)


def bundle_of_manifest(manifest: bytes, contents: dict[bytes, bytes]) -> bytes:
    """A signed bundle of one checkpoint, with a state that the store itself would never write."""
    save({})
    data = exported()
    forget_everything()
    entries = entries_of(data)
    path = next(path for path in entries if path.startswith("checkpoints/"))
    row = json.loads(entries[path])
    row["manifest"] = base64.b64encode(manifest).decode()
    row["digest"] = chunks.digest_of(manifest).hex()
    entries[path] = bundle.dump(row)
    ordered = {f"chunks/{digest.hex()}": contents[digest] for digest in sorted(contents)}
    return packed(entries | ordered)
