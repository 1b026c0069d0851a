"use strict";
const { cells, groupings, curves, charts, settings, meanings } = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(cells.map((cell, place) => [cell.id, { ...cell, place }]));
const element = id => document.getElementById(id);
const root = document.documentElement;
const FONT = getComputedStyle(document.body).fontFamily;

// --- colours: one for each group, everywhere; shapes and dashes say the same to who cannot tell colours apart ---------

const DISTINCT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#8a7a5c"];
const ORDERED = [[13, 8, 135], [106, 0, 168], [177, 42, 144], [225, 100, 98], [252, 166, 54], [240, 249, 33]];  // plasma: dark to light
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star", "pentagon"];
const SIGNS = ["●", "■", "◆", "▲", "✖", "▼", "★", "⬟"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => dark.matches && !root.classList.contains("printing");
const tone = name => getComputedStyle(root).getPropertyValue(name).trim();

function ordered(share) {
  const at = (isDark() ? 0.38 + 0.62 * share : 0.7 * share) * (ORDERED.length - 1);
  const low = Math.min(Math.floor(at), ORDERED.length - 2);
  return `rgb(${ORDERED[low].map((value, k) => Math.round(value + (at - low) * (ORDERED[low + 1][k] - value))).join(",")})`;
}
const way = () => groupings[element("colour").value];
const groupOf = cell => way().of[cell.place];
function color(group) {
  const { values, ordered: inOrder } = way();
  if (group < 0) return tone("--grey");
  return inOrder && values.length > 2 ? ordered(group / (values.length - 1)) : DISTINCT[group % DISTINCT.length];
}
const symbol = group => SYMBOLS[Math.max(group, 0) % SYMBOLS.length];
const faded = (text, alpha) => {
  const parts = text.startsWith("#") ? [1, 3, 5].map(k => parseInt(text.slice(k, k + 2), 16)) : text.match(/\d+/g).slice(0, 3);
  return `rgba(${parts.join(",")},${alpha})`;
};

function drawKey() {
  for (const key of document.querySelectorAll(".key")) {
    key.replaceChildren(...way().values.map((name, group) => {
      const item = document.createElement("span"), sign = document.createElement("b");
      sign.textContent = SIGNS[group % SIGNS.length] + " ";
      sign.style.color = color(group);
      item.append(sign, name);
      return item;
    }));
    key.hidden = way().values.length < 2;
  }
  for (const swatch of document.querySelectorAll(".swatch")) swatch.style.background = color(groupOf(byId.get(swatch.dataset.cell)));
}

// --- numbers and axes -----------------------------------------------------------------------------------------------

function short(value) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  return String(Number(value.toPrecision(3)));
}
const power = value => value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");

// A logarithmic axis with ticks at 1, 2 and 5 of each power of ten, or at powers alone where these would be too many.
function logarithmic(title, values, form, margin = 0.06) {
  const logs = values.filter(value => value > 0).map(Math.log10);
  const low = Math.min(...logs), high = Math.max(...logs), room = Math.max((high - low) * margin, 0.03);
  const spread = high - low, steps = spread > (root.classList.contains("printing") ? 2 : 5) ? [1] : spread > 1.3 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const tickvals = [];
  for (let exponent = Math.floor(low - room); exponent <= Math.ceil(high + room); exponent += Math.max(1, Math.ceil(spread / 8)))
    for (const step of steps) tickvals.push(step * 10 ** exponent);
  return { ...axis(title), type: "log", range: [low - room, high + room], tickvals, ticktext: tickvals.map(form) };
}
function axis(title) {
  return { title: { text: title, standoff: 8, font: { size: 12 } }, gridcolor: tone("--line"), linecolor: tone("--line"), zeroline: false, automargin: true };
}
const finite = value => typeof value === "number" && isFinite(value);
const named = count => count === "non_embedding_parameters" ? "parameters without embeddings" : "parameters";

// Budgets that differ much leave no room for the small ones on a linear axis.
const lengths = Object.values(curves).map(curve => (curve.heldout || curve.train || {}).tokens?.at(-1)).filter(length => length > 0);
element("logx").checked = Math.max(...lengths) > 5 * Math.min(...lengths);

let across = "tokens", shown = new Set(byId.keys());
const members = chart => [...byId.values()].filter(cell => cell.kind === chart.kind && finite(cell.y) && shown.has(cell.id));

// --- traces ---------------------------------------------------------------------------------------------------------

function points(chart, x, y, open = []) {
  const found = members(chart).filter(cell => finite(x(cell)) && finite(y(cell)));
  const groups = found.map(groupOf);
  return {
    type: "scatter", mode: "markers", x: found.map(x), y: found.map(y), text: found.map(cell => escapeText(cell.name)),
    customdata: found.map(cell => [cell.y]), hovertemplate: "%{text}<br>%{customdata[0]:.4f}<extra></extra>",
    marker: { size: 9, color: groups.map(color), symbol: found.map((cell, k) => symbol(groups[k]) + (open.includes(cell.id) ? "-open" : "")),
      line: { width: found.map(cell => open.includes(cell.id) ? 2 : 0.5), color: open.length ? groups.map(color) : tone("--paper") } },
  };
}
// Plotly reads a little markup in what it shows.
const escapeText = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function band(xs, low, high, tint) {
  if (!low.every(finite) || !high.every(finite)) return [];
  return [{ type: "scatter", mode: "lines", x: [...xs, ...[...xs].reverse()], y: [...high, ...[...low].reverse()], fill: "toself",
    fillcolor: faded(tint, 0.16), line: { width: 0 }, hoverinfo: "skip" }];
}
function errors(low, value, high) {
  if (!finite(low) || !finite(high)) return undefined;
  return { type: "data", symmetric: false, array: [high - value], arrayminus: [value - low], thickness: 1.6, width: 4 };
}

function drawIsoflop(chart) {
  const traces = [points(chart, cell => cell[chart.count], cell => cell.y, chart.heldout)];
  traces[0].customdata.forEach((data, k) => data.push(power(members(chart).filter(cell => finite(cell[chart.count]))[k].flops || 0)));
  traces[0].hovertemplate = "%{text}<br>%{customdata[0]:.4f} at %{customdata[1]} FLOPs<extra></extra>";
  const notes = [];
  for (const { x, y, minimum, flops, cells: own } of chart.parabolas) {
    const groups = [...new Set(own.filter(id => byId.has(id)).map(id => groupOf(byId.get(id))))];
    const tint = groups.length === 1 ? color(groups[0]) : tone("--faint");
    traces.unshift({ type: "scatter", mode: "lines", x, y, line: { color: tint, width: 1.6 }, hoverinfo: "skip" });
    if (!finite(minimum.parameters)) continue;
    const { parameters, low, high, loss } = minimum;
    traces.push({ type: "scatter", mode: "markers", x: [parameters], y: [loss], marker: { symbol: "star", size: 12, color: tone("--ink"), line: { width: 1, color: tone("--paper") } },
      error_x: errors(low, parameters, high) && { ...errors(low, parameters, high), color: tone("--ink") },
      hovertemplate: `least loss at ${power(flops)} FLOPs: ${short(parameters)}${finite(low) ? ` (${short(low)} to ${short(high)})` : ""}<extra></extra>` });
    notes.push({ x: Math.log10(x.at(-1)), y: y.at(-1), text: power(flops), showarrow: false, xanchor: "left", xshift: 4, font: { size: 11, color: tint } });
  }
  const sizes = [...traces.flatMap(trace => trace.x)];
  const least = Math.min(...traces.flatMap(trace => trace.y)), most = Math.max(...members(chart).map(cell => cell.y), ...chart.parabolas.flatMap(p => p.y));
  const room = (most - least) * 0.06 || 0.01;
  return [traces, { xaxis: logarithmic(named(chart.count), sizes, short, 0.1), yaxis: { ...axis(chart.unit), range: [least - room, most + room] }, annotations: notes }];
}

function drawSurface(chart) {
  const { x, y, z } = chart.surface, ink = tone("--soft");
  const traces = [{ type: "contour", x, y, z, ncontours: 14, contours: { coloring: "none", showlabels: true, labelfont: { size: 10, color: ink } },
    line: { width: 1, color: tone("--faint"), smoothing: 1 }, hovertemplate: "%{x:.3~s} parameters, %{y:.3~s} tokens: %{z:.4f}<extra></extra>", showscale: false }];
  const { parameters, tokens } = chart.frontier;
  if (parameters && tokens) {
    const tint = tone("--orange");
    if ([parameters.low, parameters.high, tokens.low, tokens.high].every(ends => ends.every(finite)))
      traces.push({ type: "scatter", mode: "lines", x: [...parameters.low, ...[...parameters.high].reverse()], y: [...tokens.high, ...[...tokens.low].reverse()],
        fill: "toself", fillcolor: faded(tint, 0.2), line: { width: 0 }, hoverinfo: "skip" });
    traces.push({ type: "scatter", mode: "lines", x: parameters.value, y: tokens.value, line: { color: tint, width: 2 }, text: chart.frontier.flops.map(power),
      hovertemplate: "best for %{text} FLOPs: %{x:.3~s} parameters, %{y:.3~s} tokens<extra></extra>" });
  }
  traces.push(points(chart, cell => cell[chart.count], cell => cell.tokens, chart.heldout));
  return [traces, { xaxis: logarithmic(named(chart.count), x, short, 0), yaxis: logarithmic("tokens", y, short, 0) }];
}

function drawFrontier(chart) {
  const traces = [], all = [], budgets = chart.lines.flatMap(line => line.flops), flops = [...budgets];
  chart.lines.forEach(({ name, flops: xs, value, low, high }, number) => {
    const tint = tone(number ? "--soft" : "--blue");
    traces.push(...band(xs, low, high, tint), { type: "scatter", mode: xs.length < 10 ? "lines+markers" : "lines", x: xs, y: value, name: escapeText(name),
      line: { color: tint, width: 1.8, dash: DASHES[number % DASHES.length] }, marker: { color: tint, size: 4 }, showlegend: chart.lines.length > 1, customdata: low.map((_, k) => [low[k], high[k]]),
      hovertemplate: `%{y:.4~s}${low.every(finite) ? " (%{customdata[0]:.4~s} to %{customdata[1]:.4~s})" : ""}<extra>${escapeText(name)}</extra>` });
    all.push(...value, ...low, ...high);
  });
  const legend = { showlegend: chart.lines.length > 1, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemwidth: 30, font: { size: root.classList.contains("printing") ? 8 : 11 } } };
  if (chart.of === "loss") {
    const measured = points(chart, cell => cell.flops, cell => cell.y, chart.heldout);
    return [[...traces, measured], { ...legend, ...edge(chart, budgets), xaxis: logarithmic("model FLOPs", [...flops, ...measured.x], power), yaxis: axis(chart.unit) }];
  }
  if (chart.of === "parameters")
    for (const other of charts.filter(c => c.what === "isoflop" && c.kind === chart.kind && c.count === chart.count))
      for (const { minimum: { parameters, low, high }, flops: budget } of other.parabolas.filter(p => finite(p.minimum.parameters))) {
        const bars = errors(low, parameters, high);
        traces.push({ type: "scatter", mode: "markers", x: [budget], y: [parameters], marker: { symbol: "star", size: 11, color: tone("--ink") },
          error_y: bars && { ...bars, color: tone("--ink") }, hovertemplate: `parabola at ${power(budget)} FLOPs: ${short(parameters)}<extra></extra>` });
        all.push(...[parameters, low, high].filter(finite));
        flops.push(budget);
      }
  const title = chart.of === "tokens" ? "tokens" : named(chart.count);
  return [traces, { ...legend, ...edge(chart, budgets), xaxis: logarithmic("model FLOPs", flops, power), yaxis: logarithmic(title, all.filter(finite), short) }];
}
// Where fitted runs end and extrapolation begins.
function edge(chart, flops) {
  const fitted = members(chart).filter(cell => !chart.heldout.includes(cell.id)).map(cell => cell.flops).filter(finite);
  if (!fitted.length || Math.max(...flops) <= 1.01 * Math.max(...fitted)) return {};
  const at = Math.max(...fitted);
  return {
    shapes: [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: at, x1: at, line: { color: tone("--faint"), width: 1, dash: "dot" } }],
    annotations: [{ x: Math.log10(at), yref: "paper", y: 1, yanchor: "top", yshift: -2, text: "extrapolated →", xanchor: "left", showarrow: false, font: { size: 11, color: tone("--soft") } }],
  };
}

// Loss over the learning rate, a curve a size; the line across is at the rate that is best for the smallest.
function drawTransfer(chart) {
  const tint = k => ordered(chart.curves.length > 1 ? k / (chart.curves.length - 1) : 0), traces = [];
  chart.curves.forEach(({ size, x, y, best }, k) => {
    traces.push({ type: "scatter", mode: "lines+markers", x, y, name: short(size), showlegend: true, line: { color: tint(k), width: 1.7 },
      marker: { color: tint(k), size: 6, symbol: symbol(k) }, hovertemplate: `${chart.called} ${short(size)}, rate %{x:.3g}: %{y:.4f}<extra></extra>` });
    traces.push({ type: "scatter", mode: "markers", x: [best.rate], y: [best.loss], marker: { symbol: best.edge ? "star-open" : "star", size: 13, color: tint(k), line: { width: 1, color: best.edge ? tint(k) : tone("--paper") } },
      hovertemplate: `best at ${chart.called} ${short(size)}: %{x:.3g}<extra></extra>` });
  });
  const kept = chart.curves[0].best.rate, rates = chart.curves.flatMap(curve => curve.x);
  return [traces, { ...keyed(chart.called), showlegend: chart.sizes, xaxis: logarithmic("learning rate", rates, rate), yaxis: { ...axis(chart.unit), range: chart.range },
    shapes: [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: kept, x1: kept, line: { color: tone("--faint"), width: 1, dash: "dot" } }] }];
}
function drawRates(chart) {
  const traces = [], sizes = chart.series.flatMap(one => one.sizes), rates = chart.series.flatMap(one => [...one.value, ...one.low, ...one.high]).filter(finite);
  chart.series.forEach(({ name, sizes: x, value, low, high, edge, law }, k) => {
    const tint = DISTINCT[k % DISTINCT.length], dodged = x.map(size => size * 1.03 ** (k - (chart.series.length - 1) / 2));
    const bars = value.every((_, i) => finite(low[i]) && finite(high[i])) && { type: "data", symmetric: false, array: value.map((v, i) => high[i] - v), arrayminus: value.map((v, i) => v - low[i]), thickness: 1.4, width: 4, color: tint };
    if (law.length) traces.push({ type: "scatter", mode: "lines", x, y: law, line: { color: tint, width: 1.6, dash: DASHES[k % DASHES.length] }, hoverinfo: "skip" });
    traces.push({ type: "scatter", mode: "markers", x: dodged, y: value, error_y: bars || undefined, name: escapeText(name), showlegend: chart.series.length > 1,
      marker: { color: tint, size: 9, symbol: edge.map(at => symbol(k) + (at ? "-open" : "")), line: { width: edge.map(at => at ? 2 : 0), color: tint } }, hovertemplate: `%{y:.3g}<extra>${escapeText(name)}</extra>` });
  });
  const ticks = [...new Set(sizes)].sort((a, b) => a - b);
  return [traces, { ...keyed(""), showlegend: chart.series.length > 1, xaxis: { ...logarithmic(chart.called, sizes, short, 0.12), tickvals: ticks, ticktext: ticks.map(short) }, yaxis: logarithmic(chart.unit, rates, rate) }];
}
const rate = value => value >= 1e-3 ? String(Number(value.toPrecision(3))) : power(value);
const keyed = title => ({ showlegend: true, margin: { l: 62, r: 14, t: 44, b: 44 }, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", title: { text: title }, itemwidth: 30, font: { size: root.classList.contains("printing") ? 8 : 11 } } });

function drawCurves(chart) {
  const own = [...byId.values()].filter(cell => cell.kind === chart.kind && shown.has(cell.id) && curves[cell.id]?.[chart.what]?.[across]);
  const longest = across === "seconds" ? Math.max(0, ...own.map(cell => curves[cell.id][chart.what].seconds.at(-1))) : 0;
  const [scale, unit] = longest >= 7200 ? [3600, "hours"] : longest >= 120 ? [60, "minutes"] : [1, "seconds"];
  const several = new Set(own.map(groupOf)).size > 1 && !way().ordered;
  const traces = own.map(cell => {
    const { y, [across]: x } = curves[cell.id][chart.what], group = groupOf(cell), few = y.length < 25 && own.length <= 24 && chart.what === "heldout";
    return { type: "scatter", mode: y.length === 1 ? "markers" : few ? "lines+markers" : "lines", x: x.map(value => value / scale), y, name: escapeText(cell.name),
      line: { color: color(group), width: own.length > 24 ? 1.1 : 1.6, dash: several ? DASHES[Math.max(group, 0) % DASHES.length] : "solid" }, marker: { color: color(group), symbol: symbol(group), size: 5 },
      hovertemplate: "%{y:.4f}<extra>%{fullData.name}</extra>" };
  });
  const title = { tokens: "tokens seen", flops: "model FLOPs", seconds: `${unit} of training`, step: "steps" }[across];
  const all = traces.flatMap(trace => trace.x).filter(value => value > 0);
  const form = across === "flops" ? power : short;
  const horizontal = element("logx").checked && all.length ? logarithmic(title, all, form) : { ...axis(title), rangemode: "tozero", exponentformat: across === "flops" ? "e" : "SI" };
  return [traces, { xaxis: horizontal, yaxis: { ...axis(chart.unit), type: element("logy").checked ? "log" : "linear", nticks: 7, dtick: undefined } }];
}

const DRAW = { transfer: drawTransfer, rates: drawRates, isoflop: drawIsoflop, surface: drawSurface, frontier: drawFrontier, heldout: drawCurves, train: drawCurves };
const plots = [...document.querySelectorAll(".plot")];
function draw(only = () => true) {
  if (!plots.length) return;
  for (const plot of plots) {
    const chart = charts[plot.dataset.chart];
    if (!only(chart)) continue;
    const [traces, layout] = DRAW[chart.what](chart);
    Plotly.react(plot, traces.map(trace => ({ showlegend: false, ...trace })), {
      font: { family: FONT, size: 12, color: tone("--soft") }, margin: { l: 56, r: chart.what === "isoflop" ? 52 : 14, t: chart.lines?.length > 1 ? 44 : 18, b: 44 }, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hoverlabel: { font: { family: FONT, size: 12 } },
      width: plot.clientWidth, height: plot.clientHeight, ...layout,
    }, { displayModeBar: false });
  }
}
const redraw = () => { drawKey(); draw(); };

// --- the table of cells ---------------------------------------------------------------------------------------------

const body = document.querySelector("#cell-table tbody"), heads = [...document.querySelectorAll("#cell-table th")];
function sort(column, direction) {
  const value = row => row.children[column].dataset.value, sign = direction === "ascending" ? 1 : -1;
  const rows = [...body.rows], numeric = rows.every(row => value(row) === "" || isFinite(value(row)));
  rows.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === "" || right === "") return (left === "") - (right === "");  // what is missing stands last, either way
    return sign * (numeric ? left - right : left.localeCompare(right, undefined, { numeric: true }));
  });
  body.append(...rows);
  heads.forEach((head, place) => head.setAttribute("aria-sort", place === column ? direction : "none"));
}
heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () =>
  sort(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending")));

let waiting;
function filter() {
  const words = element("filter").value.toLowerCase().split(/\s+/);
  for (const row of body.rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  shown = new Set([...body.rows].filter(row => !row.hidden).map(row => row.dataset.cell));
  element("count").textContent = `${shown.size} of ${cells.length} cells`;
  clearTimeout(waiting);
  waiting = setTimeout(draw, 120);
}

// --- differences ----------------------------------------------------------------------------------------------------

function differences() {
  const [left, right] = [element("left").value, element("right").value];
  if (!byId.has(left) || !byId.has(right)) return;
  const text = value => value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
  const names = [...new Set([...Object.keys(settings[left]), ...Object.keys(settings[right])])];
  const rows = names.map(name => [name, text(settings[left][name]), text(settings[right][name]), meanings[name] || ""]).filter(row => row[1] !== row[2]);
  element("left-name").textContent = byId.get(left).name;
  element("right-name").textContent = byId.get(right).name;
  element("no-difference").hidden = rows.length > 0;
  const [a, b] = [byId.get(left), byId.get(right)];
  if (finite(a.y) && finite(b.y))
    rows.push(["measured", `${a.y.toFixed(4)}`, `${b.y.toFixed(4)}`, a.kind === b.kind ? `${a.label}: the second is ${(b.y - a.y >= 0 ? "+" : "") + (b.y - a.y).toFixed(4)}` : `not comparable: ${a.label}; ${b.label}`]);
  element("difference-rows").replaceChildren(...rows.map(row => {
    const line = document.createElement("tr");
    line.append(...row.map(value => Object.assign(document.createElement("td"), { textContent: value })));
    return line;
  }));
}

// --- what the reader does -------------------------------------------------------------------------------------------

for (const button of document.querySelectorAll("[data-axis]"))
  button.addEventListener("click", () => {
    across = button.dataset.axis;
    for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", String(other === button));
    draw(chart => chart.what === "heldout" || chart.what === "train");
  });
for (const id of ["logx", "logy"]) element(id).addEventListener("change", () => draw(chart => chart.what === "heldout" || chart.what === "train"));
element("colour").addEventListener("change", redraw);
element("filter").addEventListener("input", filter);
for (const id of ["left", "right"]) element(id).addEventListener("change", differences);
dark.addEventListener("change", redraw);
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 120); });
addEventListener("beforeprint", () => { root.classList.add("printing"); redraw(); });
addEventListener("afterprint", () => { root.classList.remove("printing"); redraw(); });

element("curves").querySelector(".controls").hidden = !Object.keys(curves).length;
element("nothing").hidden = Object.keys(curves).length > 0;
if (!element("charts").querySelector(".plot")) {  // nothing was fitted: the curves alone are coloured
  element("curves").querySelector(".controls").append(element("colour").parentElement);
  element("charts").hidden = true;
}
if (cells.length > 1) element("right").selectedIndex = 1;
filter();
clearTimeout(waiting);
differences();
redraw();
root.dataset.ready = "true";
