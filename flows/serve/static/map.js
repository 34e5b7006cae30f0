// The map: every image a point, drawn by WebGL. A lasso selects many. view.js moves the map and chooses a point.
"use strict";
(() => {
  const stage = document.getElementById("stage");
  const canvas = document.getElementById("map-canvas");
  const said = document.getElementById("map-said");
  const choice = document.getElementById("map-choice");
  const lassoButton = document.getElementById("map-lasso");
  const inView = document.getElementById("map-in-view");
  const outline = document.getElementById("map-outline");
  const line = outline.querySelector("polygon");
  const labels = document.getElementById("map-labels");
  const tip = document.getElementById("map-tip");
  const tipPicture = tip.querySelector("img");
  const tipImage = document.getElementById("map-tip-image");
  const tipName = document.getElementById("map-tip-name");
  const tipUri = document.getElementById("map-tip-uri");
  const selected = document.getElementById("map-selected");
  const clusters = JSON.parse(document.getElementById("map-clusters").textContent);  // [key, name, "#rrggbb"], by their place in the points
  const { points: address, run } = stage.dataset;

  const REACH = 14, MOST_LABELS = 60, MOST_CORNERS = 80, WIDE = 256;
  const gl = canvas.getContext("webgl2", { antialias: false });
  if (!gl) {
    said.textContent = "This browser has no WebGL 2, so there is no map. The clusters are listed below.";
    return;
  }

  let xs, ys, of;  // places as whole numbers to 65535, and places of their clusters in the list
  let stressed = -1;  // the cluster chosen from the list
  let lasso = null;  // corners in the unit square
  const middles = [];
  const bounds = { left: 0, right: 1, low: 0, high: 1 };
  const places = { count: 0, bounds, x: (i) => xs[i] / 65535, y: (i) => ys[i] / 65535, hidden: (i) => of[i] >= clusters.length };
  const view = mapView(canvas, stage, tip, places, {
    draw, nearest, shown, tap, open, escape, dragged: () => show(-1, false), lasso: { begins, add, end },
  });
  const { left, top, leftOf, topOf, across, up, unit, redraw, show, reset } = view;

  // Drawing -----------------------------------------------------------------------------------------------------------

  const VERTEX = `#version 300 es
    layout(location = 0) in vec2 place;
    layout(location = 1) in uint cluster;
    uniform vec2 middle, scale;
    uniform float size;
    uniform sampler2D colours;
    out vec4 colour;
    void main() {
      colour = texelFetch(colours, ivec2(cluster % ${WIDE}u, cluster / ${WIDE}u), 0);
      gl_Position = colour.a > 0.0 ? vec4((place - middle) * scale, 0, 1) : vec4(2, 2, 2, 1);
      gl_PointSize = size;
    }`;
  const FRAGMENT = `#version 300 es
    precision mediump float;
    in vec4 colour;
    out vec4 drawn;
    void main() {
      float alpha = colour.a * (1.0 - smoothstep(0.75, 1.0, 2.0 * length(gl_PointCoord - 0.5)));
      drawn = vec4(colour.rgb * alpha, alpha);
    }`;
  let uniforms, points;

  function prepare() {  // once, and again when the context was lost
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    uniforms = Object.fromEntries(["middle", "scale", "size"].map((name) => [name, gl.getUniformLocation(program, name)]));
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, points, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.UNSIGNED_SHORT, true, 6, 0);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribIPointer(1, 1, gl.UNSIGNED_SHORT, 6, 4);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    colour();
  }

  function colour() {  // a texel a cluster; those of which no place is known, and those that do not exist, are transparent
    const high = Math.ceil(65536 / WIDE);
    const texels = new Uint8Array(4 * WIDE * high);
    clusters.forEach(([, , hex], place) => {
      const rgb = parseInt(hex.slice(1), 16);
      texels.set([rgb >> 16, rgb >> 8 & 255, rgb & 255, stressed < 0 ? 215 : stressed === place ? 255 : 28], 4 * place);
    });
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, WIDE, high, 0, gl.RGBA, gl.UNSIGNED_BYTE, texels);
  }

  const diameter = () => Math.min(Math.max(700 / Math.sqrt(places.count), 1.4), 8) * Math.min(Math.sqrt(view.scale), 3);

  function draw() {
    if (!points) return;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(uniforms.middle, view.x, view.y);
    gl.uniform2f(uniforms.scale, 2 * unit() / view.width, 2 * unit() / view.height);
    gl.uniform1f(uniforms.size, diameter() * view.density);
    gl.drawArrays(gl.POINTS, 0, places.count);
    if (lasso) line.setAttribute("points", lasso.map(([x, y]) => `${left(x)},${top(y)}`).join(" "));
    label();
    place();
  }

  // Names stand in the middle of their clusters, those of many images first, as long as there is room.
  function label() {
    const { width, height } = view, taken = [];
    for (const { element, x, y, place, half } of middles) {
      const at = left(x), down = top(y);
      const there = taken.length < MOST_LABELS && at > 0 && down > 8 && at < width && down < height - 8 && (stressed < 0 || stressed === place)
        && !taken.some((box) => Math.abs(box.at - at) < box.half + half + 6 && Math.abs(box.down - down) < 20);
      element.hidden = !there;
      if (!there) continue;
      const inside = Math.min(Math.max(at, half + 4), Math.max(width - half - 4, half + 4));
      element.style.transform = `translate(${Math.round(inside - half)}px, ${Math.round(down - 10)}px)`;
      taken.push({ at: inside, down, half });
    }
  }

  // Points ------------------------------------------------------------------------------------------------------------

  let side = 1, starts, order;  // a grid of cells over the unit square: places of the points of each

  const cell = (x, y) => Math.min(side - 1, Math.floor(y * side / 65536)) * side + Math.min(side - 1, Math.floor(x * side / 65536));

  function read(buffer) {
    points = new Uint16Array(buffer);
    const count = places.count = points.length / 3;
    [xs, ys, of] = [new Uint16Array(count), new Uint16Array(count), new Uint16Array(count)];
    side = Math.min(Math.max(Math.floor(Math.sqrt(count / 4)), 1), 512);
    starts = new Uint32Array(side * side + 1);
    order = new Uint32Array(count);
    const reach = [65535, 0, 65535, 0];
    const members = clusters.map(() => []);
    for (let i = 0; i < count; i++) {
      const x = xs[i] = points[3 * i], y = ys[i] = points[3 * i + 1], c = of[i] = points[3 * i + 2];
      starts[cell(x, y) + 1]++;
      if (x < reach[0]) reach[0] = x;
      if (x > reach[1]) reach[1] = x;
      if (y < reach[2]) reach[2] = y;
      if (y > reach[3]) reach[3] = y;
      if (c < members.length) members[c].push(i);
    }
    for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
    const next = starts.slice();
    for (let i = 0; i < count; i++) order[next[cell(xs[i], ys[i])]++] = i;
    const grown = (low, high) => [low / 65535 - 0.005, Math.max(high - low, 1) / 65535 + low / 65535 + 0.005];
    [[bounds.left, bounds.right], [bounds.low, bounds.high]] = [grown(reach[0], reach[1]), grown(reach[2], reach[3])];
    members.map((of, place) => ({ of, place })).filter(({ of }) => of.length).sort((a, b) => b.of.length - a.of.length).slice(0, 500).forEach(({ of, place }) => {
      const some = of.filter((_, n) => n % Math.ceil(of.length / 2000) === 0);
      const middle = (values) => some.map((i) => values[i]).sort((a, b) => a - b)[some.length >> 1] / 65535;
      const element = document.createElement("span");
      element.textContent = clusters[place][1].length > 28 ? clusters[place][1].slice(0, 27) + "…" : clusters[place][1];
      labels.append(element);
      middles.push({ element, place, x: middle(xs), y: middle(ys), half: element.offsetWidth / 2 });
    });
  }

  function nearest(x, y) {
    if (!points) return -1;
    const far = REACH / unit(), [column, row] = [across(x), up(y)];
    const low = (value) => Math.max(0, Math.floor((value - far) * side)), high = (value) => Math.min(side - 1, Math.floor((value + far) * side));
    let best = -1, least = (far * 65535) ** 2;
    for (let r = low(row); r <= high(row); r++) {
      for (let c = low(column); c <= high(column); c++) {
        for (let n = starts[r * side + c]; n < starts[r * side + c + 1]; n++) {
          const i = order[n], distance = (xs[i] - column * 65535) ** 2 + (ys[i] - row * 65535) ** 2;
          if (distance < least && of[i] < clusters.length) [best, least] = [i, distance];
        }
      }
    }
    return best;
  }

  function within(corners) {  // how many points; even-odd rule
    const box = (axis, pick) => pick(...corners.map((corner) => corner[axis]));
    const [x0, x1, y0, y1] = [box(0, Math.min), box(0, Math.max), box(1, Math.min), box(1, Math.max)];
    let found = 0;
    for (let i = 0; i < places.count; i++) {
      const x = places.x(i), y = places.y(i);
      if (x < x0 || x > x1 || y < y0 || y > y1 || places.hidden(i)) continue;
      let inside = false;
      for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
        const [ax, ay] = corners[a], [bx, by] = corners[b];
        if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
      }
      if (inside) found++;
    }
    return found;
  }

  // One image ---------------------------------------------------------------------------------------------------------

  const known = new Map();  // point -> what the server says of it
  let asking = null;

  async function ask(i, signal) {  // what the server says of a point; undefined if it says nothing
    if (!known.has(i)) {
      try {
        const answer = await fetch(`${run}/points/${i}`, { signal });
        if (!answer.ok) throw new Error(`${answer.status} of ${answer.url}`);
        known.set(i, await answer.json());
      } catch (error) {
        if (error.name !== "AbortError" && view.current === i) tipUri.textContent = "The server does not know this image.";
      }
    }
    return known.get(i);
  }

  async function describe(i) {
    asking?.abort();
    asking = new AbortController();
    if (!await ask(i, asking.signal) || view.current !== i) return;
    const { id, uri } = known.get(i);
    tipUri.textContent = uri;
    tipPicture.src = `${run}/images/${id}/thumbnail.jpg`;
    tipImage.href = `${run}/images/${id}`;
  }

  let soon = 0;
  function shown(i, keep) {
    clearTimeout(soon);
    if (i >= 0) {
      tipName.textContent = clusters[of[i]][1];
      tipName.href = `${run}/clusters/${clusters[of[i]][0]}`;
      tipImage.removeAttribute("href");
      tipUri.textContent = "";
      tipPicture.removeAttribute("src");
      if (known.has(i) || keep) describe(i);
      else soon = setTimeout(describe, 50, i);  // not for every point that the pointer passes over
    }
    place();
  }

  const ring = document.getElementById("map-ring");
  function place() {
    const { width, height, current } = view;
    ring.hidden = current < 0;
    if (current < 0) return;
    const x = leftOf(current), y = topOf(current), size = diameter() + 8;
    Object.assign(ring.style, { width: size + "px", height: size + "px", transform: `translate(${x - size / 2}px, ${y - size / 2}px)` });
    const right = x + 16 + tip.offsetWidth <= width || x < width / 2;
    const over = right ? x + 16 : x - 16 - tip.offsetWidth;
    tip.style.left = Math.max(4, Math.min(over, width - tip.offsetWidth - 4)) + "px";
    const below = width < 2 * tip.offsetWidth ? y + 16 : y - tip.offsetHeight / 2;
    tip.style.top = Math.max(4, below + tip.offsetHeight + 4 > height && width < 2 * tip.offsetWidth ? y - 16 - tip.offsetHeight : Math.min(below, height - tip.offsetHeight - 4)) + "px";
  }

  function tap(i, event) {
    if (event.pointerType === "mouse" || (i === view.current && view.kept)) open(i);
    else show(i, true);  // a finger asks first what it is
  }

  async function open(i) {
    const image = i < 0 ? undefined : await ask(i);  // no other point that the pointer passes over ends this request
    if (image) window.location.assign(`${run}/images/${image.id}`);
  }

  // Selecting ---------------------------------------------------------------------------------------------------------

  function select(corners) {
    lasso = corners;
    outline.toggleAttribute("hidden", !corners);
    selected.hidden = !corners;
    if (corners) {
      const found = within(corners), link = selected.querySelector("a");
      link.textContent = found === 1 ? "Open the 1 image in it" : `Open the ${found.toLocaleString("en")} images in it`;
      link.hidden = !found;
      selected.querySelector("span").hidden = found > 0;
      link.href = `${run}/images?within=${corners.map(([x, y]) => `${x.toFixed(4)},${y.toFixed(4)}`).join(",")}`;
    }
    redraw();
  }

  const clipped = (corner) => corner.map((value) => Math.min(Math.max(value, -0.01), 1.01));

  function begins(event, { x, y }) {
    const drawing = event.shiftKey || lassoing();
    if (drawing) lasso = [[across(x), up(y)]];
    return drawing;
  }

  function add({ x, y }) {
    lasso.push(clipped([across(x), up(y)]));
    outline.removeAttribute("hidden");
    redraw();
  }

  function end(drawn) {
    arm(false);
    select(drawn && lasso.length > 2 ? thinned(lasso) : null);
  }

  function thinned(corners) {
    const every = Math.ceil(corners.length / MOST_CORNERS);
    return corners.filter((_, n) => n % every === 0);
  }

  const lassoing = () => lassoButton.getAttribute("aria-pressed") === "true";
  function arm(on) {
    lassoButton.setAttribute("aria-pressed", String(on));
    stage.classList.toggle("lassoing", on);
  }
  lassoButton.addEventListener("click", () => arm(!lassoing()));
  inView.addEventListener("click", () => select([[across(0), up(0)], [across(view.width), up(0)], [across(view.width), up(view.height)], [across(0), up(view.height)]].map(clipped)));
  selected.querySelector("button").addEventListener("click", () => select(null));

  function escape() {
    show(-1, false);
    arm(false);
    select(null);
  }

  function stress() {
    stressed = choice.value === "" ? -1 : Number(choice.value);
    if (points) colour();
    redraw();
  }
  choice.addEventListener("change", stress);
  function follow() {  // a link to #cluster-7 shows cluster 7
    const place = clusters.findIndex(([key]) => window.location.hash === `#cluster-${key}`);
    if (place >= 0) choice.value = String(place);
    stress();
  }
  window.addEventListener("hashchange", follow);

  // Beginning ---------------------------------------------------------------------------------------------------------

  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    prepare();
    redraw();
  });

  (async () => {
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error(`the server says ${answer.status}`);
      read(await answer.arrayBuffer());
      prepare();
    } catch (error) {
      points = undefined;
      said.textContent = `The map cannot be drawn: ${error.message}. The clusters are listed below.`;
      return;
    }
    const drawn = of.filter((place) => place < clusters.length).length;
    said.textContent = drawn === 1 ? "1 image." : `${drawn.toLocaleString("en")} images.`;
    follow();
    reset();
    stage.dataset.ready = "";
  })();
})();
