#pragma once
#include <sae/core/version.hpp>

#include <string_view>

namespace sae::inline SAE_ABI::detail {

/// The page of report/dashboard.hpp without its data. What is shown comes from JSON (`packed_overview`, `packed_text`, `packed_latent`) and becomes text
/// nodes, never markup. In parts, since compilers bound the length of a literal.
inline constexpr std::string_view dashboard_style = R"page(
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --panel: #f4f4f1; --line: #e0dfda; --ink: #1f2123; --soft: #6c6f72; --accent: #1f5fa8; --bar: #8aa9cb; --hot: 236, 120, 40;
  --up: 42, 120, 190; --down: 200, 80, 70;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --panel: #1d2024; --line: #30343a; --ink: #dfe1e4; --soft: #92979d; --accent: #7fb2ee; --bar: #4d7099; --hot: 240, 130, 40;
    --up: 80, 150, 220; --down: 220, 100, 90;
  }
}
* { box-sizing: border-box; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: -1px; }
html, body { height: 100%; margin: 0; }
body { background: var(--paper); color: var(--ink); display: grid; grid-template-columns: minmax(340px, 30%) 1fr; grid-template-rows: auto 1fr; }
header { grid-column: 1 / -1; display: flex; gap: 1.2em; align-items: baseline; padding: .55em 1em; border-bottom: 1px solid var(--line); }
header h1 { font-size: 1rem; margin: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
header h1 a { color: inherit; }
header p { margin: 0; color: var(--soft); flex: 1; min-width: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
kbd { font: inherit; font-size: .85em; border: 1px solid var(--line); border-radius: 3px; padding: 0 .35em; color: var(--soft); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
aside { border-right: 1px solid var(--line); background: var(--panel); display: flex; flex-direction: column; min-height: 0; }
main { overflow: auto; padding: 1em 1.4em 3em; min-width: 0; }
main:focus-visible { outline: none; }
.tools { padding: .6em; }
input { font: inherit; width: 100%; padding: .35em .6em; border: 1px solid var(--line); border-radius: 5px; background: var(--paper); color: inherit; }
.rows { flex: 1; overflow: auto; min-height: 0; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; font-size: .94em; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--panel); font-weight: normal; text-align: right; box-shadow: 0 1px var(--line); padding: 0; width: 5.2em; white-space: nowrap; }
th:nth-child(3) { width: 4.4em; }
th:last-child { width: auto; text-align: left; color: var(--soft); padding: .2em .6em; }
th button { all: unset; cursor: pointer; color: var(--soft); padding: .2em .6em .2em 0; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort] button { color: var(--ink); }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
td { padding: .16em .6em; text-align: right; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
td:last-child { text-align: left; }
tbody tr { cursor: pointer; }
tbody tr:hover { background: var(--line); }
tbody tr[aria-selected=true] { background: var(--accent); color: var(--paper); }
tbody tr[aria-selected=true] * { color: inherit; }
.never { color: var(--soft); }
.piece { background: rgba(127, 127, 127, .14); border-radius: 3px; padding: 0 .25em; margin-right: .25em; white-space: pre; }
.pager { display: flex; gap: .6em; align-items: center; padding: .45em .6em; border-top: 1px solid var(--line); color: var(--soft); }
.pager span { flex: 1; text-align: center; }
.pager button { font: inherit; border: 1px solid var(--line); background: var(--paper); color: var(--ink); border-radius: 5px; padding: .1em .8em; cursor: pointer; }
.pager button:disabled { opacity: .35; cursor: default; }
h2 { font-size: 1.25rem; margin: 0 0 .1em; font-weight: 600; }
h2 small { font-weight: normal; font-size: 1rem; color: var(--soft); margin-left: .5em; }
h3 { font-size: .8rem; font-weight: 600; color: var(--soft); margin: 0 0 .4em; }
.facts { color: var(--soft); margin: 0 0 1.1em; }
.facts b { color: var(--ink); font-weight: 500; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 1.2em 1.5em; margin-bottom: 1.6em; }
.cards.wide { grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); }
figure { margin: 0; min-width: 0; }
svg, canvas { display: block; width: 100%; height: auto; }
svg text { font-size: 10px; fill: var(--soft); }
svg rect { fill: var(--bar); }
svg rect:hover { fill: var(--accent); }
svg line { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 1.5; }
.list { display: grid; grid-template-columns: minmax(0, 1fr) auto; column-gap: .6em; font-variant-numeric: tabular-nums; font-size: .92em; line-height: 1.6; }
.list > * { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.list .number { text-align: right; color: var(--soft); }
.up .piece { background: rgba(var(--up), .16); }
.down .piece { background: rgba(var(--down), .16); }
.context { display: grid; grid-template-columns: 4em minmax(0, 1.25fr) minmax(0, 1fr); padding: .07em 0; border-top: 1px solid transparent; cursor: default; }
.context:hover { background: var(--panel); }
.context .value { color: var(--soft); font-variant-numeric: tabular-nums; text-align: right; padding-right: 1em; }
.context .before { display: flex; justify-content: flex-end; overflow: hidden; mask-image: linear-gradient(to right, transparent, #000 2em); }
.context .behind { display: flex; overflow: hidden; mask-image: linear-gradient(to left, transparent, #000 2em); }
.context span { white-space: pre; flex: none; border-radius: 2px; }
.context .behind span:first-child { font-weight: 600; }
.context.open { display: block; padding: .3em 0 .3em 4em; }
.context.open .value { display: inline-block; width: 4em; margin-left: -4em; }
.context.open .before, .context.open .behind { display: inline; mask-image: none; }
.context.open span { white-space: pre-wrap; }
[data-hot] { background: rgba(var(--hot), var(--share)); }
section { margin-bottom: 1.4em; }
#tip { position: fixed; z-index: 2; pointer-events: none; background: var(--ink); color: var(--paper); padding: .15em .5em; border-radius: 4px; font-size: .88em; white-space: pre; max-width: 90vw; overflow: hidden; }
[hidden] { display: none !important; }
@media (max-width: 760px) {
  html, body { height: auto; }
  body { display: block; }
  header { display: block; }
  header .keys { display: none; }
  aside { border-right: 0; border-bottom: 1px solid var(--line); height: 50vh; }
  main { padding: 1em; }
  .context, .context.open { display: block; padding: .35em 0; border-top-color: var(--line); }
  .context .before, .context .behind { display: inline; mask-image: none; }
  .context .value, .context.open .value { display: inline-block; width: auto; margin: 0; }
  .context span { white-space: pre-wrap; }
}
)page";

inline constexpr std::string_view dashboard_script = R"page(
"use strict";

// ---- data: parts that lie in the page, or in scripts beside it that call receive(name, value)

const parts = new Map(), waiting = new Map();
function receive(name, value) {
  waiting.get(name)(value);
}
function load(name) {
  if (!parts.has(name)) {
    parts.set(name, new Promise((resolve, reject) => {
      const inside = document.getElementById(name);
      if (inside) return resolve(JSON.parse(inside.textContent));
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = name + ".js";
      script.onerror = () => { parts.delete(name); reject(new Error(script.src + " cannot be loaded")); };
      document.head.append(script);
    }));
  }
  return parts.get(name);
}
const data = JSON.parse(document.getElementById("overview").textContent);
const count = data.latent.length;
const place = new Map(data.latent.map((latent, n) => [latent, n]));  // in the columns
const density = data.active.map((active) => (data.rows > 0 ? active / data.rows : 0));

// ---- small things

const element = (id) => document.getElementById(id);
/** An element with properties and children; text becomes text nodes. */
function make(tag, properties = {}, ...children) {
  const out = Object.assign(document.createElement(tag), properties);
  out.append(...children);
  return out;
}
function drawing(tag, attributes, ...children) {
  const out = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) out.setAttribute(name, value);
  out.append(...children);
  return out;
}
const number = (x, digits = 3) => (x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(digits))));
const percent = (share) => number(100 * share) + " %";
const whole = (n) => n.toLocaleString("en");
const escapes = { "\\n": "↵", "\\t": "⇥", "\\r": "␍", "\\\\": "\\" };
/** A piece as it is shown: the data spell line breaks and the like as \n. */
const shown = (piece) => piece.replace(/\\[ntr\\]/g, (found) => escapes[found]);
const pieces = (texts) => texts.map((text) => make("span", { className: "piece" }, shown(text)));

// ---- table: search, sort, pages

const page_size = 50;
const columns = { number: data.latent, fires: density, max: data.max };
const view = { words: "", by: "number", descending: false, page: 0, order: [], open: null };
const searchable = data.latent.map((_, n) => [data.label[n], ...data.tokens[n], ...data.promotes[n]].join("\n").toLowerCase());

function find() {
  const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (n) => words.every((word) => searchable[n].includes(word) || String(data.latent[n]).startsWith(word));
  const by = columns[view.by], sign = view.descending ? -1 : 1;
  view.order = [...data.latent.keys()].filter(fits).sort((a, b) => sign * (by[a] - by[b]) || a - b);
}
function show_table() {
  const pages = Math.max(1, Math.ceil(view.order.length / page_size));
  view.page = Math.min(Math.max(view.page, 0), pages - 1);
  const rows = view.order.slice(view.page * page_size, (view.page + 1) * page_size).map((n) => {
    const last = make("td", {}, ...(data.label[n] ? [data.label[n]] : data.active[n] ? pieces(data.tokens[n]) : ["never fires"]));
    if (!data.active[n]) last.className = "never";
    const row = make("tr", {}, make("td", {}, make("a", { href: "#" + data.latent[n], tabIndex: -1 }, String(data.latent[n]))),
      make("td", {}, number(100 * density[n], 2)), make("td", {}, number(data.max[n])), last);
    row.onclick = () => { location.hash = data.latent[n]; };
    row.dataset.latent = data.latent[n];
    row.setAttribute("aria-selected", n === view.open);
    return row;
  });
  element("table").replaceChildren(...rows);
  for (const head of document.querySelectorAll("th[data-by]")) {
    if (head.dataset.by === view.by) head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  element("pages").textContent = view.order.length === 0 ? "nothing found" : `${whole(view.page * page_size + 1)}–${whole(view.page * page_size + rows.length)} of ${whole(view.order.length)}`;
  element("earlier").disabled = view.page === 0;
  element("later").disabled = view.page === pages - 1;
}
function search(words) {
  view.words = words;
  view.page = 0;
  find();
  show_table();
}
function sort(by) {
  view.descending = view.by === by ? !view.descending : by !== "number";
  view.by = by;
  search(view.words);
}
function turn(pages) {
  view.page += pages;
  show_table();
  document.querySelector(".rows").scrollTop = 0;
}

// ---- plots

/** Bars of {from, to, count}; `names` of the two ends of the axis. */
function histogram(bars, names, describe, width = 320) {
  const height = 96, base = 80, most = Math.max(1, ...bars.map((bar) => bar.count));
  const out = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const step = width / Math.max(1, bars.length);
  bars.forEach((bar, n) => {
    if (bar.count === 0) return;
    const tall = Math.max(1, (bar.count / most) * (base - 4));
    out.append(drawing("rect", { x: n * step, y: base - tall, width: Math.max(step - 1, 0.5), height: tall }, drawing("title", {}, describe(bar))));
  });
  out.append(drawing("line", { x1: 0, x2: width, y1: base, y2: base }));
  names.forEach((name, n) => out.append(drawing("text", { x: n * width, y: base + 13, "text-anchor": n ? "end" : "start" }, name)));
  return out;
}
function figure(title, ...content) {
  return make("figure", {}, make("h3", {}, title), ...content);
}
function l0_plot() {
  if (data.l0.length === 0) return make("p", {}, "no rows");
  const least = data.l0[0][0], most = data.l0[data.l0.length - 1][0], room = Math.max(0, Math.ceil((20 - (most - least)) / 2));
  const low = Math.max(0, least - room), high = most + room, width = Math.max(1, Math.ceil((high - low + 1) / 40));
  const bars = Array.from({ length: Math.ceil((high - low + 1) / width) }, (_, n) => ({ from: low + n * width, to: low + (n + 1) * width - 1, count: 0 }));
  for (const [active, rows] of data.l0) bars[Math.floor((active - low) / width)].count += rows;
  return histogram(bars, [String(low), String(bars[bars.length - 1].to)], (bar) => `${bar.from === bar.to ? bar.from : bar.from + " to " + bar.to} active: ${whole(bar.count)} tokens`);
}
function density_plot() {
  const decades = Math.max(1, Math.ceil(Math.log10(Math.max(10, data.rows)))), per = 4;
  const bars = Array.from({ length: decades * per }, (_, n) => ({ from: n / per - decades, to: (n + 1) / per - decades, count: 0 }));
  for (const share of density) if (share > 0) bars[Math.min(bars.length - 1, Math.max(0, Math.floor((Math.log10(share) + decades) * per)))].count++;
  return histogram(bars, [`1 in ${whole(10 ** decades)}`, "every token"], (bar) => `${percent(10 ** bar.from)} to ${percent(10 ** bar.to)}: ${whole(bar.count)} latents`);
}
function rank_plot() {
  const width = 320, height = 96, base = 80, decades = Math.max(1, Math.log10(Math.max(10, data.rows)));
  const sorted = density.filter((share) => share > 0).sort((a, b) => b - a), steps = Math.min(sorted.length, 320);
  const points = Array.from({ length: steps }, (_, n) => {
    const rank = Math.round((n * (sorted.length - 1)) / Math.max(1, steps - 1));
    return `${((width * rank) / Math.max(1, count - 1)).toFixed(1)},${(4 + (-Math.log10(sorted[rank]) / decades) * (base - 4)).toFixed(1)}`;
  });
  return drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, drawing("line", { x1: 0, x2: width, y1: base, y2: base }),
    drawing("polyline", { points: points.join(" ") }), drawing("text", { x: 0, y: base + 13 }, "most frequent latent"),
    drawing("text", { x: width, y: base + 13, "text-anchor": "end" }, whole(count) + (sorted.length < count ? `, ${whole(count - sorted.length)} never fire` : "")));
}
/** The decoder's directions as points; the one under the mouse is named, and a click opens it. */
function decoder_map() {
  const width = 900, height = 420, edge = 14, dots = Math.ceil(devicePixelRatio);
  const canvas = make("canvas", { width: dots * width, height: dots * height, id: "map" });
  const bounds = (of) => [of.reduce((a, b) => Math.min(a, b), Infinity), of.reduce((a, b) => Math.max(a, b), -Infinity)];
  const scale = ([low, high], size) => (x) => (high > low ? edge + ((x - low) / (high - low)) * (size - 2 * edge) : size / 2);
  const across = scale(bounds(data.x), width), up = scale(bounds(data.y), height);
  const at = data.latent.map((_, n) => [across(data.x[n]), height - up(data.y[n])]);
  const draw = () => {
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, width, height);
    const size = count > 5000 ? 2 : 3, rarest = Math.log10(1 / Math.max(10, data.rows));
    at.forEach(([x, y], n) => {
      pen.fillStyle = style.getPropertyValue(data.active[n] ? "--accent" : "--soft");
      pen.globalAlpha = data.active[n] ? 0.25 + 0.65 * (1 - Math.log10(density[n]) / rarest) : 0.3;
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    });
  };
  const nearest = (event) => {
    const box = canvas.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    let best = -1, least = 144;
    at.forEach(([u, v], n) => {
      const far = (u - x) ** 2 + (v - y) ** 2;
      if (far < least) { least = far; best = n; }
    });
    return best;
  };
  canvas.onmousemove = (event) => {
    const n = nearest(event);
    canvas.style.cursor = n < 0 ? "default" : "pointer";
    if (n < 0) hide_tip();
    else tip(event, `${data.latent[n]}  ${data.label[n] || data.tokens[n].map(shown).join("  ")}`);
  };
  canvas.onmouseleave = hide_tip;
  canvas.onclick = (event) => {
    const n = nearest(event);
    if (n >= 0) location.hash = data.latent[n];
  };
  matchMedia("(prefers-color-scheme: dark)").onchange = draw;
  draw();
  return canvas;
}

// ---- what rests under the mouse

function tip(event, text) {
  const box = element("tip");
  box.textContent = text;
  box.hidden = false;
  box.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 4)) + "px";
  box.style.top = (event.clientY + 34 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 10 : event.clientY + 18) + "px";
}
function hide_tip() {
  element("tip").hidden = true;
}
document.addEventListener("mouseover", (event) => {
  const token = event.target.closest && event.target.closest("[data-value]");
  if (token) tip(event, `${token.textContent}   ${token.dataset.value === "0" ? "not active" : token.dataset.value}`);
  else if (event.target.id !== "map") hide_tip();
});

// ---- overview and latents

function show_overview() {
  const dead = data.active.filter((active) => active === 0).length;
  const share = data.map_share.map((part) => percent(part)).join(" and ");
  element("view").replaceChildren(
    make("h2", {}, "Overview"),
    make("p", { className: "facts" }, make("b", {}, whole(count)), count === data.latents ? " latents" : ` of ${whole(data.latents)} latents`, " on ",
      make("b", {}, whole(data.rows)), " tokens; ", make("b", {}, whole(dead)), " never fire"),
    make("div", { className: "cards wide" }, figure("Active latents of a token", l0_plot()), figure("How often latents fire (log scale)", density_plot()),
      figure("Frequency by rank (log scale)", rank_plot())),
    figure(`Map of the decoder: principal components of its directions (${share} of the variance); stronger colour fires more often`, decoder_map()));
}

/** A context out of [row, rows before, rows behind, value, offset, value, ...]. */
function context(packed, text, largest, gaps) {
  const [row, before, behind, value] = packed, active = new Map([[0, value]]);
  for (let n = 4; n < packed.length; n += 2) active.set(packed[n], packed[n + 1]);
  const tokens = (from, to) => {
    const out = [];
    for (let offset = from; offset <= to; offset++) {
      if (offset > -before && gaps.has(row + offset)) out.push(make("span", { className: "never" }, " ⋯ "));
      const token = make("span", {}, shown(text.pieces[text.rows[row + offset]])), f = active.get(offset) || 0;
      token.dataset.value = f;
      if (f > 0) {
        token.dataset.hot = "";
        token.style.setProperty("--share", (0.08 + 0.72 * Math.min(1, f / largest)).toFixed(3));
      }
      out.push(token);
    }
    return out;
  };
  const out = make("div", { className: "context" }, make("div", { className: "value" }, number(value)), make("div", { className: "before" }, ...tokens(-before, -1)),
    make("div", { className: "behind" }, ...tokens(0, behind)));
  out.onclick = () => { if (String(getSelection()) === "") out.classList.toggle("open"); };
  return out;
}
const token_list = (of, kind) => make("div", { className: "list " + kind }, ...of.flatMap(([piece, logit]) =>
  [make("span", {}, ...pieces([piece])), make("span", { className: "number" }, logit.toFixed(2))]));
const latent_list = (of) => make("div", { className: "list" }, ...of.flatMap(([latent, value]) => {
  const n = place.get(latent);
  const name = n === undefined ? [String(latent)] : [make("a", { href: "#" + latent }, String(latent)), "  ", ...(data.label[n] ? [data.label[n]] : pieces(data.tokens[n]))];
  return [make("span", {}, ...name), make("span", { className: "number" }, value.toFixed(2))];
}));

async function show_latent(n) {
  const chunk = Math.floor(n / data.chunk);
  const [text, some] = await Promise.all([load("text"), load("latents-" + chunk)]);
  if (view.open !== n) return;  // another one was opened meanwhile
  const of = some[n - chunk * data.chunk], largest = data.max[n], gaps = (text.gap_set ??= new Set(text.gaps));
  const [deviation, skewness, kurtosis] = of.shape;
  const facts = make("p", { className: "facts" });
  if (data.active[n] === 0) facts.append(`never fires on ${whole(data.rows)} tokens`);
  else {
    const fact = (name, value) => facts.append(facts.childNodes.length ? " · " : "", name + " ", make("b", {}, value));
    fact("fires on", `${percent(density[n])} (${whole(data.active[n])} of ${whole(data.rows)} tokens)`);
    fact("mean", number(data.mean[n]));
    fact("max", number(largest));
    fact("deviation", number(deviation));
    fact("skewness", number(skewness));
    fact("kurtosis", number(kurtosis));
  }
  const cards = make("div", { className: "cards" });
  const add = (title, list, content) => { if (list.length > 0) cards.append(figure(title, content)); };
  const bars = of.counts.map((rows, i) => ({ from: i * of.width, to: (i + 1) * of.width, count: rows }));
  while (bars.length > 1 && bars[bars.length - 1].count === 0) bars.pop();
  add("Positive activations", bars, histogram(bars, ["0", number(bars.length * of.width)], (bar) => `${number(bar.from)} to ${number(bar.to)}: ${whole(bar.count)} tokens`, 180));
  add("Promotes (logits)", of.promoted, token_list(of.promoted, "up"));
  add("Suppresses", of.suppressed, token_list(of.suppressed, "down"));
  add("Nearest (cosine)", of.nearest, latent_list(of.nearest));
  add("Fires with (correlation)", of.co_active, latent_list(of.co_active));
  const contexts = (title, list) => make("section", {}, make("h3", {}, title), ...list.map((packed) => context(packed, text, largest, gaps)));
  const sections = of.top.length > 0 ? [contexts("Strongest", of.top)] : [];
  const step = (of.width * of.counts.length) / data.intervals, per = of.counts.length / data.intervals;
  of.examples.forEach((list, i) => {
    if (list.length === 0) return;
    const inside = of.counts.slice(i * per, (i + 1) * per).reduce((a, b) => a + b, 0);
    sections.splice(1, 0, contexts(`Between ${number(i * step)} and ${number((i + 1) * step)}: ${list.length} of ${whole(inside)}, at random`, list));
  });
  element("view").replaceChildren(make("h2", {}, "Latent " + data.latent[n], make("small", {}, data.label[n])), facts, cards, ...sections);
  document.querySelector("main").scrollTop = 0;
}

/** Shows what the address names: #7 is latent 7, anything else the overview. */
function route() {
  hide_tip();
  const n = place.get(Number(location.hash.slice(1) || NaN));
  view.open = n === undefined ? null : n;
  if (view.open === null) {
    show_overview();
  } else {
    const at = view.order.indexOf(n);
    if (at >= 0) view.page = Math.floor(at / page_size);
    show_latent(n).catch((error) => element("view").replaceChildren(make("p", {}, error.message)));
    if (matchMedia("(max-width: 760px)").matches) element("view").scrollIntoView();
  }
  show_table();
  const row = document.querySelector("tr[aria-selected=true]");
  if (row) row.scrollIntoView({ block: "nearest" });
}
function move(steps) {
  if (view.order.length === 0) return;
  const at = view.order.indexOf(view.open);
  const to = at < 0 ? 0 : Math.min(Math.max(at + steps, 0), view.order.length - 1);
  location.hash = data.latent[view.order[to]];
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const words = element("search"), typing = event.target === words;
  if (event.key === "Escape") {
    if (typing && words.value !== "") search((words.value = ""));
    else if (typing) words.blur();
    else location.hash = "";
  } else if (typing) {
    if (event.key === "Enter" && view.order.length > 0) { location.hash = data.latent[view.order[0]]; words.blur(); }
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") move(event.key === "ArrowDown" ? 1 : -1);
    else return;
  } else if (event.key === "/") words.focus();
  else if (["j", "ArrowDown", "ArrowRight"].includes(event.key)) move(1);
  else if (["k", "ArrowUp", "ArrowLeft"].includes(event.key)) move(-1);
  else if (event.key === "n") turn(1);
  else if (event.key === "p") turn(-1);
  else return;
  event.preventDefault();
});
element("search").oninput = (event) => search(event.target.value);
element("earlier").onclick = () => turn(-1);
element("later").onclick = () => turn(1);
for (const head of document.querySelectorAll("th[data-by]")) head.firstElementChild.onclick = () => sort(head.dataset.by);
addEventListener("hashchange", route);

document.title = `${data.sae}: latents`;
element("name").textContent = data.sae;
element("about").textContent = [data.architecture, data.model, data.site].filter(Boolean).join(" · ");
find();
route();
)page";

inline constexpr std::string_view dashboard_body = R"page(
<header>
  <h1><a href="#" id="name"></a></h1>
  <p id="about"></p>
  <span class="keys"><kbd>/</kbd> search <kbd>j</kbd> <kbd>k</kbd> next, previous <kbd>n</kbd> <kbd>p</kbd> page <kbd>Esc</kbd> back</span>
</header>
<aside aria-label="latents">
  <div class="tools"><input id="search" type="search" placeholder="number, token or label" aria-label="search latents" autocomplete="off" spellcheck="false"></div>
  <div class="rows">
    <table>
      <thead><tr><th data-by="number"><button>latent</button></th><th data-by="fires"><button>fires %</button></th><th data-by="max"><button>max</button></th><th>active on</th></tr></thead>
      <tbody id="table"></tbody>
    </table>
  </div>
  <div class="pager"><button id="earlier" aria-label="page before">‹</button><span id="pages"></span><button id="later" aria-label="next page">›</button></div>
</aside>
<main id="view" tabindex="-1"></main>
<div id="tip" role="tooltip" hidden></div>
)page";

}  // namespace sae::inline SAE_ABI::detail
