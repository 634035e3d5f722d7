// Times in the reader's own zone, and clocks that tick. New ones are found each second.
const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const pad = (number) => String(number).padStart(2, "0");

function localise(time) {
  time.title = time.textContent;
  time.textContent = format.format(new Date(time.dateTime));
  delete time.dataset.localTime;
}

function tick(clock) {
  const seconds = Math.max(0, Math.floor((Date.now() - new Date(clock.dataset.since)) / 1000));
  const hours = Math.floor(seconds / 3600);
  const rest = `${pad(Math.floor(seconds / 60) % 60)}:${pad(seconds % 60)}`;
  clock.textContent = hours ? `${hours}:${rest}` : rest;
}

function refresh() {
  document.querySelectorAll("time[data-local-time]").forEach(localise);
  document.querySelectorAll("[data-since]").forEach(tick);
}

refresh();
setInterval(refresh, 1000);
