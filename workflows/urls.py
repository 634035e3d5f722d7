from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import URLPattern, path

from . import views

urlpatterns: list[URLPattern] = [
    path("", views.home, name="home"),
    path("workflows/new/", views.new_workflow, name="new_workflow"),
    path("workflows/<uuid:workflow_id>/", views.workflow, name="workflow"),
    path("workflows/<uuid:workflow_id>/branches/", views.branches, name="branches"),
    path("runs/<uuid:run_id>/", views.run, name="run"),
    path("runs/<uuid:run_id>/controls/", views.controls, name="run_controls"),
    path("runs/<uuid:run_id>/answer.md", views.answer_file, name="answer_file"),
    path("runs/<uuid:run_id>/forks/", views.fork, name="fork_run"),
    path("runs/<uuid:run_id>/resumption/", views.resume, name="resume_run"),
    path("runs/<uuid:run_id>/cancellation/", views.cancel, name="cancel_run"),
    path("approvals/<uuid:approval_id>/answer/", views.answer, name="answer_approval"),
    path("team/", views.team, name="team"),
    path("login/", views.Login.as_view(), name="login"),
    path("login/link/<str:token>/", views.login_link, name="login_link"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("healthz/", views.healthz, name="healthz"),
]
