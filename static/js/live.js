// Keeps the page's place in the run: sends its cursor on every open, applies each event once and in
// order, acknowledges. The server may send anything twice; only the next sequence is let through.
const live = document.querySelector("[data-live]");
const note = document.querySelector("[data-connection]");
const HTMX_RECONNECTS_ON = [1006, 1011, 1012, 1013];
const ENDINGS = {
  4400: "Live updates stopped: this page is out of date. Reload it.",
  4401: "Live updates stopped: you are logged out. Reload to log in.",
  4404: "Live updates stopped: this run is no longer open to you.",
};

let last = Number(live.dataset.cursor);
let acknowledged = last;
let timer = 0;
let socket = null;

function say(text) {
  note.textContent = text;
  note.hidden = !text;
}

function acknowledge() {
  clearTimeout(timer);
  timer = 0;
  acknowledged = last;
  socket?.sendImmediately(JSON.stringify({ ack: last }));
}

live.addEventListener("htmx:wsOpen", ({ detail }) => {
  socket = detail.socketWrapper;
  say("");
  socket.sendImmediately(JSON.stringify({ after: last }));
});

live.addEventListener("htmx:wsBeforeMessage", (event) => {
  const found = /^<div data-sequence="(\d+)"/.exec(event.detail.message);
  if (!found) return;
  const sequence = Number(found[1]);
  if (sequence === last + 1) last = sequence;
  else event.preventDefault();
  if (sequence > last) location.reload(); // a gap: the page knows less than the server believes
});

live.addEventListener("htmx:wsAfterMessage", () => {
  if (last - acknowledged >= 16) acknowledge();
  else timer ||= setTimeout(acknowledge, 200);
});

live.addEventListener("htmx:wsClose", ({ detail }) => {
  const { code } = detail.event;
  socket = null;
  say(ENDINGS[code] ?? "Reconnecting, nothing is lost");
  if (code in ENDINGS || HTMX_RECONNECTS_ON.includes(code)) return;
  setTimeout(detail.socketWrapper.reconnect, 500 + 1000 * Math.random());
});

// A page out of the browser's back cache has a dead socket and an old story.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
