"use strict";
// The page of `fasegr serve`. The server sends the segment of each pixel, and this script paints it over the picture.

const NOTHING = 0xffff;
const $ = selector => document.querySelector(selector);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let about;             // what the server says of itself
let picture = null;    // the answer for the picture that is shown
let again = null;      // asks for it once more
let cards = [];        // one for each model: {model, map, sure, canvas, ...}
let asked = 0;         // number of the newest request, whose answer is the one to show
const hidden = new Set();  // names of classes that are not painted, in every model
let view = "segments";

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let sentence = `The server answered ${response.status}.`;
  try { sentence = (await response.json()).error || sentence; } catch { /* no JSON: the number has to do */ }
  throw Object.assign(new Error(sentence), {status: response.status});
}

function showError(error) {
  const box = $("#error");
  box.hidden = !error;
  box.textContent = error ? error.message : "";
  if (error && error.status === 410 && again) {
    box.append(" ", make("button", {type: "button", textContent: "Segment it again", onclick: again}));
  }
}

async function waiting(number, text, work) {
  const status = $("#status");
  showError(null);
  status.textContent = text;
  status.hidden = false;
  const timer = setInterval(async () => {
    try {
      const before = (await (await ask("/api/queue")).json()).waiting - 1;
      if (number === asked) status.textContent = before > 0 ? `${text} ${before} more in the queue.` : text;
    } catch { /* the request itself will say so */ }
  }, 1500);
  try {
    await work();
  } catch (error) {
    if (number === asked) showError(error);
  } finally {
    clearInterval(timer);
    if (number === asked) status.hidden = true;
  }
}

function segment(url, options, name) {
  const number = ++asked;
  again = () => segment(url, options, name);
  return waiting(number, `Segmenting ${name} …`, async () => {
    const answer = await (await ask(url, {method: "POST", ...options})).json();
    const base = `/api/pictures/${answer.id}`;
    const fresh = await Promise.all(answer.models.map(async (model, i) => {
      const get = async kind => (await ask(`${base}/${i}/maps/${kind}`)).arrayBuffer();
      return {
        ...model, number: i, base: `${base}/${i}`, name: about.models[i].name, looks: about.models[i].attention,
        map: new Uint16Array(await get("segments")), sure: model.confidence ? new Uint8Array(await get("confidence")) : null,
        lit: NOTHING,
      };
    }));
    if (number !== asked) return;
    picture = answer;
    cards = fresh;
    showResult(base);
  });
}

function segmentFile(file) {
  if (!file) return;
  if (file.size > about.max_bytes) {
    ++asked;
    $("#status").hidden = true;
    showError(new Error(`${file.name} has ${(file.size / 1e6).toFixed(0)} MB, more than the ${(about.max_bytes / 1e6).toFixed(0)} MB that this server takes; make it smaller.`));
    return;
  }
  const name = file.name || "picture";
  segment(`/api/pictures?name=${encodeURIComponent(name)}`, {body: file, headers: {"content-type": "application/octet-stream"}}, name);
}

function showResult(base) {
  document.body.classList.add("has-result");
  $("#result").hidden = false;
  $("#attention").hidden = true;
  const [height, width] = picture.size;
  $("#size").textContent = `${picture.name}, ${width} × ${height}`;
  $("#cards").replaceChildren(...cards.map(card => buildCard(card, `${base}/picture.jpg`)));
  $("#cards").classList.toggle("single", cards.length === 1);
  const button = $('[data-view="confidence"]');
  button.disabled = !cards.some(card => card.sure);
  button.title = button.disabled ? "This model gives no scores by class" : "";
  setView(button.disabled && view === "confidence" ? "segments" : view);
}

function buildCard(card, source) {
  const part = $("#card").content.cloneNode(true).querySelector("article");
  part.querySelector("h2").append(card.name, make("small", {textContent: `${card.seconds.toFixed(2)} s`}));
  const image = part.querySelector("img");
  const [height, width] = picture.view;
  Object.assign(image, {src: source, width, height, alt: `${picture.name}: ${classes(card).map(each => each.name).join(", ")}`});
  card.canvas = part.querySelector("canvas");
  Object.assign(card.canvas, {width, height});
  card.stage = part.querySelector(".stage");
  card.stage.style.maxWidth = `max(18rem, calc(82vh * ${width / height}))`;  // all of it fits on the screen
  card.stage.classList.toggle("clickable", card.looks);
  card.canvas.addEventListener("pointermove", event => hover(card, event));
  card.canvas.addEventListener("pointerleave", () => { light(card, NOTHING); $("#tip").hidden = true; });
  card.canvas.addEventListener("click", event => {
    const box = card.canvas.getBoundingClientRect();
    look(card, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  part.querySelector(".legend").append(...classes(card).map(each => buildEntry(card, each)));
  const files = part.querySelector(".files");
  const link = (text, name) => make("a", {href: `${card.base}/files/${name}`, textContent: text, download: ""});
  card.overlay = link("Overlay", "overlay.png");
  files.append(card.overlay, ...(card.labels ? [link("Labels", "labels.png")] : []), link("COCO", "coco.json"));
  return part;
}

// The classes of a card's segments, the largest first: {name, color, area, number of segments}
function classes(card) {
  const found = new Map();
  for (const segment of card.segments) {
    const each = found.get(segment.label) || {name: segment.name, label: segment.label, color: segment.color, area: 0, count: 0};
    each.area += segment.area;
    each.count += 1;
    found.set(segment.label, each);
  }
  return [...found.values()].sort((a, b) => b.area - a.area);
}

const percent = share => share < 0.0995 ? `${(100 * share).toFixed(1)} %` : `${Math.round(100 * share)} %`;

function buildEntry(card, each) {
  const entry = make("li");
  const box = make("input", {type: "checkbox", checked: !hidden.has(each.name)});
  const swatch = make("span", {className: "swatch"});
  swatch.style.background = `rgb(${each.color.join()})`;
  const share = each.area / (picture.size[0] * picture.size[1]);
  const name = each.count > 1 ? `${each.name} × ${each.count}` : each.name;
  entry.append(make("label", {title: "Show or hide"}, box, swatch,
    make("span", {className: "name", textContent: name}), make("span", {className: "share", textContent: percent(share)})));
  entry.dataset.name = each.name;
  entry.classList.toggle("off", !box.checked);
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(each.name); else hidden.add(each.name);
    for (const other of document.querySelectorAll(".legend li")) {
      if (other.dataset.name !== each.name) continue;
      other.classList.toggle("off", !box.checked);
      other.querySelector("input").checked = box.checked;
    }
    paintAll();
  });
  if (card.looks) {
    const text = `Where the query of ${each.name} looks`;
    const button = make("button", {type: "button", title: text, ariaLabel: text}, $("#aim").content.cloneNode(true));
    button.addEventListener("click", () => {
      const pixels = [];
      card.map.forEach((number, at) => { if (number !== NOTHING && card.segments[number].label === each.label) pixels.push(at); });
      if (!pixels.length) return;
      const at = pixels[pixels.length >> 1], width = picture.view[1];
      look(card, (at % width + 0.5) / width, (Math.floor(at / width) + 0.5) / picture.view[0]);
    });
    entry.append(button);
  }
  return entry;
}

function paint(card) {
  const [height, width] = picture.view;
  const context = card.canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer);  // little-endian: alpha, blue, green, red
  const opacity = $("#opacity").value / 100;
  if (view === "confidence" && card.sure) {
    const colors = about.heat.map(([r, g, b]) => (Math.round(255 * opacity) << 24 | b << 16 | g << 8 | r) >>> 0);
    card.sure.forEach((level, at) => { out[at] = colors[level]; });
  } else if (view === "segments") {
    const color = (segment, alpha) => hidden.has(segment.name) ? 0
      : (Math.round(255 * Math.min(1, alpha)) << 24 | segment.color[2] << 16 | segment.color[1] << 8 | segment.color[0]) >>> 0;
    const edge = opacity > 0 ? Math.max(opacity, 0.9) : 0;
    const inside = card.segments.map((segment, i) => color(segment, opacity + (i === card.lit ? 0.22 : 0)));
    const edges = card.segments.map(segment => color(segment, edge));
    const map = card.map, thick = Math.max(1, Math.round(Math.min(width, height) / 480));
    for (let y = 0, at = 0; y < height; y++) {
      const below = y + thick < height ? thick * width : 0, above = y >= thick ? thick * width : 0;
      for (let x = 0; x < width; x++, at++) {
        const number = map[at];
        if (number === NOTHING) continue;
        const isEdge = map[at + below] !== number || map[at - above] !== number
          || (x + thick < width && map[at + thick] !== number) || (x >= thick && map[at - thick] !== number);
        out[at] = isEdge ? edges[number] : inside[number];
      }
    }
  }
  context.putImageData(image, 0, 0);
  const labels = card.segments.filter(segment => hidden.has(segment.name)).map(segment => segment.label);
  card.overlay.href = `${card.base}/files/overlay.png?alpha=${opacity}&hide=${[...new Set(labels)].join()}`;
}

const paintAll = () => cards.forEach(paint);

function setView(name) {
  view = name;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === view);
  $(".heat").hidden = view !== "confidence";
  paintAll();
}

function light(card, number) {
  if (card.lit === number) return;
  card.lit = number;
  if (view === "segments") requestAnimationFrame(() => paint(card));
}

function hover(card, event) {
  const box = card.canvas.getBoundingClientRect(), [height, width] = picture.view;
  const x = Math.min(width - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * width)));
  const y = Math.min(height - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * height)));
  const at = y * width + x, number = card.map[at], tip = $("#tip");
  light(card, number);
  tip.hidden = number === NOTHING;
  if (tip.hidden) return;
  const segment = card.segments[number];
  const sure = "score" in segment ? segment.score : card.sure ? card.sure[at] / 255 : null;
  tip.textContent = sure === null ? segment.name : `${segment.name} · ${Math.round(100 * sure)} % sure`;
  tip.style.left = `${Math.min(Math.max(event.clientX, 70), innerWidth - 70)}px`;
  tip.style.top = `${Math.max(event.clientY, 44)}px`;
}

function look(card, x, y) {
  if (!card.looks) return;
  const number = ++asked;
  waiting(number, "Looking at the attention of the last layers …", async () => {
    const url = `${card.base}/attention?x=${Math.min(1, Math.max(0, x))}&y=${Math.min(1, Math.max(0, y))}`;
    const answer = await (await ask(url)).json();
    if (number !== asked) return;
    const section = $("#attention");
    $("#attention-title").textContent = `Where query ${answer.query} looks: ${answer.name}` + (cards.length > 1 ? `, ${card.name}` : "");
    section.querySelector(".about").textContent = "This query has most of the score at the point you chose. Bright is where a "
      + "layer attends; omega are the pixels that high-resolution cross-attention takes, for all queries together. Outlined: the segment.";
    section.querySelector(".panels").replaceChildren(...answer.panels.map(panel => make("figure", {},
      make("img", {src: panel.image, alt: `${panel.title}: ${panel.note}`}),
      make("figcaption", {}, make("b", {textContent: panel.title}), panel.note))));
    section.hidden = false;
    section.scrollIntoView({block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth"});
  });
}

function start() {
  $("#models").textContent = about.models.map(model => model.name).join(" · ");
  $("#file").addEventListener("change", event => { segmentFile(event.target.files[0]); event.target.value = ""; });
  const isFile = event => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  addEventListener("dragover", event => { if (isFile(event)) { event.preventDefault(); document.body.classList.add("over"); } });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", event => {
    document.body.classList.remove("over");
    if (!isFile(event)) return;
    event.preventDefault();
    segmentFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", event => {
    const file = [...event.clipboardData.files][0];
    if (file) segmentFile(file);
    else if (event.clipboardData.types.length) showError(new Error("What was pasted is no picture; copy a picture, not its address."));
  });
  $("#opacity").addEventListener("input", event => {
    $(".opacity output").textContent = `${event.target.value} %`;
    paintAll();
  });
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
  $("#attention .close").addEventListener("click", () => { $("#attention").hidden = true; });
  const heat = $(".heat canvas").getContext("2d");
  about.heat.forEach((color, i) => { heat.fillStyle = `rgb(${color.join()})`; heat.fillRect(i, 0, 1, 1); });
  $("#examples").hidden = !about.examples.length;
  $(".thumbnails").append(...about.examples.map((name, i) => {
    const button = make("button", {type: "button", title: name}, make("img", {src: `/api/examples/${i}`, alt: name}));
    button.addEventListener("click", () => segment(`/api/examples/${i}`, {}, name));
    return button;
  }));
}

ask("/api/about").then(async response => { about = await response.json(); start(); }).catch(showError);
