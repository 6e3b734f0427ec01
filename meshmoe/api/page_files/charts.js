// Three small curves over the last hour. A sample without a value (no request finished meanwhile) leaves a gap.

import { element, percent, three } from "./format.js";

const SAMPLES_MAX = 720;
const WIDTH = 600, HEIGHT = 74;
const SVG = "http://www.w3.org/2000/svg";

const CURVES = [
  { field: "rounds_per_token", name: "Rounds a token", top: (most) => Math.max(1, most), text: (v) => v.toFixed(2) },
  { field: "hit_ratio", name: "Hit ratio", top: () => 1, text: percent },
  { field: "tokens_per_s", name: "Tokens a second", top: (most) => Math.max(1, most), text: three },
];

export class Charts {
  constructor(container) {
    this.samples = [];
    this.parts = CURVES.map((curve) => {
      const value = element("b", { text: "–" });
      const drawing = document.createElementNS(SVG, "svg");
      drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      drawing.setAttribute("preserveAspectRatio", "none");
      drawing.setAttribute("role", "img");
      const begin = element("span"), most = element("span");
      container.append(element("div", { className: "chart", children: [
        element("div", { className: "caption", children: [element("span", { text: curve.name }), value] }),
        drawing,
        element("div", { className: "axis", children: [begin, most] }),
      ] }));
      return { ...curve, value, drawing, begin, most };
    });
  }

  start(samples) {
    this.samples = samples.slice(-SAMPLES_MAX);
    this.draw();
  }

  add(sample) {
    if (this.samples.at(-1)?.at_s >= sample.at_s) return;
    this.samples.push(sample);
    if (this.samples.length > SAMPLES_MAX) this.samples.shift();
    this.draw();
  }

  draw() {
    for (const part of this.parts) this.drawOne(part);
  }

  drawOne({ field, name, top, text, value, drawing, begin, most }) {
    const known = this.samples.filter((sample) => sample[field] !== null);
    const highest = top(Math.max(0, ...known.map((sample) => sample[field])));
    const last = known.at(-1)?.[field];
    value.textContent = last === undefined ? "–" : text(last);
    const minutes = this.samples.length ? (this.samples.at(-1).at_s - this.samples[0].at_s) / 60 : 0;
    begin.textContent = minutes >= 1 ? `${Math.round(minutes)} min ago` : "";
    most.textContent = known.length ? `up to ${text(highest)}` : "no request has finished yet";
    drawing.setAttribute("aria-label", last === undefined ? `${name}: nothing yet` : `${name}: now ${text(last)}`);
    const x = (i) => (this.samples.length < 2 ? WIDTH : (i / (this.samples.length - 1)) * WIDTH);
    const y = (v) => HEIGHT - 3 - (v / highest) * (HEIGHT - 8);
    let path = "", pen = false, previous = -9;
    this.samples.forEach((sample, i) => {
      const v = sample[field];
      if (v === null) return;
      // A pause of a minute is a pause, not a line.
      pen = pen && sample.at_s - previous < 60;
      path += `${pen ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}${pen ? "" : "h0.01"}`;
      pen = true;
      previous = sample.at_s;
    });
    drawing.replaceChildren(line("grid", `M0 ${HEIGHT - 3}H${WIDTH}`), line("line", path));
  }
}

function line(className, path) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("class", className);
  made.setAttribute("d", path || "M0 0");
  made.setAttribute("vector-effect", "non-scaling-stroke");
  return made;
}
