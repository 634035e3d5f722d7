"""What other processes do to the test database. Run as a module, with DATABASE VERB and more."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def start(verb: str, *arguments: object) -> subprocess.Popen[str]:
    """Begin `verb` in a process of its own. It writes `ready`, and what it did, on two lines."""
    from django.db import connection

    database = str(connection.settings_dict["NAME"])
    command = [sys.executable, "-m", __name__, database, verb, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def save_prune_and_sweep(run_id: str, address: str, seconds: str) -> int:
    """Do all three in turn until the time is over, and return how many chunks were swept.

    The texts come from a small stock, so that what one process sweeps another one needs again.
    """
    from checkpoints_app import chunks, retention, store
    from checkpoints_app.audit import SYSTEM
    from checkpoints_app.models import Checkpoint

    chance = random.Random(run_id)
    stock = [f"text {number} " * 80 for number in range(12)]
    splitter = chunks.Splitter()
    newest, swept = None, 0
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        for _ in range(chance.randrange(1, 6)):
            texts = chance.sample(stock, 4)
            split = splitter.split({"said": list(texts), "run": run_id})
            entry = Checkpoint(
                run_id=run_id,
                parent_id=newest,
                backend=address,
                source="loop",
                phase="idle",
                superstep=0,
                note="\n".join(texts),
            )
            newest = store.save(entry, split, added=split.added).pk
        retention.prune(retention.Policy(max_count=chance.randrange(1, 4)), actor=SYSTEM)
        swept += retention.sweep().chunks
    return swept


def import_bundle(path: str) -> None:
    from checkpoints_app import archive
    from checkpoints_app.audit import SYSTEM

    with open(path, "rb") as file:
        archive.import_bundle(file, actor=SYSTEM)


VERBS: dict[str, Callable[..., object]] = {
    "save_prune_and_sweep": save_prune_and_sweep,
    "import_bundle": import_bundle,
}


def main(database: str, verb: str, *arguments: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "fleet_site.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"]["NAME"] = database
    django.setup()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdout.write(f"{VERBS[verb](*arguments)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
