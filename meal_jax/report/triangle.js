"use strict";
// A triangle to choose a preference among three objectives, for the report and for the page of `serve`.
// Weights w of three corners stand at the mean of the corners, weighted by w. `pick(x, y)` hears where the pointer is, and
// `arrow([x, y])` the direction of an arrow key. Returns the element, `at(w)` = [x, y], and `show(w)`, which moves the dot.
const CORNERS = [[110, 22], [20, 172], [200, 172]];
const shortened = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
function triangle(parent, names, attributes, points, pick, arrow) {
  const shape = (tag, values, into) => {
    const out = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(values).forEach(([name, value]) => out.setAttribute(name, value));
    into.append(out);
    return out;
  };
  const at = (w) => [0, 1].map((axis) => w.reduce((sum, v, k) => sum + v * CORNERS[k][axis], 0));
  const svg = shape("svg", { viewBox: "0 0 220 196", id: "triangle", tabindex: 0,
    "aria-label": "Preference among three objectives; arrow keys move it", ...attributes }, parent);
  shape("polygon", { points: CORNERS.join(" "), fill: "#f4f4f4", stroke: "#8C8C8C" }, svg);
  points.forEach((w) => { const [cx, cy] = at(w); shape("circle", { cx, cy, r: 2.5, fill: "#8C8C8C" }, svg); });
  const most = names[1].length + names[2].length > 36 ? 18 : 36;  // the names at the base share its width
  CORNERS.forEach(([x, y], k) => {
    shape("text", { x: [110, 2, 218][k], y: k ? y + 18 : y - 8, "text-anchor": ["middle", "start", "end"][k] }, svg)
      .textContent = shortened(names[k], k ? most : 36);
  });
  const dot = shape("circle", { r: 7, fill: "#222" }, svg);
  const drag = (event) => {
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    pick(p.x, p.y);
  };
  svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); drag(event); });
  svg.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  const keys = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  svg.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    arrow(keys[event.key]);
  });
  const show = (w) => { const [x, y] = at(w); dot.setAttribute("cx", x); dot.setAttribute("cy", y); };
  return { svg, at, show };
}
