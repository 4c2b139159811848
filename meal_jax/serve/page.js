"use strict";
// Texts come from models: they enter the page by textContent alone.
(async () => {
const $ = (id) => document.getElementById(id);
const make = (tag, text, parent, kind) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
};
const run = await (await fetch("/run.json")).json();
const K = run.objectives.length;
let chosen = run.preference;
const named = (w) => run.objectives.map((name, k) => `${name} ${(Array.isArray(w) ? w[k] : w[name]).toFixed(2)}`).join("   ");
const choose = (w) => { chosen = w; $("chosen").textContent = named(w); };

document.title = $("title").textContent = run.model;
$("summary").textContent = `${run.task}, step ${run.step}; an answer has at most ${run.max_new} tokens`;
$("prompt").value = run.prompt;
$("temperature").value = run.temperature;

const slide = (label, value, change) => {
  const input = make("input", undefined, $("chooser"));
  Object.assign(input, { type: "range", min: 0, max: 1, step: 0.01, value });
  input.setAttribute("aria-label", label);
  input.addEventListener("input", () => change(+input.value));
  return input;
};

if (K === 2) {
  slide(`Weight of ${run.objectives[0]}`, chosen[0], (v) => choose([v, 1 - v])).id = "slider";
  const ends = make("div", undefined, $("chooser"), "ends");
  make("span", run.objectives[1], ends); make("span", run.objectives[0], ends);
} else if (K === 3) corners();
else {  // one slider per objective; the preference is their shares
  const raw = [...chosen];
  run.objectives.forEach((name, k) => {
    make("div", name, $("chooser"), "ends");
    slide(`Weight of ${name}`, raw[k], (v) => {
      raw[k] = v;
      const sum = raw.reduce((a, b) => a + b, 0);
      choose(raw.map((w) => sum > 0 ? w / sum : 1 / K));
    });
  });
}
choose(chosen);

function corners() {
  const move = (x, y) => {  // barycentric weights, clipped to the triangle
    const top = (172 - y) / 150, right = (x - 20 - 90 * top) / 180;
    const w = [top, 1 - top - right, right].map((v) => Math.max(0, v)), sum = w.reduce((a, b) => a + b, 0);
    choose(w.map((v) => v / sum));
    drawn.show(chosen);
  };
  const arrow = (step) => { const [x, y] = drawn.at(chosen); move(x + 5 * step[0], y + 5 * step[1]); };
  const drawn = triangle($("chooser"), run.objectives, { role: "application" }, [], move, arrow);
  drawn.show(chosen);
}

async function* events(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("send").disabled = true;
  $("status").textContent = "Answering; the first answer takes longer, since its program is compiled.";
  const prompt = $("prompt").value, box = document.createElement("article");
  make("p", `${named(chosen)} — ${prompt}`, box, "asked");
  const text = make("p", "", box), facts = make("p", "", box, "facts");
  $("answers").prepend(box);
  const started = performance.now();
  try {
    const body = { model: run.model, stream: true, preference: chosen, seed: +$("seed").value,
      messages: [{ role: "user", content: prompt }], stream_options: { include_usage: true } };
    if ($("temperature").value !== "") body.temperature = +$("temperature").value;
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const notes = [];
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice && choice.delta.content) text.textContent += choice.delta.content;
      if (choice && choice.finish_reason === "length") notes.push("cut at its limit");
      if (chunk.meal) {
        if (chunk.meal.text !== undefined) text.textContent = chunk.meal.text;  // the pieces could not be taken back
        notes.push(`proposed: ${named(chunk.meal.proposed)}`);
        const rewards = Object.entries(chunk.meal.rewards);
        if (rewards.length) notes.push(`rewards: ${rewards.map(([name, v]) => `${name} ${v === null ? "–" : v.toFixed(2)}`).join("   ")}`);
      }
      if (chunk.usage) notes.push(`${chunk.usage.completion_tokens} tokens in ${((performance.now() - started) / 1000).toFixed(1)} s`);
    }
    facts.textContent = notes.join("; ");
    if (!text.textContent) text.textContent = "(an empty answer)";
  } catch (error) {
    box.className = "wrong";
    facts.textContent = error.message;
  }
  $("status").textContent = "";
  $("send").disabled = false;
});
document.body.dataset.ready = "yes";
})();
