from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from tests.factories import make_approval, make_call, make_event, make_run, make_user
from workflows.models import Approval, Attachment, Event, ModelCall, Run, Workflow

pytestmark = pytest.mark.django_db

MODELS = [Workflow, Run, Event, ModelCall, Approval, Attachment]


@pytest.fixture
def superuser() -> Client:
    client = Client()
    client.force_login(make_user(is_staff=True, is_superuser=True))
    return client


@pytest.fixture
def run() -> Run:
    """A run with a row of everything that the admin shows."""
    run = make_run()
    make_event(run, agent="coder")
    make_call(run)
    make_approval(run)
    Attachment.objects.create(
        workflow=run.workflow, name="sales.csv", kind="table", sha256="a" * 64, size_bytes=1
    )
    return run


def url(model: Any, page: str, *args: Any) -> str:
    return reverse(f"admin:workflows_{model._meta.model_name}_{page}", args=args)


@pytest.mark.parametrize("model", MODELS)
def test_it_lists_and_searches(model: Any, run: Run, superuser: Client) -> None:
    response = superuser.get(url(model, "changelist"), {"q": "a"})

    assert response.status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_it_shows_a_row_without_a_way_to_save_it(model: Any, run: Run, superuser: Client) -> None:
    row = model.objects.get()

    page = superuser.get(url(model, "change", row.pk)).content.decode()

    assert "_save" not in page


@pytest.mark.parametrize("model", MODELS)
def test_it_adds_nothing(model: Any, superuser: Client) -> None:
    assert superuser.get(url(model, "add")).status_code == 403


@pytest.mark.parametrize("model", MODELS)
def test_it_changes_nothing(model: Any, run: Run, superuser: Client) -> None:
    row = model.objects.get()

    assert superuser.post(url(model, "change", row.pk), {}).status_code == 403


@pytest.mark.parametrize("model", MODELS)
def test_it_deletes_nothing(model: Any, run: Run, superuser: Client) -> None:
    row = model.objects.get()

    assert superuser.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    assert model.objects.exists()


@pytest.mark.parametrize("model", MODELS)
def test_it_offers_filters(model: Any) -> None:
    assert admin.site.get_model_admin(model).list_filter
