"""The verbs of `manage.py checkpoints`, one small module for each group of them."""

from __future__ import annotations

from .base import Verb
from .copying import Copy
from .expiring import Prune
from .finding import List, Name, Note, Pin, Reindex, Search, Show, Tag, Unpin
from .inspecting import Diff, Stats, Verify
from .moving import Export, Import

VERBS: dict[str, Verb] = {
    "list": List(),
    "show": Show(),
    "search": Search(),
    "diff": Diff(),
    "pin": Pin(),
    "unpin": Unpin(),
    "tag": Tag(),
    "name": Name(),
    "note": Note(),
    "verify": Verify(),
    "stats": Stats(),
    "reindex": Reindex(),
    "copy": Copy(),
    "export": Export(),
    "import": Import(),
    "prune": Prune(),
}
