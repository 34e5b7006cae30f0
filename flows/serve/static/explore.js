// What the pages do besides links and forms: arrow keys go on, checkboxes are chosen in ranges and counted.
"use strict";
(() => {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (event.target.closest("input, textarea, select, canvas, .scroll, [contenteditable]")) return;
    const where = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = where && document.querySelector(`a[rel="${where}"]`);
    if (!link) return;
    event.preventDefault();
    link.click();
  });

  const form = document.getElementById("chosen");
  if (!form) return;
  const boxes = Array.from(document.querySelectorAll("input[name=image]"));
  const each = boxes.filter((box) => !("keep" in box.dataset));  // what is chosen all at once
  const every = document.getElementById("every");
  const count = document.getElementById("chosen-count");
  let last = null;

  function tell() {
    const chosen = boxes.filter((box) => box.checked).length;
    count.textContent = `${chosen} selected`;
    every.checked = each.length > 0 && each.every((box) => box.checked);
    every.indeterminate = chosen > 0 && !every.checked;
  }
  for (const box of boxes) {
    box.addEventListener("click", (event) => {
      if (event.shiftKey && last && last !== box) {
        const [a, b] = [boxes.indexOf(last), boxes.indexOf(box)].sort((one, other) => one - other);
        for (const between of boxes.slice(a, b + 1)) between.checked = box.checked;
      }
      last = box;
      tell();
    });
  }
  every.closest("label").hidden = false;  // of no use without this script
  every.addEventListener("change", () => {
    for (const box of each) box.checked = every.checked;
    tell();
  });
  window.addEventListener("pageshow", tell);  // a browser keeps what was checked over a reload
  tell();
})();
