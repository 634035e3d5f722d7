// Files dropped onto the field join those chosen before; the list shows what will be sent.
const zone = document.querySelector("[data-dropzone]");
const input = zone.querySelector("input[type=file]");
const list = zone.querySelector("[data-dropzone-list]");
const size = (bytes) =>
  bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

function show() {
  const items = [...input.files].map((file) => {
    const item = document.createElement("li");
    item.textContent = `${file.name} · ${size(file.size)}`;
    return item;
  });
  list.replaceChildren(...items);
}

function add(files) {
  const all = new DataTransfer();
  for (const file of [...input.files, ...files]) all.items.add(file);
  input.files = all.files;
  show();
}

zone.addEventListener("dragover", (event) => {
  event.preventDefault();
  zone.classList.add("dropzone--over");
});
for (const name of ["dragleave", "drop"]) {
  zone.addEventListener(name, () => zone.classList.remove("dropzone--over"));
}
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  add(event.dataTransfer.files);
});
input.addEventListener("change", show);
