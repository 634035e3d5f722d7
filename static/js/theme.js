// Light, dark or the system's colours. Loaded before the first paint, so that nothing flashes.
(() => {
  const names = { "": "System", light: "Light", dark: "Dark" };
  const root = document.documentElement;
  const read = () => {
    try { return localStorage.getItem("theme") || ""; } catch { return ""; }
  };
  const apply = (theme) => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    for (const name of document.querySelectorAll("[data-theme-name]")) name.textContent = names[theme];
  };

  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    apply(read());
    const button = document.querySelector("[data-theme-switch]");
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      const order = Object.keys(names);
      const next = order[(order.indexOf(read()) + 1) % order.length];
      try { localStorage.setItem("theme", next); } catch { /* the choice lasts for this page */ }
      apply(next);
    });
  });
})();
