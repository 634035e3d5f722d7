from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.urls import reverse
from django.utils.module_loading import import_string

from workflows import live, services
from workflows.dispatch.embedded import EmbeddedDispatcher, server_worker

from .login_link import login_link, site_address

# Together less than the five seconds within which a stop must be over.
DISPATCHER_STOP_SECONDS = 2.0
STOP_SECONDS = 4.0


class Command(BaseCommand):
    help = "Prepare the site, then serve pages, sockets and runs from this one process."
    requires_system_checks = []  # a busy port is reported before anything else

    def handle(self, *args: Any, **options: Any) -> None:
        # Until the server takes the signals over they end the process: nothing runs yet.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: end_now())
        check_port()
        self.folder_lock = lock_data_folder()
        self.check()
        self.prepare()
        self.serve()

    def prepare(self) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        collect_static_files()

    def serve(self) -> None:
        """Serve until SIGINT or SIGTERM, then end the process with exit code 0."""
        from daphne.endpoints import build_endpoint_description_strings
        from daphne.server import Server
        from twisted.internet import reactor as twisted_reactor

        reactor: Any = twisted_reactor  # zope interfaces leave out `self`, so mypy miscounts
        worker = server_worker()
        dispatcher = EmbeddedDispatcher(worker=worker, abandoned_by=worker)

        def ready() -> None:
            live.serve_from(reactor._asyncioEventloop)
            dispatcher.start()
            # The text needs the database, which the running reactor must not wait for; but only a
            # running reactor hears the signals, so nobody is told that it runs before it does.
            reactor.callWhenRunning(self.say, self.announcement())

        reactor.addSystemEventTrigger("before", "shutdown", end_in_time)
        server = Server(
            application=import_string(settings.ASGI_APPLICATION),
            endpoints=build_endpoint_description_strings(host=settings.HOST, port=settings.PORT),
            ready_callable=ready,
            # Daphne's default closes sockets after a day with a code that pages don't reconnect on.
            websocket_timeout=-1,
            server_name="",
        )
        server.run()
        dispatcher.stop(DISPATCHER_STOP_SECONDS)
        connections.close_all()
        if not server.listening_addresses:
            raise CommandError(busy(settings.HOST, settings.PORT))
        self.stdout.write("Stopped. Runs that were under way go on with the next start.")
        end_now()

    def announcement(self) -> str:
        """Where the site is, how to get in, where the data lies and which models work."""
        lines = ["", f"AgenticFleet Dashboard is running at {site_address()}/"]
        lines += ["", *ways_in(), "", f"Data    {settings.DATA_DIR}", *team_status()]
        return "\n".join([*lines, "Stop    Ctrl+C", ""])

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def check_port() -> None:
    """Raise `CommandError` when the address cannot be listened on."""
    host, port = settings.HOST.strip("[]"), settings.PORT
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except (OSError, OverflowError) as error:
        raise CommandError(busy(host, port, error)) from None


def busy(host: str, port: int, error: Exception | None = None) -> str:
    reason = getattr(error, "strerror", None) or "Address already in use"
    return (
        f"Cannot listen on {host}:{port} ({reason}). "
        f"Stop what uses it, or choose another port: make run PORT={(port + 1) % 65_536}"
    )


def lock_data_folder() -> IO[str]:
    """Keep this folder to one server while the file stays open: each takes up the other's runs."""
    lock = (settings.DATA_DIR / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise CommandError(
            f"Another server is using {settings.DATA_DIR}. "
            "Stop it, or choose another folder: make run FLEET_DATA_DIR=/some/folder"
        ) from None
    return lock


def collect_static_files() -> None:
    """Collect and compress, unless no source changed since the last time."""
    stamp = settings.DATA_DIR / "static.stamp"
    fingerprint = hashlib.sha256("\n".join(_static_sources()).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == fingerprint and settings.STATIC_ROOT.is_dir():
        return
    call_command("collectstatic", verbosity=0, interactive=False)
    stamp.write_text(fingerprint)


def _static_sources() -> Iterator[str]:
    for finder in get_finders():
        for path, storage in finder.list([]):
            stat = os.stat(storage.path(path))
            yield f"{path} {stat.st_mtime_ns} {stat.st_size}"


def ways_in() -> list[str]:
    admin = services.first_admin()
    if admin.has_usable_password():
        return [f"Log in as {admin.get_username()} at {site_address()}{reverse('login')}"]
    return [
        f"Log in once as {admin.get_username()} with this link "
        f"(it expires in {settings.LOGIN_LINK_HOURS} hours):",
        "",
        f"    {login_link(admin)}",
    ]


def team_status() -> list[str]:
    """The models that work, or what is wrong in the team file."""
    status = services.team_status()
    if status.team is None:
        problems = [f"    {problem}" for problem in status.problems]
        return ["Team    cannot work until the team file is right:", *problems]
    if status.is_offline:
        return [
            "Models  none: a rule-based planner works offline. README.md says how to plug one in"
        ]
    models = ", ".join(f"{name}: {label}" for name, label in status.models.items())
    return [f"Models  {models}"]


def end_in_time() -> None:
    """End the process even when a request or a tool does not let go of its thread."""
    timer = threading.Timer(STOP_SECONDS, end_now)
    timer.daemon = True
    timer.start()


def end_now() -> None:
    # Not sys.exit: it would wait for threads in which tools still compute. What they would give is
    # not recorded any more, and everything recorded is committed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
