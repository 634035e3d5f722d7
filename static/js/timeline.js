// One tab stop for the timeline; J and K, arrows, Home and End move along it, F goes to the composer.
// Choosing a step aims the composer (htmx) and scrolls the story there.
const timeline = document.querySelector("[data-timeline]");
const rail = document.querySelector("[data-rail]");
const links = () =>
  [...timeline.querySelectorAll("[data-aim]")].filter((link) => link.offsetParent);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function mark(current) {
  for (const link of links()) {
    link.tabIndex = link === current ? 0 : -1;
    if (link === current) link.setAttribute("aria-current", "step");
    else link.removeAttribute("aria-current");
  }
}

function move(to) {
  for (const link of links()) link.tabIndex = link === to ? 0 : -1;
  to.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const all = links();
  const at = all.indexOf(document.activeElement);
  const targets = {
    j: all[at + 1], ArrowDown: all[at + 1], k: all[at - 1], ArrowUp: all[at - 1],
    Home: all[0], End: all.at(-1),
  };
  if (event.key === "f") document.querySelector("#composer [data-draft]")?.focus();
  else if (targets[event.key]) move(targets[event.key]);
  else return;
  event.preventDefault();
}

document.addEventListener("click", (event) => {
  const chosen = event.target.closest("[data-aim]");
  if (!chosen || event.ctrlKey || event.metaKey || event.shiftKey) return;
  timeline.dataset.aimed = "";
  mark(links().find((link) => link.dataset.aim === chosen.dataset.aim));
  const place = document.getElementById(`checkpoint-${chosen.dataset.aim}`);
  place?.scrollIntoView({ block: "center", behavior: calm.matches ? "auto" : "smooth" });
});

timeline.addEventListener("keydown", onKey);
new MutationObserver(() => {
  const current = timeline.querySelector("[aria-current=step]");
  mark("aimed" in timeline.dataset ? current : links().at(-1));
}).observe(timeline, { childList: true });
mark(timeline.querySelector("[aria-current=step]") ?? links().at(-1));
if (matchMedia("(max-width: 48rem)").matches) rail.open = false;
