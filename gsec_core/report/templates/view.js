// What the maps of reports and of the explorer share: a view that pointers, the wheel, keys and buttons move, and the point that is chosen in it.
"use strict";

// `box` gets classes that say how the view is; `tip` is shown while a point is chosen.
// `points`: their `count`, the place `x(i)`, `y(i)` of each, with y upwards, the `bounds` of all places, and whether one is `hidden(i)`.
// `does`: what each map does in its own way. It can `draw()`, and find the point `nearest(x, y)` to a pixel, or -1. `shown(i, keep)` is called when another
// point, or none, is chosen; `tap(i, event)`, `open(i)` and `escape()` for a click, Enter and Escape; `dragged()`, if there is one, when the map is dragged.
// A `lasso`, if there is one, says whether it `begins(event, here)` instead of a move; then it gets each pixel by `add(here)`, and its `end(drawn)`.
function mapView(canvas, box, tip, points, does) {
  const MARGIN = 24, DEEPEST = 60;
  const view = { width: 1, height: 1, density: 1, scale: 1, x: 0, y: 0, current: -1, kept: false, left, top, leftOf, topOf, across, up, unit, redraw, show, reset };
  let queued = false;

  function unit() {  // pixels; equal on both axes
    const { left, right, low, high } = points.bounds;
    return Math.min((view.width - 2 * MARGIN) / (right - left), (view.height - 2 * MARGIN) / (high - low)) * view.scale;
  }
  function left(x) { return view.width / 2 + (x - view.x) * unit(); }
  function top(y) { return view.height / 2 - (y - view.y) * unit(); }
  function leftOf(i) { return left(points.x(i)); }
  function topOf(i) { return top(points.y(i)); }
  function across(pixel) { return view.x + (pixel - view.width / 2) / unit(); }
  function up(pixel) { return view.y - (pixel - view.height / 2) / unit(); }

  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      does.draw();
    });
  }

  // Moving ------------------------------------------------------------------------------------------------------------

  function settle() {
    const held = (value, low, high) => {
      const middle = (low + high) / 2, free = (high - low) / 2 * (1 - 1 / view.scale);
      return Math.min(Math.max(value, middle - free), middle + free);
    };
    view.x = held(view.x, points.bounds.left, points.bounds.right);
    view.y = held(view.y, points.bounds.low, points.bounds.high);
    box.classList.toggle("zoomed", view.scale > 1);
    redraw();
  }

  function zoom(factor, x = view.width / 2, y = view.height / 2) {
    const [column, row] = [across(x), up(y)];
    view.scale = Math.min(Math.max(view.scale * factor, 1), Math.max(DEEPEST, Math.sqrt(points.count)));
    view.x += column - across(x);
    view.y += row - up(y);
    settle();
  }

  function pan(x, y) {
    view.x -= x / unit();
    view.y += y / unit();
    settle();
  }

  function reset() {
    const { left, right, low, high } = points.bounds;
    Object.assign(view, { scale: 1, x: (left + right) / 2, y: (low + high) / 2 });
    settle();
  }

  // The chosen point --------------------------------------------------------------------------------------------------

  function show(i, keep) {  // keep: it stays when the pointer leaves
    view.kept = keep && i >= 0;
    tip.classList.toggle("kept", view.kept);
    if (i === view.current) return;
    view.current = i;
    box.classList.toggle("over", i >= 0);
    tip.hidden = i < 0;
    does.shown(i, keep);
  }

  function step([dx, dy]) {
    let best = -1, least = Infinity;
    const { current } = view;
    const [x0, y0] = current >= 0 ? [leftOf(current), topOf(current)] : [view.width / 2, view.height / 2];
    for (let i = 0; i < points.count; i++) {
      if (i === current || points.hidden(i)) continue;
      const x = leftOf(i) - x0, y = topOf(i) - y0;
      const along = current >= 0 ? x * dx + y * dy : Math.hypot(x, y), aside = current >= 0 ? Math.abs(x * dy) + Math.abs(y * dx) : 0;
      if (current >= 0 && (along < 0.5 || aside > 1.5 * along)) continue;
      if (along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
    }
    if (best < 0) return;
    show(best, true);
    const x = leftOf(best), y = topOf(best);
    pan(Math.max(0, MARGIN - x) - Math.max(0, x - view.width + MARGIN), Math.max(0, MARGIN - y) - Math.max(0, y - view.height + MARGIN));
  }

  // Pointer -----------------------------------------------------------------------------------------------------------

  const held = new Map();  // pointers that are down: where they were last
  let moved = 0, apart = 0, drawing = false;
  const at = (event) => {
    const frame = canvas.getBoundingClientRect();
    return { x: event.clientX - frame.left - canvas.clientLeft, y: event.clientY - frame.top - canvas.clientTop };
  };
  const spread = () => {
    const [a, b] = [...held.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;  // a menu, or another tab: nothing of the map's
    const here = at(event);
    held.set(event.pointerId, here);
    canvas.setPointerCapture(event.pointerId);
    drawing = held.size === 1 && Boolean(does.lasso?.begins(event, here));
    if (held.size === 1) moved = 0;
    if (held.size === 2) apart = spread();
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = at(event), before = held.get(event.pointerId);
    if (!before) {
      if (!view.kept) show(does.nearest(here.x, here.y), false);
      return;
    }
    held.set(event.pointerId, here);
    moved += Math.hypot(here.x - before.x, here.y - before.y);
    if (held.size === 2) {
      const now = spread(), [a, b] = [...held.values()];
      zoom(now / (apart || now), (a.x + b.x) / 2, (a.y + b.y) / 2);
      apart = now;
    } else if (drawing) {
      does.lasso.add(here);
    } else if (moved > 5) {
      does.dragged?.();
      pan(here.x - before.x, here.y - before.y);
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const here = at(event);
    if (!held.delete(event.pointerId) || held.size) return;
    if (drawing) does.lasso.end(moved > 5);
    else if (moved <= 5) does.tap(does.nearest(here.x, here.y), event);
    drawing = false;
  });
  canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => {
    if (!view.kept && !held.size) show(-1, false);
  });
  canvas.addEventListener("wheel", (event) => {
    const factor = Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015));
    const wanted = event.ctrlKey || event.metaKey || document.activeElement === canvas;  // a page scrolled over the map goes on scrolling
    if (!wanted || (factor < 1 && view.scale === 1)) return;
    event.preventDefault();
    const here = at(event);
    zoom(factor, here.x, here.y);
  }, { passive: false });

  // Keys, buttons and the size of the window --------------------------------------------------------------------------

  const AHEAD = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const KEYS = { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset, Enter: () => does.open(view.current), Escape: does.escape };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !points.count) return;
    if (AHEAD[event.key]) step(AHEAD[event.key]);
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", { in: () => zoom(1.5), out: () => zoom(1 / 1.5), reset }[button.dataset.zoom]);
  }
  new ResizeObserver(() => {
    view.density = window.devicePixelRatio || 1;
    [view.width, view.height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [Math.round(view.width * view.density), Math.round(view.height * view.density)];
    does.draw();
  }).observe(canvas);
  reset();
  return view;
}
