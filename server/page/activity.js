// The panel: active fraction of each layer over time, and speed. Time stands still while nothing runs.

const byId = (id) => document.getElementById(id);
const COLUMN = 4; // pixels of one quarter of a second
const SCALES = [0.1, 0.2, 0.3, 0.5, 0.75, 1]; // the ramp ends at the first that holds all that is shown
const percent = (fraction) => `${(100 * fraction).toFixed(fraction < 0.0995 ? 1 : 0)} %`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

const columns = []; // {layers: [fraction], speed}, the newest last

function ramp() {
  const style = getComputedStyle(document.documentElement);
  return [0, 1, 2, 3].map((i) => {
    const hex = parseInt(style.getPropertyValue(`--heat-${i}`).trim().slice(1), 16);
    return [hex >> 16, (hex >> 8) & 255, hex & 255];
  });
}

function colour(stops, share) {
  const at = Math.min(share, 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [stops[low], stops[low + 1]];
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (at - low))).join()})`;
}

// A canvas that is as sharp as the screen, and its size in CSS pixels.
function surface(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

function drawHeat() {
  const { context, width, height } = surface(byId("heat"));
  const shown = columns.slice(-Math.ceil(width / COLUMN)).filter((column) => column.layers);
  const highest = Math.max(0, ...shown.flatMap((column) => column.layers));
  const most = SCALES.find((scale) => highest <= scale) ?? 1;
  byId("most").textContent = percent(most);
  const stops = ramp();
  shown.forEach(({ layers }, i) => {
    const x = width - (shown.length - i) * COLUMN;
    const size = height / layers.length;
    layers.forEach((fraction, layer) => {
      context.fillStyle = colour(stops, fraction / most);
      // the first layer at the bottom, as text flows through them; a hair of overlap hides seams
      context.fillRect(x, height - (layer + 1) * size, COLUMN - 0.5, size - (layers.length < 40 ? 0.5 : 0));
    });
  });
}

function drawSpeed() {
  const { context, width, height } = surface(byId("line"));
  const shown = columns.slice(-Math.ceil(width / COLUMN));
  const peak = Math.max(1, ...shown.map((column) => column.speed));
  byId("peak").textContent = shown.length ? `peak ${Math.round(peak)}` : "";
  if (!shown.length) return;
  const style = getComputedStyle(document.documentElement);
  const point = ({ speed }, i) => [width - (shown.length - i - 0.5) * COLUMN, height - 3 - (speed / peak) * (height - 8)];
  context.beginPath();
  shown.forEach((column, i) => context.lineTo(...point(column, i)));
  context.strokeStyle = style.getPropertyValue("--accent");
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.stroke();
}

function draw() {
  drawHeat();
  drawSpeed();
}

function describe(event, layers) {
  const last = columns.at(-1);
  byId("line").setAttribute("aria-label", `Tokens a second over time: now ${Math.round(last.speed)}`);
  if (layers) {
    const [low, high] = [Math.min(...layers), Math.max(...layers)];
    byId("heat").setAttribute("aria-label", `Active fraction of ${layers.length} layers over time: now ${percent(low)} to ${percent(high)}`);
  }
  document.documentElement.dataset.columns = columns.length; // for whoever watches the panel move
}

function show(event) {
  const busy = event.steps > 0;
  const status = byId("status");
  status.className = busy ? "status busy" : "status";
  status.textContent = busy ? "computing" : "idle";
  byId("load").textContent = `${event.running}, ${event.waiting}`;
  byId("cache").textContent = percent(event.kv_cache_usage);
  if (!busy) return;
  byId("speed").textContent = Math.round(event.tokens_per_second).toLocaleString("en");
  byId("mode").textContent = event.ffn_mode || "–";
  if (event.active) {
    byId("active").textContent = percent(mean(event.active));
    byId("union").textContent = percent(mean(event.union));
  }
  columns.push({ layers: event.active, speed: event.tokens_per_second });
  if (columns.length > 2000) columns.splice(0, 1000);
  describe(event, event.active);
  draw();
}

function lost() {
  const status = byId("status");
  status.className = "status lost";
  status.textContent = "no connection";
}

const feed = new EventSource("activity"); // comes back by itself
feed.onmessage = (message) => show(JSON.parse(message.data));
feed.onerror = lost;
new ResizeObserver(draw).observe(byId("heat"));
new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
