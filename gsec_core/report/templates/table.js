// The cluster table: a click on a heading sorts, the search field hides what does not match, here and in the galleries.
"use strict";
(() => {
  const body = document.getElementById("rows");
  const search = document.getElementById("search");
  const matches = document.getElementById("match-count");
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  const rows = Array.from(body.rows, (row) => ({
    row,
    number: row.dataset.cluster,
    key: row.dataset.key,
    words: ["name", "description", "terms"].map((part) => row.querySelector("." + part).textContent).join("\n").toLowerCase(),
    gallery: document.getElementById("cluster-" + row.dataset.cluster),
  }));

  function valueOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.classList.contains("number") ? null : cell.textContent.trim() || null;
  }

  function sort(heading, direction) {
    const column = heading.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = rows.map((entry) => [valueOf(entry.row, column), entry]);
    keyed.sort(([a, first], [b, second]) => {
      if (a === null || b === null) return (a === null) - (b === null) || first.number - second.number;  // what is not there comes last either way
      return sign * (typeof a === "number" ? a - b : collator.compare(a, b)) || first.number - second.number;
    });
    body.replaceChildren(...keyed.map(([, entry]) => entry.row));
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
  }

  for (const button of document.querySelectorAll("#table thead button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const now = heading.getAttribute("aria-sort");
      sort(heading, now ? (now === "ascending" ? "descending" : "ascending") : button.dataset.first);
    });
  }

  // The cut of the tree at so many groups: what there is before the last merges. The table is sorted by them.
  const groups = document.getElementById("groups");
  if (groups) {
    const merges = JSON.parse(document.getElementById("merges").textContent);
    groups.addEventListener("input", () => {
      const wanted = Number(groups.value);
      const cells = new Map(rows.map(({ row, number }) => [Number(number), row.querySelector("td.group")]));
      const fits = wanted >= 1 && wanted <= rows.length;
      for (const cell of document.querySelectorAll("#table .group")) cell.hidden = !fits;
      for (const cell of document.querySelectorAll("#table .terms")) cell.hidden = fits;  // groups take their place
      for (const cell of cells.values()) cell.textContent = "";
      if (!fits) return;
      const below = rows.map((_, number) => [number]);
      const alive = new Set(below.keys());
      merges.forEach(([left, right], place) => {
        below.push([...below[left], ...below[right]]);
        if (place >= rows.length - wanted) return;
        alive.delete(left);
        alive.delete(right);
        alive.add(rows.length + place);
      });
      for (const node of alive) {
        const name = node < rows.length ? "alone" : merges[node - rows.length][2];
        for (const number of below[node]) cells.get(number).textContent = name;
      }
      sort(cells.get(0).closest("table").tHead.rows[0].lastElementChild, "ascending");
    });
  }

  function filter() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter(({ row, number, key, words, gallery }) => {
      const match = wanted.every((word) => words.includes(word) || [number, key].includes(word.replace("#", "")));
      row.hidden = !match;
      if (gallery) gallery.hidden = !match;
      return match;
    });
    matches.textContent = wanted.length ? `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} match` : `${rows.length.toLocaleString("en")} clusters`;
    document.getElementById("none").hidden = found.length > 0;
    document.dispatchEvent(new CustomEvent("clusters-found", { detail: wanted.length ? new Set(found.map((entry) => Number(entry.number))) : null }));
  }

  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    search.value = "";
    filter();
  });
  search.form.addEventListener("submit", (event) => event.preventDefault());
  if (search.value) filter();  // kept by the browser over a reload
})();
