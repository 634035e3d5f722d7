"""What people type. Services decide what is allowed; a form keeps the words until they are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import IO, Any

from django import forms
from django.core.files.uploadedfile import UploadedFile

from .models import Approval, Run


class FilesInput(forms.ClearableFileInput):
    allow_multiple_selected = True


class FilesField(forms.FileField):
    """Any number of files, as a list."""

    widget = FilesInput

    def clean(self, data: Any, initial: Any = None) -> Any:
        files: Sequence[UploadedFile[Any]] = data if isinstance(data, list | tuple) else [data]
        return [super(FilesField, self).clean(file, initial) for file in files if file]


class SubmissionForm(forms.Form):
    """A form that may be sent twice: `submission` names what it makes, so it is made once."""

    submission = forms.UUIDField(widget=forms.HiddenInput, initial=uuid.uuid4)


class StartForm(SubmissionForm):
    task = forms.CharField(
        label="Task",
        help_text="What should the team find out? Name files, columns and periods.",
        widget=forms.Textarea({"rows": 5, "autofocus": True}),
    )
    upload = FilesField(label="Files", required=False)
    use_example = forms.BooleanField(label="Use the example file", required=False)
    max_rounds = forms.IntegerField(
        label="Rounds, at most",
        help_text="In a round the manager decides and one agent works.",
        min_value=1,
    )

    def attachments(self) -> list[tuple[str, IO[bytes]]]:
        return [(file.name or "file", file) for file in self.cleaned_data["upload"]]


class ForkForm(SubmissionForm):
    checkpoint = forms.UUIDField(widget=forms.HiddenInput)
    instruction = forms.CharField(
        label="New instruction",
        widget=forms.Textarea(
            {"rows": 2, "placeholder": "Continue the analysis, focus on EMEA", "data-draft": True}
        ),
    )
    mode = forms.ChoiceField(
        label="Mode",
        choices=[
            (Run.Mode.STEER, "Steer: keep the plan, go on with the instruction"),
            (Run.Mode.REPLAN, "Replan: the manager makes a new plan first"),
        ],
        initial=Run.Mode.STEER,
    )
    max_rounds = forms.IntegerField(label="More rounds, at most", min_value=1)


class AnswerForm(forms.Form):
    decision = forms.ChoiceField(choices=Approval.Decision)
    comment = forms.CharField(
        label="Your words",
        required=False,
        widget=forms.Textarea({"rows": 2, "data-draft": True}),
    )
