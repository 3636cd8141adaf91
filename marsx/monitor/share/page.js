// The status page of marsd: draws status.json every two seconds and history.json every ten. Nothing is ever written.
// What comes from the cluster is text (textContent), never markup.
"use strict";

const PERIOD_MS = 2000, HISTORY_MS = 10000, HOUR_S = 3600;
const WORDS = ["OK", "WARNING", "CRITICAL", "UNKNOWN"];
const PARTS = ["sync", "fetch", "replay"];
const SVG = "http://www.w3.org/2000/svg";
const drawn = new Map();            // element -> what it shows, so that only what changed is drawn again
let history = { times: [], lag: {} }, lastAnswer = 0, lastHistory = 0;

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function show(node, value, draw) {
  const key = JSON.stringify(value);
  if (drawn.get(node) === key) return;
  drawn.set(node, key);
  node.replaceChildren(...draw(value));
}

// ---- words ----

function size(bytes) {
  if (bytes === null) return "?";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1024; unit++; }
  return (unit && bytes < 100 ? bytes.toFixed(bytes < 10 ? 2 : 1) : Math.round(bytes)) + " " + units[unit];
}

function span(seconds) {
  if (seconds === null) return "?";
  if (seconds < 120) return (seconds < 10 && seconds % 1 ? seconds.toFixed(1) : Math.round(seconds)) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return Math.floor(seconds / 3600) + " h " + Math.floor(seconds % 3600 / 60) + " min";
  return Math.floor(seconds / 86400) + " days";
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
const badge = (level, text) => make("span", { class: "badge level" + level }, text || WORDS[level]);
const hue = (index) => index % 6;

// ---- parts of the page ----

function drawReasons(reasons) {
  return reasons.map((note) => {
    const where = [note.resource, note.host].filter(Boolean).join(" on ");
    return make("div", { class: "note l" + note.level },
      make("span", { class: "word" }, WORDS[note.level]),
      make("span", { class: "text" }, (where ? where + ": " : "") + note.text),
      note.do ? make("span", { class: "do" }, "→ ", make("code", {}, note.do)) : null);
  });
}

function drawHosts(hosts) {
  return Object.entries(hosts).map(([name, host]) => {
    const state = host.alive === null ? [3, "not known"] : host.alive ? [0, "alive"]
      : [2, host.stopped ? "stopped" : "silent"];
    const lines = [];
    if (!host.alive && host.age !== null) lines.push("not heard of for " + span(host.age));
    if (host.emergency) lines.push("emergency level " + host.emergency);
    if (host.free_bytes !== null) lines.push("/mars: " + size(host.free_bytes) + " of " + size(host.total_bytes) + " free");
    else if (host.rest_bytes !== null) lines.push("/mars: about " + size(host.rest_bytes) + " left for logs");
    const broken = host.unreachable.map((one) => one.host + " (" + one.reason + ")").join(", ");
    if (host.alive && broken) lines.push("no connection to " + broken);
    return make("div", { class: "card host", "data-host": name },
      make("div", { class: "top" }, make("span", { class: "name" }, name + (host.local ? " (this host)" : "")),
        badge(...state)),
      ...[host.ip, ...lines].map((line) => make("div", { class: "more" }, line)));
  });
}

function drawPart(part) {
  const fill = make("div", { class: "fill " + (part.rest ? part.state : "done") });
  fill.style.width = part.percent + "%";
  const words = { done: "complete", primary: part.rest ? "writing back" : "complete", running: "running",
    waiting: "waiting", paused: "paused", silent: "silent" };
  const more = part.rest ? [size(part.rest) + " left"] : [];
  if (part.rate && part.state !== "done") more.push(size(part.rate) + "/s");
  if (part.rest && part.seconds) more.push(span(part.seconds));
  return [make("div", {}, part.percent.toFixed(2) + "% ", make("span", { class: part.state === "paused" ? "off" : "sub" },
    words[part.state])), make("div", { class: "track", role: "progressbar", "aria-valuenow": part.percent,
    "aria-valuemin": 0, "aria-valuemax": 100 }, fill), make("div", { class: "sub" }, more.join(", "))];
}

function drawNode(name, node, index) {
  const role = node.role === "primary" ? "Primary" : "Secondary";
  const cells = [make("td", { class: "who" }, make("div", { class: "name" },
    make("span", { class: "dot b" + hue(index) }), name),
  make("div", { class: "sub" }, role + (node.designated && node.role !== "primary" ? ", to be primary" : "")),
  make("div", { class: "sub" }, node.alive === false ? "not heard of" : node.consistent ? "consistent" : "inconsistent"))];
  const stalled = node.stalled.map((one) => one.activity + ": " + one.cause).join(", ");
  const device = node.device.on ? "device on" + (node.device.opened ? ", in use" : "") : "";
  cells.push(make("td", { class: "state" }, node.alive === false ? badge(3, "silent") : badge(node.level),
    ...[device, stalled && "stands still: " + stalled].filter(Boolean).map((line) => make("div", { class: "sub" }, line))));
  for (const part of PARTS)
    cells.push(make("td", { class: "part", "data-part": part }, ...drawPart(node[part])));
  const about = node.lag.exact ? "" : "about ";  // the log itself is not where this is told
  const lag = node.role === "primary" ? "–" : node.lag.seconds === null ? "?" : about + span(node.lag.seconds);
  cells.push(make("td", { class: "lag" }, lag));
  const off = Object.entries(node.switches).filter(([, on]) => !on).map(([key]) => key.replace("_", "-"));
  cells.push(make("td", {}, off.length ? make("span", { class: "off" }, off.join(", ") + " off") : "all on"));
  return make("tr", { "data-host": name }, ...cells);
}

function drawPlot(name, hosts) {
  const WIDE = 900, HIGH = 150, LEFT = 52, RIGHT = 8, TOP = 8, LOW = 22;
  const end = history.times.length ? history.times[history.times.length - 1] : Date.now() / 1000;
  const lines = history.lag[name] || {};
  const values = Object.values(lines).flat().filter((value) => value !== null);
  const most = nice(Math.max(10, ...values));
  const x = (time) => LEFT + (WIDE - LEFT - RIGHT) * (1 - (end - time) / HOUR_S);
  const y = (value) => TOP + (HIGH - TOP - LOW) * (1 - value / most);
  const svg = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": "lag over the last hour" });
  for (const part of [0, 0.5, 1]) {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(most * part), y2: y(most * part) }),
      shape("text", { x: LEFT - 6, y: y(most * part) + 4, "text-anchor": "end" }, part ? span(most * part) : "0"));
  }
  for (const minutes of [60, 45, 30, 15, 0])
    svg.append(shape("text", { x: x(end - minutes * 60), y: HIGH - 6,
      "text-anchor": minutes === 60 ? "start" : minutes ? "middle" : "end" }, clock(end - minutes * 60).slice(0, 5)));
  Object.keys(hosts).forEach((host, index) => {
    if (!lines[host]) return;
    let path = "", open = false, last = null;
    lines[host].forEach((value, at) => {
      const time = history.times[at];
      if (value === null || end - time > HOUR_S) { open = false; return; }
      path += (open ? "L" : "M") + x(time).toFixed(1) + " " + y(value).toFixed(1);
      open = true;
      last = [x(time), y(value)];
    });
    if (path) svg.append(shape("path", { class: "curve s" + hue(index), d: path }));
    if (last) svg.append(shape("circle", { class: "p" + hue(index), cx: last[0], cy: last[1], r: 3 }));
  });
  const legend = Object.keys(hosts).flatMap((host, index) => !lines[host] ? []
    : [make("span", { class: "key" }, make("span", { class: "dot b" + hue(index) }), host)]);
  return make("div", { class: "plot" }, make("div", { class: "title" }, "Lag of each replica, last hour", ...legend), svg);
}

function nice(value) {
  for (const step of [10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 21600, 86400]) if (value <= step) return step;
  return Math.ceil(value / 86400) * 86400;
}

function drawResource({ name, found, lags }) {
  const hosts = found.nodes;
  const where = found.primaries.length ? "Primary: " + found.primaries.join(", ") : "no Primary";
  const logs = found.logs.bytes === null ? "" : ", logs here " + size(found.logs.bytes);
  const parts = [make("div", { class: "top" }, make("h2", {}, name), badge(found.level), make("span", {}, where),
    make("span", { class: "more" }, size(found.size) + logs))];
  if (found.split_brain) parts.push(make("div", { class: "split" }, "SPLIT BRAIN: " + found.split_brain.text));
  const head = ["Host", "State", "Sync", "Fetch", "Replay", "Lag", "Switches"];
  parts.push(make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map(
    (word) => make("th", {}, word)))), make("tbody", {}, ...Object.entries(hosts).map(
    ([host, node], index) => drawNode(host, node, index))))));
  if (lags) parts.push(drawPlot(name, hosts));
  return parts;
}

// ---- the whole ----

// What changes every second and nobody looks at would draw everything anew.
function quiet(found) {
  return JSON.parse(JSON.stringify(found, (key, value) =>
    key === "moved" || key === "since" ? undefined : key === "age" && value !== null ? Math.floor(value / 5) * 5 : value));
}

function draw(picture) {
  const here = picture.cluster.hosts[picture.host];
  document.title = (picture.level ? WORDS[picture.level] + " " : "") + "MARS " + picture.host;
  document.getElementById("where").textContent =
    Object.keys(picture.cluster.hosts).length + " hosts, as seen from " + picture.host + (here ? " (" + here.ip + ")" : "");
  const verdict = document.getElementById("verdict");
  verdict.className = "badge level" + picture.level;
  verdict.textContent = picture.word;
  const calm = quiet(picture);
  show(document.getElementById("reasons"), calm.reasons, drawReasons);
  show(document.getElementById("hosts"), calm.cluster.hosts, drawHosts);
  const box = document.getElementById("resources");
  const names = Object.keys(calm.resources);
  for (const old of [...box.children]) if (!names.includes(old.dataset.resource)) { drawn.delete(old); old.remove(); }
  names.forEach((name, at) => {
    let card = [...box.children].find((child) => child.dataset.resource === name);
    if (!card) card = make("section", { class: "card resource", "data-resource": name });
    if (box.children[at] !== card) box.insertBefore(card, box.children[at] || null);
    show(card, { name, found: calm.resources[name], lags: history.times.length }, drawResource);
  });
  document.getElementById("foot").textContent =
    "marsx " + picture.program + ", cluster " + picture.cluster.uuid + ", state of " + clock(picture.time);
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(8000) });
  if (!answer.ok) throw new Error(path + ": " + answer.status);
  return answer.json();
}

async function turn() {
  const lost = document.getElementById("lost");
  try {
    const picture = await get("status.json");
    if (Date.now() - lastHistory >= HISTORY_MS) {
      history = await get("history.json");
      lastHistory = Date.now();
      drawn.clear();
    }
    draw(picture);
    lastAnswer = Date.now();
    lost.hidden = true;
    document.body.classList.remove("old");
  } catch (error) {
    lost.textContent = lastAnswer ? "marsd does not answer: what follows is as it was at " + clock(lastAnswer / 1000)
      : "marsd does not answer";
    lost.hidden = false;
    document.body.classList.add("old");
  }
  setTimeout(turn, document.hidden ? 5 * PERIOD_MS : PERIOD_MS);
}

turn();
