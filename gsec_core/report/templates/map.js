// The map: images as points on a canvas. The chosen one says what it is. view.js moves the map and chooses.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("map-data");
  const targets = read("map-targets");
  const canvas = document.getElementById("map-canvas");
  const pen = canvas.getContext("2d");
  const choice = document.getElementById("map-choice");
  const tip = document.getElementById("map-tip");
  const tipName = document.getElementById("map-tip-name");
  const tipFacts = document.getElementById("map-tip-facts");
  const tipUri = document.getElementById("map-tip-uri");
  const tipPen = tip.querySelector("canvas").getContext("2d");
  const sheets = document.querySelectorAll("img.sheet");

  const SIDE = 10000, COLUMNS = 16, A_SHEET = COLUMNS * COLUMNS;  // as the page was drawn
  const REACH = 16;
  const count = data.x.length;
  const members = new Map();
  data.cluster.forEach((cluster, i) => members.has(cluster) ? members.get(cluster).push(i) : members.set(cluster, [i]));
  const bySize = [...members].sort(([a, first], [b, second]) => second.length - first.length || a - b);
  const nameOf = (cluster) => (data.clusters[cluster] || ["cluster " + cluster])[0];
  const colourOf = (cluster) => (data.clusters[cluster] || [, "#888888"])[1];

  let hovered = null, chosen = null, found = null;  // clusters: under the pointer, picked from the list, matching the search

  const span = (values) => Math.max(...values.map((value) => Math.abs(value - SIDE / 2)), SIDE / 100);  // from the middle to the outermost point
  const reach = { x: span(data.x), y: span(data.y) };
  const bounds = { left: SIDE / 2 - reach.x, right: SIDE / 2 + reach.x, low: SIDE / 2 - reach.y, high: SIDE / 2 + reach.y };
  const points = { count, bounds, x: (i) => data.x[i], y: (i) => data.y[i], hidden: () => false };
  const view = mapView(canvas, canvas, tip, points, { draw, nearest, shown, tap: (i) => show(i, true), open, escape: () => show(-1, false) });
  const { leftOf, topOf, redraw, show } = view;

  // Drawing -----------------------------------------------------------------------------------------------------------

  const stressed = () => hovered ?? (view.current >= 0 ? data.cluster[view.current] : null) ?? chosen;

  function faded(cluster) {
    const one = stressed();
    if (one !== null) return cluster !== one;
    return found !== null && !found.has(cluster);
  }

  function draw() {
    const { width, height, density, current } = view;
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.clearRect(0, 0, width, height);
    const radius = Math.min(Math.max(60 / Math.sqrt(count), 2.2), 5) * Math.min(Math.sqrt(view.scale), 2);
    for (const dim of [true, false]) {
      pen.globalAlpha = dim ? 0.18 : 0.85;
      const size = dim || stressed() === null ? radius : 1.4 * radius;
      for (const [cluster, points] of bySize) {
        if (faded(cluster) !== dim) continue;
        pen.fillStyle = colourOf(cluster);
        pen.beginPath();
        for (const i of points) {
          const x = leftOf(i), y = topOf(i);
          if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
          pen.moveTo(x + size, y);
          pen.arc(x, y, size, 0, 2 * Math.PI);
        }
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    if (current < 0) label();
    else {
      pen.strokeStyle = getComputedStyle(canvas).color;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(leftOf(current), topOf(current), 1.4 * radius + 3, 0, 2 * Math.PI);
      pen.stroke();
      place();
    }
  }

  // Names stand in the middle of their clusters, those of many images first, as long as there is room.
  function label() {
    const { width, height } = view;
    const style = getComputedStyle(canvas);
    const taken = [];
    pen.font = `600 12px ${style.fontFamily}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    pen.lineWidth = 4;
    pen.strokeStyle = style.backgroundColor;
    pen.fillStyle = style.color;
    for (const [cluster, points] of bySize) {
      if (faded(cluster)) continue;
      const middle = (of) => points.map(of).sort((a, b) => a - b)[points.length >> 1];
      const x = middle(leftOf), y = middle(topOf);
      if (x < 0 || y < 0 || x > width || y > height) continue;
      const name = nameOf(cluster).length > 28 ? nameOf(cluster).slice(0, 27) + "…" : nameOf(cluster);
      const half = pen.measureText(name).width / 2 + 4;
      const at = Math.min(Math.max(x, half), Math.max(width - half, half));
      if (taken.some((box) => Math.abs(box.x - at) < box.half + half && Math.abs(box.y - y) < 17)) continue;
      taken.push({ x: at, y, half });
      pen.strokeText(name, at, y);
      pen.fillText(name, at, y);
      if (taken.length >= 60) break;
    }
  }

  // One image ---------------------------------------------------------------------------------------------------------

  function nearest(x, y) {
    let best = -1, least = REACH * REACH;
    for (let i = 0; i < count; i++) {
      const far = (leftOf(i) - x) ** 2 + (topOf(i) - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  function shown(i) {
    if (i >= 0) {
      const cluster = data.cluster[i];
      const confidence = data.confidence[i];
      tipName.textContent = nameOf(cluster);
      if (targets[cluster]) tipName.href = targets[cluster];
      else tipName.removeAttribute("href");
      tipFacts.textContent = `No. ${cluster} · confidence ${confidence === null ? "–" : confidence.toFixed(3)}`;
      tipUri.textContent = data.uri[i];
      picture(i);
    }
    redraw();
  }

  function picture(i) {
    const wide = data.width[i], high = data.height[i];
    const shown = tipPen.canvas;
    shown.hidden = !wide;
    if (!wide) return;
    const grown = 96 / Math.max(wide, high), { density } = view;
    shown.width = Math.round(wide * grown * density);
    shown.height = Math.round(high * grown * density);
    shown.style.width = Math.round(wide * grown) + "px";
    shown.style.height = Math.round(high * grown) + "px";
    const sheet = sheets[Math.floor(i / A_SHEET)];
    const x = (i % COLUMNS) * data.tile, y = Math.floor(i % A_SHEET / COLUMNS) * data.tile;
    const paint = () => {
      if (view.current === i) tipPen.drawImage(sheet, x, y, wide, high, 0, 0, shown.width, shown.height);
    };
    if (sheet.complete) paint();
    else sheet.addEventListener("load", paint, { once: true });
  }

  function place() {
    const { width, height } = view, x = leftOf(view.current), y = topOf(view.current);
    const fitsRight = x + 14 + tip.offsetWidth <= width, fitsLeft = x - 14 - tip.offsetWidth >= 0;
    const outward = x > width / 2 ? fitsRight || !fitsLeft : !fitsLeft;  // away from the middle, where the most is hidden
    const across = outward ? x + 14 : x - 14 - tip.offsetWidth;
    const above = !fitsRight && !fitsLeft;
    const down = above ? (y + 14 + tip.offsetHeight <= height ? y + 14 : y - 14 - tip.offsetHeight) : y - tip.offsetHeight / 2;
    tip.style.left = Math.max(4, Math.min(above ? x - tip.offsetWidth / 2 : across, width - tip.offsetWidth - 4)) + "px";
    tip.style.top = Math.max(4, Math.min(down, height - tip.offsetHeight - 4)) + "px";
  }

  function open(i) {
    const target = i >= 0 && targets[data.cluster[i]];
    if (target) window.location.assign(target);
  }

  tip.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    show(-1, false);
    canvas.focus();
  });

  // Clusters ----------------------------------------------------------------------------------------------------------

  for (const cluster of Object.keys(data.clusters)) {
    const option = document.createElement("option");
    option.value = cluster;
    option.textContent = `${cluster} · ${nameOf(cluster)}`;
    choice.append(option);
  }
  function choose(cluster) {
    chosen = cluster;
    choice.value = cluster === null ? "" : String(cluster);
    show(-1, false);
    redraw();
  }
  choice.addEventListener("change", () => choose(choice.value === "" ? null : Number(choice.value)));
  document.addEventListener("pointerover", (event) => {
    const over = event.target.closest?.("[data-cluster]");
    const cluster = over ? Number(over.dataset.cluster) : null;
    if (cluster === hovered) return;
    hovered = cluster;
    redraw();
  });
  document.addEventListener("clusters-found", (event) => {
    found = event.detail;
    redraw();
  });
  function follow() {  // a link to #map-7 shows cluster 7
    const asked = /^#map-(\d+)$/.exec(window.location.hash);
    if (!asked || !data.clusters[asked[1]]) return;
    choose(Number(asked[1]));
    document.getElementById("map").scrollIntoView();
  }
  window.addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    if (event.target.closest?.(`a[href="${window.location.hash || "#"}"]`)) follow();  // the same place again
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  follow();
})();
