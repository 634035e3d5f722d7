from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from checkpoints_app import audit
from checkpoints_app.models import AuditEvent, Checkpoint, Chunk

from .test_store import LONG, save

pytestmark = pytest.mark.django_db


@pytest.fixture
def client(settings, tmp_path) -> Client:
    # Pages are rendered without static files having been collected.
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    client = Client()
    client.force_login(User.objects.create_superuser("admin", "admin@example.org", "secret"))
    return client


def test_it_lists_checkpoints_without_reading_their_manifests(
    client, django_assert_max_num_queries
):
    for _ in range(5):
        save({"a": LONG}, agent="researcher")

    with django_assert_max_num_queries(20) as queries:
        page = client.get(reverse("admin:checkpoints_app_checkpoint_changelist"))

    assert page.status_code == 200
    assert b"researcher" in page.content
    assert not any('"manifest"' in query["sql"] for query in queries.captured_queries)


@pytest.mark.parametrize("word", ["run-2", "coder"])
def test_it_finds_checkpoints_by_run_and_agent(client, word):
    save({}, agent="researcher")
    wanted = save({}, run_id="run-2", agent="coder")

    page = client.get(reverse("admin:checkpoints_app_checkpoint_changelist"), {"q": word})

    assert [row.pk for row in page.context["cl"].result_list] == [wanted.pk]


def test_it_finds_a_checkpoint_by_its_id(client):
    save({})
    wanted = save({})

    url = reverse("admin:checkpoints_app_checkpoint_changelist")
    page = client.get(url, {"q": str(wanted.pk)})

    assert [row.pk for row in page.context["cl"].result_list] == [wanted.pk]


def test_it_shows_a_checkpoint_whose_parent_has_expired(client):
    parent = save({})
    child = save({}, parent=parent)
    parent.delete()

    page = client.get(reverse("admin:checkpoints_app_checkpoint_change", args=[child.pk]))

    assert page.status_code == 200
    assert str(child.parent_id).encode() in page.content


def test_it_finds_audit_events_by_their_words(client):
    audit.record(audit.SYSTEM, "run.fork", instruction="focus on EMEA")
    audit.record(audit.SYSTEM, "run.start")

    page = client.get(reverse("admin:checkpoints_app_auditevent_changelist"), {"q": "EMEA"})

    assert [row.verb for row in page.context["cl"].result_list] == ["run.fork"]


@pytest.mark.parametrize("model", ["checkpoint", "auditevent"])
def test_it_lets_nobody_add(client, model):
    assert client.get(reverse(f"admin:checkpoints_app_{model}_add")).status_code == 403


@pytest.mark.parametrize("action", ["change", "delete"])
def test_it_lets_nobody_change_or_delete(client, action):
    rows = {"checkpoint": save({}), "auditevent": audit.record(audit.SYSTEM, "run.start")}
    urls = [reverse(f"admin:checkpoints_app_{m}_{action}", args=[r.pk]) for m, r in rows.items()]

    assert [client.post(url, {"post": "yes"}).status_code for url in urls] == [403, 403]
    assert Checkpoint.objects.exists()
    assert AuditEvent.objects.get(pk=rows["auditevent"].pk).verb == "run.start"


def test_it_keeps_chunks_out_of_the_admin():
    assert not admin.site.is_registered(Chunk)
