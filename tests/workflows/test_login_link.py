from __future__ import annotations

from io import StringIO

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from checkpoints_app.models import AuditEvent
from workflows.management.commands.login_link import site_address
from workflows.models import LoginLink

pytestmark = pytest.mark.django_db


def printed_link(*arguments: str) -> str:
    out = StringIO()
    call_command("login_link", *arguments, stdout=out)
    return out.getvalue().strip()


def token_of(link: str) -> str:
    return link.rstrip("/").rpartition("/")[2]


def test_it_prints_a_link_that_lets_the_first_admin_in_once() -> None:
    link = printed_link()

    used = LoginLink.consume(token_of(link))

    assert link.startswith("http://127.0.0.1:8000/login/link/")
    assert used
    assert used.user.is_superuser
    assert not used.user.has_usable_password()
    assert LoginLink.consume(token_of(link)) is None


def test_it_makes_the_first_admin_only_once() -> None:
    printed_link()
    printed_link()

    assert get_user_model().objects.count() == 1


def test_it_prints_a_link_for_a_named_user() -> None:
    get_user_model().objects.create_user("ada")

    used = LoginLink.consume(token_of(printed_link("ada")))

    assert used
    assert used.user.get_username() == "ada"


def test_it_replaces_the_earlier_link() -> None:
    first = printed_link()
    printed_link()

    assert LoginLink.consume(token_of(first)) is None


@pytest.mark.parametrize("username", ["nobody", "gone"])
def test_it_refuses_a_user_who_may_not_log_in(username: str) -> None:
    get_user_model().objects.create_user("gone", is_active=False)

    with pytest.raises(CommandError, match=f"There is no active user '{username}'"):
        printed_link(username)


def test_it_is_audited_without_the_token() -> None:
    link = printed_link()

    entry = AuditEvent.objects.get(verb="login_link.issue")

    assert entry.origin == AuditEvent.Origin.TERMINAL
    assert token_of(link) not in str(vars(entry))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://localhost:8000"),  # noqa: S104
        ("::", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("fleet.example.org", "http://fleet.example.org:8000"),
    ],
)
def test_it_prints_an_address_that_a_browser_can_open(
    settings: Settings, host: str, address: str
) -> None:
    settings.HOST = host

    assert site_address() == address
