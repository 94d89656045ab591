"use strict";
const UNKNOWN = [128, 128, 128], TICKS = 5, CLOUD_POINTS = 60000, NEARER = 0.98;  // NEARER: share of the points that a cloud shows

// -- tables: a click on a column's header sorts by it -----------------------------------------------------------------

for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.ariaSort !== "descending";
      const key = row => {
        const text = row.cells[column].textContent.trim(), number = Number(text);
        return text !== "" && Number.isFinite(number) ? number : text;
      };
      const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")  // missing values come last
        : (down ? -1 : 1) * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b));
      const rows = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)));
      table.tBodies[0].append(...rows);
      heads.forEach(other => { other.ariaSort = null; });
      head.ariaSort = down ? "descending" : "ascending";
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}

// -- values: pictures that hold px --------------------------------------------------------------------------------------

function context(width, height) {
  return Object.assign(document.createElement("canvas"), {width, height}).getContext("2d", {willReadFrequently: true});
}

async function bytesOf(image) {
  await image.decode();
  const paper = context(image.naturalWidth, image.naturalHeight);
  paper.drawImage(image, 0, 0);
  return paper.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data;
}

async function valuesOf(image) {
  if (!image) return null;
  const bytes = await bytesOf(image), values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = (256 * bytes[4 * i] + bytes[4 * i + 1]) / PAGE.steps || NaN;
  return values;
}

function draw(canvas, values, {start, end}) {
  const picture = new ImageData(canvas.width, canvas.height), turbo = PAGE.turbo;
  for (let i = 0; i < values.length; i++) {
    const at = 3 * Math.max(0, Math.min(255, Math.round(255 * (values[i] - start) / (end - start)))), unknown = Number.isNaN(values[i]);
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = unknown ? UNKNOWN[c] : turbo[at + c];
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

const short = number => String(Number(number.toPrecision(3)));
const farthest = camera => camera.fx * camera.baseline;  // m, at 1 px: beyond it an error of 1 px exceeds the disparity
const metres = (camera, px) => px + camera.doffs > 0 ? camera.fx * camera.baseline / (px + camera.doffs) : Infinity;

function scale(place, {start, end}, camera, layers) {
  const stops = Array.from({length: 17}, (_, n) => 3 * Math.min(255, 16 * n));
  const colours = stops.map(at => `rgb(${PAGE.turbo.slice(at, at + 3).join()})`);
  place.querySelector(".bar").style.background = `linear-gradient(90deg,${colours.join()})`;
  const above = layers.some(values => values?.some(value => value > end));
  const ticks = Array.from({length: TICKS}, (_, n) => {
    const px = start + (end - start) * n / (TICKS - 1), depth = camera ? metres(camera, px) : null, tick = document.createElement("div");
    const last = n === TICKS - 1;
    tick.textContent = (last && above ? "≥ " : "") + short(px) + (last ? " px" : "") + (camera ? "\n" + (Number.isFinite(depth) ? `${short(depth)} m` : "∞") : "");
    tick.style.setProperty("--at", `${100 * n / (TICKS - 1)}%`);
    return tick;
  });
  place.querySelector(".ticks").replaceChildren(...ticks);
}

// -- pairs: sliders and the pointer work in all pictures of a group ---------------------------------------------------------

async function loaded(element) {
  const [width, height] = element.dataset.size.split(",").map(Number);
  const values = await valuesOf(element.querySelector(".values")), truth = await valuesOf(element.querySelector(".truth"));
  const error = truth && values.map((px, i) => Math.abs(px - truth[i]));
  return {element, width, height, layers: {values, truth, error}, output: element.querySelector("output")};
}

const ERRORS = {start: 0, end: PAGE.error_px};

function recolour(group, views, range) {
  for (const view of views)
    for (const canvas of view.element.querySelectorAll("canvas[data-layer]")) {
      const layer = canvas.dataset.layer;
      draw(canvas, view.layers[layer], layer === "error" ? ERRORS : range);
    }
  scale(group.querySelector(".scale"), range, group.camera, views.flatMap(({layers}) => [layers.values, layers.truth]));
}

function said(view, camera, x, y) {
  const at = Math.min(view.height - 1, Math.floor(y * view.height)) * view.width +
    Math.min(view.width - 1, Math.floor(x * view.width));
  const px = view.layers.values[at], truth = view.layers.truth?.[at];
  const share = view.element.dataset.fullWidth / view.width, whole = (at, size) => Math.floor(at * Math.round(size * share));
  let text = "disparity " + (Number.isNaN(px) ? "unknown" : `${px.toFixed(1)} px`);
  if (camera && Number.isFinite(px)) {
    const depth = metres(camera, px), limit = farthest(camera);
    text += depth <= limit ? `, depth ${depth.toFixed(2)} m` : `, depth above ${short(limit)} m`;
  }
  if (view.layers.truth)
    text += Number.isNaN(truth) ? ", no ground truth" : `, truth ${truth.toFixed(1)} px, error ${Math.abs(px - truth).toFixed(2)} px`;
  return `${text} at (${whole(x, view.width)}, ${whole(y, view.height)})`;
}

async function start(group) {
  group.camera = JSON.parse(group.dataset.camera);
  const views = await Promise.all([...group.querySelectorAll(".view")].map(loaded));
  const ends = ["start", "end"].map(name => group.querySelector(`input.${name}`)), hint = views[0].output.textContent;
  const recoloured = () => {
    const [start, end] = ends.map(input => Number(input.value));
    if (end > start) recolour(group, views, {start, end});
  };
  recoloured();
  for (const input of ends) input.addEventListener("change", recoloured);
  for (const place of group.querySelectorAll(".errors")) scale(place, ERRORS, null, views.map(({layers}) => layers.error));
  for (const both of group.querySelectorAll(".both")) {
    const slider = both.querySelector("input");
    slider.addEventListener("input", () => {
      for (const other of group.querySelectorAll(".both input")) other.value = slider.value;
      group.style.setProperty("--cut", slider.value + "%");
    });
    both.addEventListener("pointermove", event => {
      const box = both.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
      group.classList.add("pointed");
      group.style.setProperty("--x", `${100 * x}%`);
      group.style.setProperty("--y", `${100 * y}%`);
      for (const view of views) view.output.textContent = said(view, group.camera, x, y);
    });
    both.addEventListener("pointerleave", () => {
      group.classList.remove("pointed");
      for (const view of views) view.output.textContent = hint;
    });
  }
  for (const more of group.querySelectorAll(".more:has(.turn)")) {
    const button = more.querySelector(".turn"), place = more.querySelector(".cloud");
    button.addEventListener("click", () => {
      place.hidden = !place.hidden;
      button.ariaExpanded = !place.hidden;
      button.querySelector("span").textContent = place.hidden ? "Show" : "Hide";
      if (!place.hidden && !place.dataset.asked) turn(views[more.dataset.view], group.camera, place);
      place.dataset.asked = "";
    });
  }
  group.dataset.ready = "";
}

for (const group of document.querySelectorAll(".group")) start(group);

// -- the point cloud: the page contains Plotly compressed, and decompresses it on demand -------------------------------------

async function plotly() {
  if (!window.Plotly) {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  return window.Plotly;
}

function points({width, height, layers: {values}, element}, camera, rgb) {
  const share = width / element.dataset.fullWidth, jump = 0.05, limit = farthest(camera);
  const step = Math.max(1, Math.ceil(Math.sqrt(width * height / CLOUD_POINTS)));
  const cloud = {x: [], y: [], z: [], colour: []};
  for (let row = step; row < height - step; row += step)
    for (let column = step; column < width - step; column += step) {
      const at = row * width + column, px = values[at], depth = metres(camera, px);
      const beside = [values[at - 1], values[at + 1], values[at - width], values[at + width]];
      if (!(depth <= limit) || beside.some(other => !(Math.abs(other - px) < jump * px + 0.5))) continue;  // an edge
      cloud.x.push(((column + 0.5) / share - 0.5 - camera.cx) * depth / camera.fx);
      cloud.y.push(depth);
      cloud.z.push(-((row + 0.5) / share - 0.5 - camera.cy) * depth / camera.fy);
      cloud.colour.push(`rgb(${rgb[4 * at]},${rgb[4 * at + 1]},${rgb[4 * at + 2]})`);
    }
  return cloud;
}

async function turn(view, camera, place) {
  const library = await plotly();
  const {x, y, z, colour} = points(view, camera, await bytesOf(view.element.querySelector("img.over")));
  const limits = `beyond ${short(farthest(camera))} m, where the disparity ${camera.doffs ? "with doffs " : ""}is below 1 px`;
  if (!y.length) {
    place.nextElementSibling.textContent = `There is no point to show: all pixels lie at edges or ${limits}.`;
    return;
  }
  const text = getComputedStyle(document.body).color, far = [...y].sort((a, b) => a - b)[Math.floor(NEARER * y.length)];
  place.nextElementSibling.textContent = `Points up to ${short(far)} m. Left out: the farthest ` +
    `${Math.round(100 * (1 - NEARER))} %, edges, and what lies ${limits}.`;
  const near = y.map((depth, n) => depth <= far ? n : -1).filter(n => n >= 0), of = list => near.map(n => list[n]);
  const trace = {type: "scatter3d", mode: "markers", x: of(x), y: of(y), z: of(z), hoverinfo: "none",
    marker: {size: 1.6, color: of(colour)}};
  const span = list => list.reduce((most, one) => Math.max(most, one), -Infinity) -
    list.reduce((least, one) => Math.min(least, one), Infinity);
  const [wide, deep, high] = [trace.x, trace.y, trace.z].map(span), largest = Math.max(wide, high);
  const ratio = {x: wide / largest, y: deep / largest, z: high / largest};
  // as far away as the nearest side, with ticks and titles around it, fits in Plotly's view of 45 degrees
  const tall = Math.max(1.3 * ratio.z, 1.75 * ratio.x * place.clientHeight / place.clientWidth);
  const away = tall / 2 / Math.tan(Math.PI / 8);
  const line = getComputedStyle(place).borderTopColor;
  const axis = title => ({title: {text: title}, color: text, showspikes: false, gridcolor: line, zerolinecolor: line,
    nticks: place.clientWidth < 600 ? 3 : 5});
  const layout = {margin: {l: 0, r: 0, t: 0, b: 0}, paper_bgcolor: "rgba(0,0,0,0)", font: {color: text, size: 11},
    scene: {aspectmode: "manual", aspectratio: ratio, xaxis: axis("right (m)"), yaxis: axis("ahead (m)"),
      zaxis: axis("up (m)"), camera: {eye: {x: 0.15, y: -ratio.y / 2 - away, z: 0.25},
        center: {x: 0, y: 0, z: -0.15}}}};
  await library.newPlot(place, [trace], layout, {displaylogo: false, responsive: true});
  place.dataset.points = near.length;
}
