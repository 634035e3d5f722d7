from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from checkpoints_app.models import AuditEvent
from tests.factories import make_user

pytestmark = pytest.mark.django_db


def test_it_records_a_login_through_the_admin() -> None:
    user = make_user(password="a-good-password-7", is_staff=True)

    Client().post(
        reverse("admin:login"), {"username": user.username, "password": "a-good-password-7"}
    )

    assert AuditEvent.objects.get(verb="user.login").actor == user


def test_it_records_where_a_failed_login_came_from() -> None:
    Client().post(
        reverse("login"), {"username": "eve", "password": "guess"}, REMOTE_ADDR="192.0.2.9"
    )

    assert AuditEvent.objects.get(verb="user.login_failed").address == "192.0.2.9"


def test_it_cuts_an_endless_name() -> None:
    Client().post(reverse("login"), {"username": "x" * 254, "password": "guess"})

    assert len(AuditEvent.objects.get(verb="user.login_failed").details["username"]) <= 150


def test_it_records_no_logout_of_nobody() -> None:
    Client().post(reverse("logout"))

    assert not AuditEvent.objects.filter(verb="user.logout").exists()
