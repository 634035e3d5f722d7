"""The pages. Each view checks access, validates a form, calls one service and renders."""

from __future__ import annotations

from contextlib import ExitStack
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.text import slugify
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from checkpoints_app import audit
from checkpoints_app.models import Checkpoint

from . import services
from .access import actor_of
from .events import EventKind
from .forms import AnswerForm, ForkForm, StartForm
from .models import Approval, LoginLink, Run, Workflow, WorkflowQuerySet
from .transcript import Line, Step, headline, unpriced_calls

PAGE_SIZE = 50
EXAMPLE_TASK = "Analyze sales data"
EXAMPLE_FILE = settings.BASE_DIR / "examples" / "sales.csv"


@login_required
@require_GET
def home(request: HttpRequest) -> HttpResponse:
    is_everybody = request.user.is_staff and request.GET.get("owner") == "all"
    listed = _listed(request, is_everybody=is_everybody)
    before = request.GET.get("before")
    if before:
        listed = listed.filter(_older_than(request, before))
    found = list(listed.select_related("owner")[: PAGE_SIZE + 1])
    page = found[:PAGE_SIZE]
    return render(
        request,
        "workflows/home.html",
        {
            "rows": _with_figures(page),
            "next_before": page[-1].id if len(found) > PAGE_SIZE else None,
            "is_first_page": not before,
            "is_everybody": is_everybody,
        },
    )


@login_required
@never_cache  # its form carries the id of one submission
@require_http_methods(["GET", "HEAD", "POST"])
def new_workflow(request: HttpRequest) -> HttpResponse:
    status = services.team_status()
    if request.method == "POST":
        form = StartForm(request.POST, request.FILES)
        if form.is_valid() and (started := _start(request, form, status)):
            return redirect(started)
    else:
        form = StartForm(initial=_first_values(request, status))
    return render(
        request,
        "workflows/new.html",
        {
            "form": form,
            "status": status,
            "members": _members(status),
            "has_example": EXAMPLE_FILE.is_file(),
            "max_files": settings.ATTACHMENT_MAX_COUNT,
            "max_bytes": settings.ATTACHMENT_MAX_BYTES,
        },
        status=422 if form.errors else 200,
    )


@login_required
@require_GET
def workflow(request: HttpRequest, workflow_id: UUID) -> HttpResponse:
    found = get_object_or_404(Workflow.objects.visible_to(_user(request)), id=workflow_id)
    newest = found.runs.order_by("-number").first()
    if newest is None:
        raise Http404("This workflow has no run.")
    return redirect(newest)


@login_required
@never_cache  # its form carries the id of one submission
@require_GET
def run(request: HttpRequest, run_id: UUID) -> HttpResponse:
    return _run_page(request, _visible_run(request, run_id))


@login_required
@require_GET
@never_cache
def controls(request: HttpRequest, run_id: UUID) -> HttpResponse:
    """What the reader may do with a run now: the part of its page that is theirs alone."""
    line = Line.of(_visible_run(request, run_id))
    steps = line.steps(_joined(line.events(EventKind.CHECKPOINT)))
    context = {"run": line.run, **_controls(request, line.run, steps)}
    return render(request, "workflows/run.html#controls", {**context, "is_swapped": True})


@login_required
@require_GET
@never_cache
def branches(request: HttpRequest, workflow_id: UUID) -> HttpResponse:
    """The tree again, or 204 when it still looks as in `seen`."""
    found = get_object_or_404(Workflow.objects.visible_to(_user(request)), id=workflow_id)
    shown = get_object_or_404(
        found.runs.select_related("workflow"), id=_uuid_or_404(request.GET.get("run"))
    )
    line = Line.of(shown)
    if _fingerprint(line) == request.GET.get("seen"):
        return HttpResponse(status=204)
    return render(request, "workflows/run.html#branches", _tree(line))


@login_required
@require_GET
def answer_file(request: HttpRequest, run_id: UUID) -> HttpResponse:
    run = _visible_run(request, run_id)
    if not run.answer:
        raise Http404("This run has no answer yet.")
    name = slugify(run.title) or "answer"
    return HttpResponse(
        run.answer,
        content_type="text/markdown; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}.md"'},
    )


@login_required
@require_POST
def fork(request: HttpRequest, run_id: UUID) -> HttpResponse:
    run = _visible_run(request, run_id)
    form = ForkForm(request.POST)
    if form.is_valid():
        values = dict(form.cleaned_data)
        checkpoint = _checkpoint_of(run.workflow, values.pop("checkpoint"))
        try:
            return redirect(services.fork(checkpoint, actor=actor_of(request), **values))
        except services.ServiceError as error:
            form.add_error(None, str(error))
    return _run_page(request, run, form=form, status=422)


@login_required
@require_POST
def resume(request: HttpRequest, run_id: UUID) -> HttpResponse:
    run = _visible_run(request, run_id)
    try:
        services.resume(run, actor=actor_of(request))
    except services.ServiceError as error:
        messages.error(request, str(error))
    return redirect(run)


@login_required
@require_POST
def cancel(request: HttpRequest, run_id: UUID) -> HttpResponse:
    run = _visible_run(request, run_id)
    try:
        services.cancel(run, actor=actor_of(request))
    except services.ServiceError as error:
        messages.error(request, str(error))
    return redirect(run)


@login_required
@require_POST
def answer(request: HttpRequest, approval_id: UUID) -> HttpResponse:
    approval = get_object_or_404(
        Approval.objects.select_related("run__workflow").filter(
            run__workflow__in=Workflow.objects.visible_to(_user(request))
        ),
        id=approval_id,
    )
    form = AnswerForm(request.POST)
    if form.is_valid():
        try:
            services.answer(approval, actor=actor_of(request), **form.cleaned_data)
            return redirect(approval.run)
        except services.ServiceError as error:
            form.add_error(None, str(error))
    return _run_page(request, approval.run, form=form, status=422)


@login_required
@require_GET
def team(request: HttpRequest) -> HttpResponse:
    status = services.team_status()
    context = {"status": status, "members": _members(status), "team_file": settings.TEAM_FILE.name}
    return render(request, "workflows/team.html", context)


class Login(LoginView):
    redirect_authenticated_user = True


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def login_link(request: HttpRequest, token: str) -> HttpResponse:
    """A GET only shows a button: a link preview must not use the link up."""
    if request.method != "POST":
        return render(request, "workflows/login_link.html")
    with transaction.atomic():
        link = LoginLink.consume(token)
        if link is None:
            audit.record(actor_of(request), "user.login_link_refused")
        if link is not None and link.user.is_active:
            login(request, link.user, backend="django.contrib.auth.backends.ModelBackend")
            return redirect("home")
    return render(request, "workflows/login_link.html", {"is_refused": True}, status=403)


@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok", content_type="text/plain")


def _run_page(
    request: HttpRequest, run: Run, *, form: Any = None, status: int = 200
) -> HttpResponse:
    line = Line.of(run)
    inherited, events = line.events()
    steps = line.steps([*inherited, *events])
    context = {
        "run": line.run,
        "workflow": line.run.workflow,
        "headline": headline(line.run),
        "inherited": inherited,
        "events": events,
        "cursor": events[-1].sequence if events else 0,
        "steps": steps,
        **_tree(line),
        **_controls(request, line.run, steps, form=form),
    }
    return render(request, "workflows/run.html", context, status=status)


def _controls(
    request: HttpRequest, run: Run, steps: list[Step], *, form: Any = None
) -> dict[str, Any]:
    """The composer has one verb at a time: answer while the run waits, else fork."""
    pending = list(run.approvals.filter(decision="").order_by("created_at", "request_id"))
    at = _aim(request, steps, form)
    is_waiting = run.status == Run.Status.WAITING and bool(pending)
    is_answering = isinstance(form, AnswerForm) or (is_waiting and at is None and form is None)
    target = at or (steps[-1] if steps else None)
    if form is None:
        form = AnswerForm() if is_answering else _fork_form(run, target)
    return {
        "approval": pending[0] if is_answering and pending else None,
        "pending_count": len(pending),
        "at": at,
        "target": target,
        "latest": steps[-1] if steps else None,
        "form": form,
        "is_waiting": is_waiting,
    }


def _fork_form(run: Run, target: Step | None) -> ForkForm:
    limits = run.workflow.team.get("limits", {})
    return ForkForm(
        initial={
            "checkpoint": target.checkpoint_id if target else None,
            "max_rounds": limits.get("max_rounds", run.max_rounds),
        }
    )


def _aim(request: HttpRequest, steps: list[Step], form: Any) -> Step | None:
    """The step that the address or a refused form names; None stands for the latest."""
    wanted = request.GET.get("at")
    if isinstance(form, ForkForm):
        wanted = str(form.cleaned_data.get("checkpoint", ""))
        return next((step for step in steps if str(step.checkpoint_id) == wanted), None)
    if wanted is None:
        return None
    for step in steps:
        if str(step.checkpoint_id) == wanted:
            return step
    raise Http404("This branch has no such checkpoint.")


def _tree(line: Line) -> dict[str, Any]:
    return {
        "run": line.run,
        "branches": line.branches(),
        "has_active_branches": any(each.is_active for each in line.runs if each != line.run),
        "branches_fingerprint": _fingerprint(line),
    }


def _fingerprint(line: Line) -> str:
    """Short and the same as long as the tree is drawn the same."""
    return "-".join(f"{run.number}{run.status[:2]}" for run in line.runs)[-200:]


def _joined(parts: tuple[list[Any], list[Any]]) -> list[Any]:
    return [*parts[0], *parts[1]]


def _visible_run(request: HttpRequest, run_id: UUID) -> Run:
    """The run, or 404 for a stranger too: they learn nothing from the answer."""
    visible = Workflow.objects.visible_to(_user(request))
    return get_object_or_404(
        Run.objects.select_related("workflow").filter(workflow__in=visible), id=run_id
    )


def _checkpoint_of(workflow: Workflow, checkpoint_id: UUID) -> Checkpoint:
    runs = [str(run_id) for run_id in workflow.runs.values_list("id", flat=True)]
    return get_object_or_404(
        Checkpoint.objects.defer("manifest"), id=checkpoint_id, run_id__in=runs
    )


def _listed(request: HttpRequest, *, is_everybody: bool) -> WorkflowQuerySet:
    visible = Workflow.objects.visible_to(_user(request)).order_by("-created_at", "-id")
    return visible if is_everybody else visible.filter(owner=_user(request))


def _older_than(request: HttpRequest, before: str) -> Q:
    last = get_object_or_404(Workflow.objects.visible_to(_user(request)), id=_uuid_or_404(before))
    return Q(created_at__lt=last.created_at) | Q(created_at=last.created_at, id__lt=last.id)


def _with_figures(workflows: list[Workflow]) -> list[dict[str, Any]]:
    """One row of the list for each workflow. Two queries, however many there are."""
    runs: dict[UUID, list[Run]] = {each.id: [] for each in workflows}
    for run in Run.objects.filter(workflow__in=workflows).order_by("number"):
        runs[run.workflow_id].append(run)
    unpriced = set(
        unpriced_calls().filter(run__workflow__in=workflows).values_list("run__workflow", flat=True)
    )
    return [
        {
            "workflow": each,
            "newest": runs[each.id][-1] if runs[each.id] else None,
            "run_count": len(runs[each.id]),
            "cost_usd": None
            if each.id in unpriced
            else sum((run.cost_usd for run in runs[each.id]), Decimal(0)),
        }
        for each in workflows
    ]


def _first_values(request: HttpRequest, status: services.TeamStatus) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if status.team:
        values["max_rounds"] = status.team.limits.max_rounds
    if request.GET.get("example"):
        values |= {"task": EXAMPLE_TASK, "use_example": True}
    return values


def _start(request: HttpRequest, form: StartForm, status: services.TeamStatus) -> Run | None:
    """The started run; None when it was refused, with the reason in the form."""
    if status.team is None:
        form.add_error(None, "The team file has problems, so nothing can start. See them below.")
        return None
    with ExitStack() as stack:
        files = form.attachments()
        if form.cleaned_data["use_example"] and EXAMPLE_FILE.is_file():
            files.append((EXAMPLE_FILE.name, stack.enter_context(EXAMPLE_FILE.open("rb"))))
        try:
            return services.start(
                task=form.cleaned_data["task"],
                team=status.team,
                actor=actor_of(request),
                files=files,
                max_rounds=form.cleaned_data["max_rounds"],
                submission=form.cleaned_data["submission"],
            )
        except services.ServiceError as error:
            form.add_error(None, str(error))
            return None


def _members(status: services.TeamStatus) -> list[dict[str, Any]]:
    if status.team is None:
        return []
    everyone = [status.team.manager, *status.team.agents]
    return [
        {
            "agent": agent,
            "model": status.models.get(agent.name, ""),
            "is_manager": agent is status.team.manager,
        }
        for agent in everyone
    ]


def _uuid_or_404(text: str | None) -> UUID:
    try:
        return UUID(text or "")
    except ValueError as error:
        raise Http404("This address is not complete.") from error


def _user(request: HttpRequest) -> User:
    return cast(User, request.user)
