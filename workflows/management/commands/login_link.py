from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.urls import reverse

from checkpoints_app import audit
from checkpoints_app.models import AuditEvent
from workflows import services
from workflows.models import LoginLink

TERMINAL = audit.Actor(user=None, origin=AuditEvent.Origin.TERMINAL)


class Command(BaseCommand):
    help = "Print a fresh one-time login link. It replaces the user's earlier unused ones."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username", nargs="?", help="the first admin when left out")

    def handle(self, *args: Any, username: str | None, **options: Any) -> None:
        user = find_user(username) if username else services.first_admin()
        self.stdout.write(login_link(user))


def find_user(username: str) -> AbstractBaseUser:
    user = get_user_model().objects.filter(username=username, is_active=True).first()
    if user is None:
        raise CommandError(
            f"There is no active user {username!r}. Leave the name out for the first admin."
        )
    return user


@transaction.atomic
def login_link(user: AbstractBaseUser) -> str:
    """Issue a link for the user and return its full address."""
    path = reverse("login_link", args=[LoginLink.issue(user)])
    audit.record(TERMINAL, "login_link.issue", user)
    return f"{site_address()}{path}"


def site_address() -> str:
    """Where this machine's browser finds the server. "Everywhere" is not an address to open."""
    host = "localhost" if settings.HOST in {"0.0.0.0", "::", "[::]"} else settings.HOST  # noqa: S104
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{settings.PORT}"
