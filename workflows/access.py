"""Who acts, and the trail of log-ins. Django's signals are heard: the admin logs people in too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest

from checkpoints_app import audit
from checkpoints_app.audit import Actor
from checkpoints_app.models import AuditEvent


def actor_of(request: HttpRequest) -> Actor:
    """The user behind a request, and the address it came from."""
    user = request.user if request.user.is_authenticated else None
    return _actor(request, user)


@receiver(user_logged_in)
def record_login(request: HttpRequest, user: AbstractBaseUser, **_: Any) -> None:
    audit.record(_actor(request, user), "user.login", user)


@receiver(user_logged_out)
def record_logout(request: HttpRequest, user: AbstractBaseUser | None, **_: Any) -> None:
    if user is not None:  # logging out twice is no event
        audit.record(_actor(request, user), "user.logout", user)


@receiver(user_login_failed)
def record_failed_login(
    credentials: Mapping[str, Any], request: HttpRequest | None = None, **_: Any
) -> None:
    """Django has masked the password; the name is kept as typed, cut to a name's length."""
    username = str(credentials.get("username", ""))[:150]
    audit.record(_actor(request, None), "user.login_failed", username=username)


def _actor(request: HttpRequest | None, user: AbstractBaseUser | None) -> Actor:
    address = request.META.get("REMOTE_ADDR") if request else None
    return Actor(user=user, origin=AuditEvent.Origin.WEB, address=address or None)
