from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection

from checkpoints_app.threads import in_thread

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database_threads"),
]


async def test_it_keeps_its_connection_between_calls() -> None:
    def identity() -> int:
        connection.ensure_connection()
        return id(connection.connection)

    assert await in_thread(identity) == await in_thread(identity)


async def test_it_opens_a_new_connection_when_the_old_one_broke() -> None:
    def break_connection() -> object:
        connection.ensure_connection()
        # As after a query that met a server which has gone.
        connection.errors_occurred = True
        connection.is_usable = lambda: False
        return connection.connection

    broken = await in_thread(break_connection)

    assert await in_thread(User.objects.count) == 0
    assert await in_thread(lambda: connection.connection) is not broken


async def test_it_lets_errors_through() -> None:
    def fail() -> None:
        raise OperationalError("disk full")

    with pytest.raises(OperationalError, match="disk full"):
        await in_thread(fail)
