// The map: images as points on a canvas. Pointing, tapping or the arrow keys choose one; it says what it is.
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
  const MARGIN = 24, REACH = 16, DEEPEST = 60;
  const count = data.x.length;
  const members = new Map();
  data.cluster.forEach((cluster, i) => members.has(cluster) ? members.get(cluster).push(i) : members.set(cluster, [i]));
  const bySize = [...members].sort(([a, first], [b, second]) => second.length - first.length || a - b);
  const nameOf = (cluster) => (data.clusters[cluster] || ["cluster " + cluster])[0];
  const colourOf = (cluster) => (data.clusters[cluster] || [, "#888888"])[1];

  let width = 0, height = 0;
  let view = { scale: 1, x: SIDE / 2, y: SIDE / 2 };  // zoom, and what lies in the middle
  let current = -1, kept = false;  // the chosen point; whether it stays when the pointer leaves
  let hovered = null, chosen = null, found = null;  // clusters: under the pointer, picked from the list, matching the search
  let queued = false;

  // Places ------------------------------------------------------------------------------------------------------------

  const span = (values) => Math.max(...values.map((value) => Math.abs(value - SIDE / 2)), SIDE / 100);
  const reach = { x: span(data.x), y: span(data.y) };  // from the middle to the outermost point
  const unit = () => Math.min((width / 2 - MARGIN) / reach.x, (height / 2 - MARGIN) / reach.y) * view.scale;  // pixels; equal on both axes
  const left = (i) => width / 2 + (data.x[i] - view.x) * unit();
  const top = (i) => height / 2 - (data.y[i] - view.y) * unit();

  function zoom(factor, x = width / 2, y = height / 2) {
    const before = unit();
    view.scale = Math.min(Math.max(view.scale * factor, 1), DEEPEST);
    const shift = 1 / before - 1 / unit();
    view.x += (x - width / 2) * shift;
    view.y -= (y - height / 2) * shift;
    settle();
  }

  function pan(x, y) {
    view.x -= x / unit();
    view.y += y / unit();
    settle();
  }

  function settle() {
    for (const axis of ["x", "y"]) {
      const free = reach[axis] * (1 - 1 / view.scale);
      view[axis] = Math.min(Math.max(view[axis], SIDE / 2 - free), SIDE / 2 + free);
    }
    canvas.classList.toggle("zoomed", view.scale > 1);
    redraw();
  }

  function reset() {
    view = { scale: 1, x: SIDE / 2, y: SIDE / 2 };
    settle();
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      draw();
    });
  }

  const stressed = () => hovered ?? (current >= 0 ? data.cluster[current] : null) ?? chosen;

  function faded(cluster) {
    const one = stressed();
    if (one !== null) return cluster !== one;
    return found !== null && !found.has(cluster);
  }

  function draw() {
    const density = window.devicePixelRatio || 1;
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
          const x = left(i), y = top(i);
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
      pen.arc(left(current), top(current), 1.4 * radius + 3, 0, 2 * Math.PI);
      pen.stroke();
      place();
    }
  }

  // Names stand in the middle of their clusters, those of many images first, as long as there is room.
  function label() {
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
      const x = middle(left), y = middle(top);
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
      const far = (left(i) - x) ** 2 + (top(i) - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  function show(i, keep) {
    kept = keep && i >= 0;
    tip.classList.toggle("kept", kept);
    if (i === current) return;
    current = i;
    canvas.classList.toggle("over", i >= 0);
    tip.hidden = i < 0;
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
    const grown = 96 / Math.max(wide, high);
    const density = window.devicePixelRatio || 1;
    shown.width = Math.round(wide * grown * density);
    shown.height = Math.round(high * grown * density);
    shown.style.width = Math.round(wide * grown) + "px";
    shown.style.height = Math.round(high * grown) + "px";
    const sheet = sheets[Math.floor(i / A_SHEET)];
    const x = (i % COLUMNS) * data.tile, y = Math.floor(i % A_SHEET / COLUMNS) * data.tile;
    const paint = () => {
      if (current === i) tipPen.drawImage(sheet, x, y, wide, high, 0, 0, shown.width, shown.height);
    };
    if (sheet.complete) paint();
    else sheet.addEventListener("load", paint, { once: true });
  }

  function place() {
    const x = left(current), y = top(current);
    const fitsRight = x + 14 + tip.offsetWidth <= width, fitsLeft = x - 14 - tip.offsetWidth >= 0;
    const outward = x > width / 2 ? fitsRight || !fitsLeft : !fitsLeft;  // away from the middle, where the most is hidden
    const across = outward ? x + 14 : x - 14 - tip.offsetWidth;
    const above = !fitsRight && !fitsLeft;
    const down = above ? (y + 14 + tip.offsetHeight <= height ? y + 14 : y - 14 - tip.offsetHeight) : y - tip.offsetHeight / 2;
    tip.style.left = Math.max(4, Math.min(above ? x - tip.offsetWidth / 2 : across, width - tip.offsetWidth - 4)) + "px";
    tip.style.top = Math.max(4, Math.min(down, height - tip.offsetHeight - 4)) + "px";
  }

  function open() {
    const target = current >= 0 && targets[data.cluster[current]];
    if (target) window.location.assign(target);
  }

  // Pointer -----------------------------------------------------------------------------------------------------------

  const held = new Map();  // pointers that are down: where they were last
  let moved = 0, apart = 0;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left - canvas.clientLeft, y: event.clientY - box.top - canvas.clientTop };
  };
  const spread = () => {
    const [a, b] = [...held.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };

  canvas.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, at(event));
    canvas.setPointerCapture(event.pointerId);
    if (held.size === 1) moved = 0;
    if (held.size === 2) apart = spread();
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = at(event);
    const before = held.get(event.pointerId);
    if (!before) {
      if (!kept) show(nearest(here.x, here.y), false);
      return;
    }
    held.set(event.pointerId, here);
    moved += Math.hypot(here.x - before.x, here.y - before.y);
    if (held.size === 2) {
      const now = spread();
      const [a, b] = [...held.values()];
      zoom(now / (apart || now), (a.x + b.x) / 2, (a.y + b.y) / 2);
      apart = now;
    } else if (moved > 5) {
      pan(here.x - before.x, here.y - before.y);
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const here = at(event);
    if (held.delete(event.pointerId) && held.size === 0 && moved <= 5) {
      const i = nearest(here.x, here.y);
      show(i, true);
    }
  });
  canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => {
    if (!kept && !held.size) show(-1, false);
  });
  canvas.addEventListener("wheel", (event) => {
    const factor = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015));
    const wanted = event.ctrlKey || event.metaKey || document.activeElement === canvas;  // a page scrolled over the map goes on scrolling
    if (!wanted || (factor < 1 && view.scale === 1)) return;
    event.preventDefault();
    const here = at(event);
    zoom(factor, here.x, here.y);
  }, { passive: false });

  // Keys --------------------------------------------------------------------------------------------------------------

  const AHEAD = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function step([dx, dy]) {
    let best = -1, least = Infinity;
    const start = current >= 0 ? { x: left(current), y: top(current) } : null;
    for (let i = 0; i < count; i++) {
      const x = left(i) - (start ? start.x : width / 2), y = top(i) - (start ? start.y : height / 2);
      const along = start ? x * dx + y * dy : Math.hypot(x, y);
      const aside = start ? Math.abs(x * dy) + Math.abs(y * dx) : 0;
      if (start && (along < 0.5 || aside > 1.5 * along)) continue;
      const far = along + 2 * aside;
      if (i !== current && far < least) [best, least] = [i, far];
    }
    if (best < 0) return;
    show(best, true);
    const x = left(best), y = top(best);
    pan(Math.max(0, MARGIN - x) - Math.max(0, x - width + MARGIN), Math.max(0, MARGIN - y) - Math.max(0, y - height + MARGIN));
  }

  const KEYS = { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset, Enter: open, Escape: () => show(-1, false) };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (AHEAD[event.key]) step(AHEAD[event.key]);
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  });
  tip.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    show(-1, false);
    canvas.focus();
  });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", { in: () => zoom(1.5), out: () => zoom(1 / 1.5), reset }[button.dataset.zoom]);
  }

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

  new ResizeObserver(() => {
    const density = window.devicePixelRatio || 1;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [Math.round(width * density), Math.round(height * density)];
    draw();
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  follow();
})();
