"""`manage.py checkpoints …`: everything about kept checkpoints, for people and programs."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError

from checkpoints_app.errors import CheckpointError
from checkpoints_app.management import verbs


class Command(BaseCommand):
    help = "List, find, compare, mark, move, expire and check checkpoints."

    def add_arguments(self, parser: ArgumentParser) -> None:
        subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        for name, verb in verbs.VERBS.items():
            subparser = subparsers.add_parser(name, help=verb.summary, description=verb.summary)
            verb.add_arguments(subparser)
            subparser.add_argument("--json", action="store_true", help="print JSON instead")

    def handle(self, *args: Any, verb: str, **options: Any) -> None:
        chosen = verbs.VERBS[verb]
        try:
            result = chosen.run(options)
        except CheckpointError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(result.data, ensure_ascii=False, default=str))
        else:
            self.stdout.write(chosen.show(result))
        if not result.is_ok:
            raise SystemExit(1)
