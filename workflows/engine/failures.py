"""What went wrong, in words that say what to do next."""

from __future__ import annotations

from collections.abc import Iterator

import openai

from .clients import ModelNotConfigured
from .fork import CannotFork
from .magentic import CheckpointNotSaved


class EngineStopped(Exception):
    """The engine came to rest without an answer and without a question."""


class NoProgress(Exception):
    """The run was taken up again and again without ever getting further."""


class LimitReached(Exception):
    """The framework gave its canned text instead of an answer."""


DETAIL_CHARACTERS = 300
GO_ON = "Nothing before it is lost: resume the run, or fork it from any round."


def explain(error: BaseException) -> str:
    """One or two sentences for the run page: what happened, and what to do."""
    for cause in _chain(error):
        if text := _known(cause):
            return text
    # The deepest cause says it shortest: the framework repeats whole requests in its own words.
    *_, cause = _chain(error)
    detail = str(cause).strip()[:DETAIL_CHARACTERS] or "no details"
    return f"The run stopped with {type(cause).__name__}: {detail} {GO_ON}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it, the deepest last; stops at a loop."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _known(error: BaseException) -> str:
    match error:
        case CheckpointNotSaved():
            return (
                f"The state could not be saved: {error} The run stopped before it could lose a "
                "step. Check the disk and the database, then resume."
            )
        case LimitReached():
            return (
                f"{error} The task was not finished. Fork from the last round with a higher limit, "
                "or with a narrower instruction."
            )
        case NoProgress():
            return f"{error} {GO_ON}"
        case CannotFork() | ModelNotConfigured():
            return str(error)
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return (
                "The model service refused the key. Check OPENAI_API_KEY (or the agent's "
                "api_key_env) and restart the server, then resume the run."
            )
        case openai.NotFoundError():
            return (
                f"The model service does not know the model or the address: {error.message} "
                "Check model and base_url in workflow.yaml or the environment, then start again."
            )
        case openai.RateLimitError():
            return f"The model service asked to slow down and kept refusing. {GO_ON}"
        case openai.APITimeoutError():
            return f"The model service did not answer in time. {GO_ON}"
        case openai.APIConnectionError():
            return (
                "The model service could not be reached. Check OPENAI_BASE_URL (or the agent's "
                f"base_url) and the network. {GO_ON}"
            )
        case openai.InternalServerError():
            return f"The model service failed ({error.status_code}). {GO_ON}"
        case openai.APIStatusError():
            return (
                f"The model service refused the request ({error.status_code}): "
                f"{error.message} {GO_ON}"
            )
    return ""
