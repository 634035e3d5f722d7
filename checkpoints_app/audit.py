"""The trail of who did what. Call `record` inside the transaction of the change itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import models

from .models import AuditEvent


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who acts, and from where. `user` is None for the system itself."""

    user: AbstractBaseUser | None
    origin: AuditEvent.Origin
    address: str | None = None

    @property
    def name(self) -> str:
        return self.user.get_username() if self.user else "system"


SYSTEM = Actor(user=None, origin=AuditEvent.Origin.SYSTEM)


def record(
    actor: Actor,
    verb: str,
    target: models.Model | None = None,
    *,
    instruction: str = "",
    **details: Any,
) -> AuditEvent:
    """Add one entry. `verb` is `noun.verb`, such as `run.fork`; `details`: JSON without secrets."""
    return AuditEvent.objects.create(
        actor_id=actor.user.pk if actor.user else None,
        actor_name=actor.name,
        verb=verb,
        target_type=target._meta.label_lower if target else "",
        target_id=str(target.pk) if target else "",
        instruction=instruction,
        details=details,
        origin=actor.origin,
        address=actor.address,
    )
