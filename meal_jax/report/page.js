"use strict";
// Texts come from models: they enter the page by textContent alone.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
const GREY = "#8C8C8C", K = data.axes.length, M = data.methods;
const $ = (id) => document.getElementById(id);
const colour = (m) => COLOURS[m % COLOURS.length];
const show = (v) => v === null || v === undefined ? "–" : Array.isArray(v) ? v.map(show).join(", ")
  : Math.abs(v) >= 1e5 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(4));
const make = (tag, text, parent) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
};
const table = (parent, head, rows) => {
  const out = make("table", undefined, parent), line = make("tr", undefined, make("thead", undefined, out));
  head.forEach((text) => { make("th", text, line).scope = "col"; });
  const body = make("tbody", undefined, out);
  rows.forEach((row) => { const tr = make("tr", undefined, body); row.forEach((cell) => make("td", cell, tr)); });
  return out;
};

$("title").textContent = data.title;
$("summary").textContent = [
  data.evaluation_set && `evaluated on ${data.evaluation_set.prompts} prompts of ${data.evaluation_set.name}`,
  data.seeds > 1 ? `points and measures are means of ${data.seeds} seeds; answers and curves are of the first` : `seed ${show(M[0].seed)}`,
].filter(Boolean).join("; ") + (data.note ? `. ${data.note}` : "");

// ------------------------------------------------------------------------------------------------ the preference
const grid = M[0].preferences.map((w, i) => i).sort((a, b) => {
  const one = M[0].preferences[a], other = M[0].preferences[b];
  const k = one.findIndex((v, at) => v !== other[at]);
  return k < 0 ? 0 : one[k] - other[k];
}).map((i) => M[0].preferences[i]);
let chosen = grid[Math.floor((grid.length - 1) / 2)], previous = null;
const hidden = new Set(), watchers = [];
const distance = (a, b) => a.reduce((sum, v, k) => sum + Math.abs(v - b[k]), 0);
const nearest = (list, w) => list.reduce((best, v, i) => distance(v, w) < distance(list[best], w) ? i : best, 0);
const weights = (w) => w.map((v, k) => `${data.objectives[k]} ${v.toFixed(2)}`).join("  ");
const choose = (w) => {
  if (w === chosen) return;
  previous = chosen; chosen = w; watchers.forEach((watch) => watch());
};

if (K === 3) corners(); else slider();
watchers.push(() => { $("chosen").textContent = weights(chosen); });

function slider() {
  const input = make("input", undefined, $("chooser"));
  Object.assign(input, { type: "range", id: "slider", min: 0, max: grid.length - 1, step: 1, value: grid.indexOf(chosen) });
  input.setAttribute("aria-label", K === 2 ? `Weight of ${data.objectives[0]}` : "Preference");
  const ends = make("div", undefined, $("chooser"));
  ends.className = "ends";
  if (K === 2) { make("span", data.objectives[1], ends); make("span", data.objectives[0], ends); }
  input.addEventListener("input", () => choose(grid[+input.value]));
  watchers.push(() => { input.value = grid.indexOf(chosen); input.setAttribute("aria-valuetext", weights(chosen)); });
}

function corners() {
  const pick = (x, y) => choose(grid.reduce((best, w) => {
    const far = (v) => { const p = drawn.at(v); return (p[0] - x) ** 2 + (p[1] - y) ** 2; };
    return far(w) < far(best) ? w : best;
  }, grid[0]));
  const arrow = (move) => {
    const [x, y] = drawn.at(chosen);
    // The nearest point of the grid on that side, those straight ahead before those aslant.
    const ahead = grid.map((w) => {
      const p = drawn.at(w), along = (p[0] - x) * move[0] + (p[1] - y) * move[1];
      const across = Math.abs((p[0] - x) * move[1]) + Math.abs((p[1] - y) * move[0]);
      return [w, along, along + 2 * across];
    }).filter((p) => p[1] > 1e-6).sort((a, b) => a[2] - b[2]);
    if (ahead.length) choose(ahead[0][0]);
  };
  const role = { role: "slider", "aria-valuemin": 0, "aria-valuemax": grid.length - 1 };
  const drawn = triangle($("chooser"), data.objectives, role, grid, pick, arrow);
  watchers.push(() => {
    drawn.show(chosen);
    drawn.svg.setAttribute("aria-valuenow", grid.indexOf(chosen)); drawn.svg.setAttribute("aria-valuetext", weights(chosen));
  });
}

// ------------------------------------------------------------------------------------------------ fronts
const fronts = M.map((m, i) => ({ ...m, colour: colour(i), name: m.label }));
if (data.before) fronts.push({ ...data.before, label: "before training", name: "before training", colour: GREY, before: true });
if (data.exact) fronts.push({ preferences: data.methods[0].preferences, points: data.exact, low: null, high: null, name: "exact front",
  label: "exact maximiser of the same preferences", colour: "#333333", exact: true });
const plots = [];
fronts.forEach((front, i) => {
  const label = make("label", undefined, $("legend")), box = make("input", undefined, label), key = make("span", undefined, label);
  Object.assign(box, { type: "checkbox", checked: true });
  key.className = "key"; key.style.background = front.colour;
  label.append(front.label);
  box.addEventListener("change", () => { box.checked ? hidden.delete(i) : hidden.add(i); plots.forEach((u) => u.redraw()); });
});

// The front over evaluations: `moment` is a position among their steps, fractions between two of them.
const steps = [...new Set(M.flatMap((m) => m.evaluations.map((e) => e[0])))].sort((a, b) => a - b);
let moment = steps.length - 1;
const pointsOf = (f) => {
  if (!f.evaluations || f.evaluations.length < 2 || moment >= steps.length - 1) return f.points;
  const at = (i) => (f.evaluations.findLast((e) => e[0] <= steps[i]) || f.evaluations[0])[1];
  const i = Math.floor(moment), to = at(i + 1);
  return at(i).map((p, j) => p.map((v, k) => v + (moment - i) * (to[j][k] - v)));
};
if (steps.length > 1) replay(); else $("replay").remove();

function replay() {
  const button = make("button", "Play", $("replay")), label = make("label", "evaluation ", $("replay"));
  const input = make("input", undefined, label), step = make("output", undefined, $("replay"));
  button.type = "button";
  Object.assign(input, { type: "range", id: "moment", min: 0, max: steps.length - 1, step: 1, value: moment });
  const move = (position) => {
    moment = position;
    input.value = Math.round(position);
    step.textContent = `step ${steps[Math.round(position)]}`;
    plots.forEach((u) => u.redraw());
  };
  let frame = null;
  const stop = () => { cancelAnimationFrame(frame); frame = null; button.textContent = "Play"; };
  button.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;  // the slider does the same in jumps
  button.addEventListener("click", () => {
    if (frame !== null) { stop(); return; }
    const begun = performance.now(), seconds = Math.min(8, steps.length - 1);
    button.textContent = "Stop";
    const tick = (now) => {
      const position = Math.max(0, now - begun) / 1000 / seconds * (steps.length - 1);
      move(Math.min(position, steps.length - 1));
      if (position < steps.length - 1) frame = requestAnimationFrame(tick); else stop();
    };
    frame = requestAnimationFrame(tick);
  });
  input.addEventListener("input", () => { stop(); move(+input.value); });
  step.textContent = `step ${steps[moment]}`;
}

const figure = (parent, title) => {
  const out = make("figure", undefined, parent);
  make("figcaption", title, out);
  return out;
};
const width = (parent) => Math.max(260, parent.clientWidth);

function drawFront(a, b) {
  const parent = figure($("fronts"), `${data.axes[b]} against ${data.axes[a]}`);
  const xs = [...new Set(fronts.flatMap((f) => f.points.map((p) => p[a])))].sort((p, q) => p - q);
  const bounds = [a, b].map((k) => {
    const all = fronts.flatMap((f) => [...f.points, ...(f.low || []), ...(f.high || []), ...(f.evaluations || []).flatMap((e) => e[1])].map((p) => p[k]));
    // Not as the arguments of Math.min: a long run has more points than a call may have.
    const [low, high] = all.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const pad = 0.06 * (high - low) || 0.5;
    return [low - pad, high + pad];
  });
  // The data only carries the ranges; all marks are drawn by `paint`, since fronts are ordered by preference and not by x.
  const whole = [bounds[0], bounds[1]];
  let u = null;
  const tip = make("div", undefined, parent);
  tip.className = "tip"; tip.hidden = true;
  const paint = (u) => {
    const c = u.ctx, ratio = devicePixelRatio || 1;
    const at = (p) => [u.valToPos(p[a], "x", true), u.valToPos(p[b], "y", true)];
    c.save();
    c.beginPath(); c.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height); c.clip();
    fronts.forEach((f, i) => {
      if (hidden.has(i)) return;
      const points = pointsOf(f);
      c.strokeStyle = c.fillStyle = f.colour;
      c.lineWidth = 1.5 * ratio;
      c.setLineDash(f.before ? [2 * ratio, 3 * ratio] : f.exact ? [6 * ratio, 4 * ratio] : []);
      if (K === 2) {
        const order = f.preferences.map((w, j) => j).sort((p, q) => f.preferences[p][0] - f.preferences[q][0]);
        c.beginPath();
        order.forEach((j, n) => { const [x, y] = at(points[j]); n ? c.lineTo(x, y) : c.moveTo(x, y); });
        c.stroke();
      }
      c.setLineDash([]);
      const now = nearest(f.preferences, chosen);
      points.forEach((p, j) => {
        const [x, y] = at(p), big = j === now;
        if (f.low && !f.before && points === f.points) {
          c.globalAlpha = big ? 0.9 : 0.3;
          const [x0, y0] = at(f.low[j]), [x1, y1] = at(f.high[j]);
          c.lineWidth = ratio;
          c.beginPath(); c.moveTo(x0, y); c.lineTo(x1, y); c.moveTo(x, y0); c.lineTo(x, y1); c.stroke();
          c.globalAlpha = 1;
        }
        c.beginPath(); c.arc(x, y, (big ? 7 : 3) * ratio, 0, 7);
        if (f.exact || f.before) { c.lineWidth = 1.5 * ratio; c.stroke(); } else c.fill();
        if (big && !f.exact && !f.before) { c.lineWidth = 2 * ratio; c.strokeStyle = "#222"; c.stroke(); c.strokeStyle = f.colour; }
      });
    });
    c.restore();
  };
  const hover = (u) => {
    const { left, top } = u.cursor;
    let best = null;
    if (left >= 0) fronts.forEach((f, i) => hidden.has(i) || pointsOf(f).forEach((p, j) => {
      const far = Math.hypot(u.valToPos(p[a], "x") - left, u.valToPos(p[b], "y") - top);
      if (far < 20 && (!best || far < best.far)) best = { far, f, p, j };
    }));
    tip.hidden = !best;
    if (!best) return;
    const lines = [best.f.label, weights(best.f.preferences[best.j]), ...data.objectives.map((name, k) => {
      const span = best.f.low && best.p === best.f.points[best.j] ? ` (${show(best.f.low[best.j][k])} … ${show(best.f.high[best.j][k])})` : "";
      return `${name}: ${show(best.p[k])}${span}`;
    })];
    tip.textContent = lines.join("\n");
    const over = u.over.getBoundingClientRect(), home = parent.getBoundingClientRect();
    const x = over.left - home.left + left + 14;
    tip.style.left = `${Math.max(0, Math.min(x, home.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${over.top - home.top + top + 14}px`;
  };
  // uPlot asks with the data's own bounds at first and after a double-click, and with others for a zoom.
  const own = [[xs[0], xs[xs.length - 1]], [bounds[1][0], bounds[1][0]]];
  const range = (k) => (u, low, high) => low === null || (low === own[k][0] && high === own[k][1]) ? whole[k] : [low, high];
  const height = Math.min(440, Math.max(280, 0.75 * width(parent)));
  u = new uPlot({
    width: width(parent), height, legend: { show: false },
    scales: { x: { time: false, range: range(0) }, y: { range: range(1) } },
    // Axes have room for names, the upright one for less; the caption has the model or the question too.
    axes: [{ label: shortened(data.objectives[a], 36), stroke: "#333" }, { label: shortened(data.objectives[b], 30), stroke: "#333", size: 60 }],
    cursor: { drag: { x: true, y: true, uni: 30 }, points: { show: false } },
    series: [{}, { paths: () => null, points: { show: false } }],
    hooks: { draw: [paint], setCursor: [hover] },
  }, [xs, xs.map(() => bounds[1][0])], parent);
  plots.push(u);
  resized.push([u, parent, (w) => Math.min(440, Math.max(280, 0.75 * w))]);
}
const resized = [];
for (let a = 0; a < K; a++) for (let b = a + 1; b < K; b++) if (plots.length < 6) drawFront(a, b);
watchers.push(() => plots.forEach((u) => u.redraw()));
table($("front-table"), ["front", ...data.objectives.map((n) => `weight of ${n}`), ...data.axes], fronts.flatMap((f) => f.points.map((p, j) => [
  f.label, ...f.preferences[j].map((v) => v.toFixed(2)),
  ...p.map((v, k) => show(v) + (f.low ? ` (${show(f.low[j][k])} … ${show(f.high[j][k])})` : "")),
])));

// ------------------------------------------------------------------------------------------------ answers
const prompts = M[0].samples.map((s) => s.prompt);
prompts.forEach((text, i) => { make("option", `${i + 1}: ${text.replace(/\s+/g, " ").slice(0, 60)}`, $("prompt")).value = i; });
[["previous", "the preference before"], ...(M.length > 1 ? [["first", `${M[0].label}, beside it`]] : []), ["none", "nothing"]]
  .forEach(([value, text]) => { make("option", text, $("against")).value = value; });
$("against").value = M.length > 1 ? "first" : "previous";
const answerOf = (m, w) => {
  const place = +$("prompt").value, sample = m.samples[place];  // by its place: two prompts may read the same
  return sample && sample.prompt === prompts[place] && sample.answers[nearest(sample.answers.map((a) => a.preference), w)];
};

// Words of `text` that are not of the longest common subsequence with `other`.
function differing(text, other) {
  const a = text.split(/(\s+)/), b = other.split(/(\s+)/), n = a.length, m = b.length;
  if (n * m > 4e6) return a.map((word) => [word, false]);
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--)
    best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const out = [];
  for (let i = 0, j = 0; i < n;) {
    if (j < m && a[i] === b[j]) { out.push([a[i], false]); i++; j++; }
    else if (j < m && best[i][j + 1] > best[i + 1][j]) j++;
    else out.push([a[i++], true]);
  }
  return out;
}

function answers() {
  const home = $("answers"), against = $("against").value;
  home.replaceChildren();
  $("prompt-text").textContent = prompts.length ? prompts[+$("prompt").value] : "The run stored no answers (config.eval.samples).";
  M.forEach((m, i) => {
    const answer = answerOf(m, chosen);
    if (!answer) return;
    const card = make("article", undefined, home);
    card.className = "answer"; card.style.borderTopColor = colour(i);
    make("h3", m.label, card);
    const rewards = make("p", answer.rewards.map((v, k) => `${data.objectives[k]} ${show(v)}`).join("   "), card);
    rewards.className = "rewards";
    const text = make("p", undefined, card);
    text.className = "response";
    const other = against === "first" ? i && answerOf(M[0], chosen) : against === "previous" ? previous && answerOf(m, previous) : null;
    if (!other) text.textContent = answer.response || "(empty)";
    else differing(answer.response, other.response).forEach(([word, differs]) => {
      if (differs && word.trim()) make("mark", word, text); else text.append(word);
    });
    if (answer.explained) make("p", answer.explained, card).className = "explained";
  });
}
if (data.rule) $("rule").textContent = data.rule; else $("rule").remove();
$("prompt").addEventListener("change", answers);
$("against").addEventListener("change", answers);
watchers.push(answers);

// ------------------------------------------------------------------------------------------------ results
const measured = [...new Set(M.flatMap((m) => Object.keys(m.measures)))], spent = [...new Set(M.flatMap((m) => Object.keys(m.budget)))];
const words = (name) => name.replaceAll("_", " ");
const cell = (m, name) => {
  const span = m.intervals[name], value = m.measures[name];
  return show(value) + (span && !Array.isArray(value) ? ` (${show(span[0])} … ${show(span[1])})` : "");
};
table($("results"), ["", ...M.map((m) => m.label)], [
  ...measured.map((name) => [words(name), ...M.map((m) => cell(m, name))]),
  ...spent.map((name) => [words(name), ...M.map((m) => show(m.budget[name]))]),
  ["seconds of training", ...M.map((m) => show(m.seconds))],
]);

// ------------------------------------------------------------------------------------------------ curves
function lines(home, title, series) {
  series = series.filter((s) => s.ys && s.ys.length);
  if (!series.length) return;
  const parent = figure(home, title);
  const joined = uPlot.join(series.map((s) => [s.xs, s.ys]));
  const u = new uPlot({
    width: width(parent), height: 200, scales: { x: { time: false } },
    axes: [{ stroke: "#333" }, { stroke: "#333", size: 64, values: (u, ticks) => ticks.map(show) }], cursor: { drag: { x: true, y: false } },
    series: [{ label: "step" }, ...series.map((s) => ({ label: s.label, stroke: s.colour, dash: s.dash, width: 1.5, spanGaps: true,
      value: (u, v) => show(v), points: { show: s.xs.length < 30 } }))],
  }, joined, parent);
  resized.push([u, parent, () => 200]);
}
const per = (name) => M.map((m, i) => ({ label: m.label, colour: colour(i), xs: m.curves.step, ys: m.curves[name] }));
lines($("curves"), "hypervolume", M.map((m, i) => ({ label: m.label, colour: colour(i), xs: m.history.map((h) => h[0]), ys: m.history.map((h) => h[1]) })));
const drawn = [...new Set(M.flatMap((m) => Object.keys(m.curves)))].filter((name) => name !== "step" && !name.startsWith("weight/"));
drawn.filter((name) => !name.startsWith("preference/")).forEach((name) => lines($("curves"), name, per(name)));
M.forEach((m) => data.objectives.forEach((name, k) => {
  const which = [["target", "#333333", [2, 3]], ["proposed", COLOURS[0], [6, 3]], ["adapted", COLOURS[1]]];
  lines($("dynamics"), `${m.label}: weight of ${name}`, which.map(([kind, colour, dash]) => (
    { label: kind, colour, dash, xs: m.curves.step, ys: m.curves[`weight/${name}/${kind}`] })));
}));
drawn.filter((name) => name.startsWith("preference/")).forEach((name) => lines($("dynamics"), name, per(name)));

// ------------------------------------------------------------------------------------------------ configuration
const text = (id, head, rows) => { table($(id), head, rows).className = "text"; };
text("config", ["field", "value", "default"], data.config.filter((c) => c[3]).map((c) => c.slice(0, 3)));
text("all-config", ["field", "value", "default"], data.config.map((c) => c.slice(0, 3)));
text("environment", ["", ""], data.environment);
$("again").textContent = ["from meal_jax import config as base", "", "", "def get_config():", "    c = base.default()",
  ...data.config.filter((c) => c[3]).map((c) => `    c.${c[0]} = ${c[1]}`), "    return c"].join("\n");

watchers.forEach((watch) => watch());
addEventListener("resize", () => resized.forEach(([u, parent, height]) => u.setSize({ width: width(parent), height: height(width(parent)) })));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
document.body.dataset.ready = "yes";
})();
