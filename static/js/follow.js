// Follows the end of the story while the reader is there; else counts what came on a button.
const box = document.querySelector("[data-follow]");
const button = document.querySelector("[data-latest]");
const label = document.querySelector("[data-latest-label]");
const announcer = document.querySelector("[data-announce]");
const live = document.querySelector("[data-live]");

let wasAtEnd = true;
let unseen = 0;
let unannounced = 0;

// On a small screen the whole page scrolls, not the box.
const scroller = () =>
  getComputedStyle(box).overflowY === "auto" ? box : document.scrollingElement;

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = scroller();
  return scrollHeight - scrollTop - clientHeight < 48;
}

function toEnd() {
  scroller().scrollTop = scroller().scrollHeight;
  showUnseen(0);
}

function showUnseen(count) {
  unseen = count;
  label.textContent = count ? `Latest · ${count} new` : "Latest";
  button.hidden = isAtEnd();
}

function begin() {
  const aimed = document.querySelector("[data-timeline][data-aimed] [aria-current]");
  const place = aimed
    ? document.getElementById(`checkpoint-${aimed.dataset.aim}`)
    : [...document.querySelectorAll("#transcript .answer")].at(-1);
  if (place) place.scrollIntoView({ block: aimed ? "center" : "start" });
  else if (!location.hash) toEnd();
  showUnseen(0);
}

live.addEventListener("htmx:wsBeforeMessage", () => { wasAtEnd = isAtEnd(); });
live.addEventListener("htmx:wsAfterMessage", ({ detail }) => {
  const isEvent = detail.message.startsWith("<div data-sequence");
  if (isEvent && detail.message.includes("event--message")) unannounced += 1;
  if (wasAtEnd) toEnd();
  else if (isEvent) showUnseen(unseen + 1);
});
addEventListener("scroll", () => showUnseen(isAtEnd() ? 0 : unseen), { capture: true, passive: true });
button.addEventListener("click", toEnd);
setInterval(() => {
  if (!unannounced) return;
  announcer.textContent = `${unannounced} new message${unannounced > 1 ? "s" : ""}`;
  unannounced = 0;
}, 5000);
begin();
