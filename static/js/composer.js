// Asks for the reader's own controls when the run's news change them, and keeps what is being typed:
// a renewal that nobody asked for passes by a composer in use; choosing another step takes the words along.
const words = (composer) => composer.querySelector("[data-draft]")?.value ?? "";
const isInUse = (composer) =>
  "aimed" in composer.dataset || words(composer) || composer.contains(document.activeElement);

document.addEventListener("htmx:wsAfterMessage", ({ detail }) => {
  if (!/^<div data-sequence="\d+" data-renews-controls/.test(detail.message)) return;
  document.querySelector("[data-controls]").dispatchEvent(new Event("renew"));
});

document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const { target, fragment } = event.detail;
  if (target.id !== "composer") return;
  const renewed = fragment.querySelector("#composer");
  if ("aimed" in renewed.dataset) {
    const draft = renewed.querySelector("[name=instruction]");
    const typed = target.querySelector("[name=instruction]");
    if (draft && typed) draft.value = typed.value;
  } else if (isInUse(target)) {
    event.preventDefault();
  }
});

// A second press of the button does nothing, even before the answer comes. The server agrees.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if ("sent" in form.dataset) event.preventDefault();
  form.dataset.sent = "";
});
