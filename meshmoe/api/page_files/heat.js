// Experts by holder: a row a layer, a column an expert, the colour of its holder; several holders share the cell in
// stripes, and an expert without a holder is crossed out. On a canvas, because a large model has ten thousand cells.

import { colour, element, nodeColour } from "./format.js";

export class HeatMap {
  constructor(canvas, legend, reading) {
    Object.assign(this, { canvas, legend, reading, layers: [], peers: [], picked: null, at: null, drawn: "" });
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.move(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(status, picked) {
    this.layers = status.coverage?.holders_by_layer ?? [];
    this.peers = status.peers;
    this.picked = status.peers.findIndex((peer) => peer.node === picked);
    const now = JSON.stringify([this.layers, this.peers.map((peer) => peer.node), this.picked]);
    if (now === this.drawn) return;
    this.drawn = now;
    this.showLegend(status);
    this.draw();
  }

  showLegend(status) {
    const held = this.peers.map(() => 0);
    this.layers.flat().forEach((holders) => holders.forEach((i) => (held[i] += 1)));
    this.legend.replaceChildren(...this.peers.flatMap((peer, i) => held[i] === 0 ? [] : [element("span", {
      children: [
        element("span", { className: "swatch", attributes: { style: `background: var(--node-${i % 8})` } }),
        `${peer.node} ${held[i]}`,
      ],
    })]));
    const coverage = status.coverage;
    if (!coverage) return;
    const lacking = coverage.total - coverage.covered;
    const words = lacking ? `${lacking} have no holder` : `each has ${coverage.replicas_mean.toFixed(2)} holders on average`;
    this.legend.append(element("span", { text: words, className: lacking ? "word-bad" : "muted" }));
  }

  columns() {
    return Math.max(1, ...this.layers.map((layer) => layer.length));
  }

  draw() {
    const columns = this.columns(), width = this.canvas.clientWidth, scale = devicePixelRatio || 1;
    this.left = 28;
    this.cell = (width - this.left) / columns;
    this.rowHeight = Math.max(6, Math.min(32, this.cell * 1.5));
    const height = Math.max(24, this.rowHeight * this.layers.length);
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.colours = this.peers.map((_, i) => nodeColour(i));
    this.layers.forEach((layer, row) => {
      this.drawName(pen, row);
      layer.forEach((holders, column) => this.drawCell(pen, row, column, holders));
    });
  }

  drawName(pen, row) {
    const every = Math.ceil(14 / this.rowHeight);
    if (row % every) return;
    pen.fillStyle = colour("muted");
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillText(String(row), 2, (row + 0.5) * this.rowHeight);
  }

  drawCell(pen, row, column, holders) {
    const gap = this.cell > 7 ? 1.5 : 0.5;
    const x = this.left + column * this.cell, y = row * this.rowHeight;
    const width = this.cell - gap, height = this.rowHeight - gap;
    const shown = this.picked < 0 || holders.includes(this.picked);
    pen.globalAlpha = shown ? 1 : 0.16;
    holders.forEach((holder, i) => {
      pen.fillStyle = this.colours[holder] ?? "gray";
      pen.fillRect(x, y + (i * height) / holders.length, width, height / holders.length);
    });
    pen.globalAlpha = 1;
    if (!holders.length) {
      pen.strokeStyle = colour("bad");
      pen.lineWidth = 1.5;
      pen.strokeRect(x + 0.75, y + 0.75, width - 1.5, height - 1.5);
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x + width, y + height);
      pen.stroke();
    }
    if (this.at && this.at[0] === row && this.at[1] === column) {
      pen.strokeStyle = colour("ink");
      pen.lineWidth = 2;
      pen.strokeRect(x - 1, y - 1, width + 2, height + 2);
    }
  }

  point(event) {
    const row = Math.floor(event.offsetY / this.rowHeight);
    const column = Math.floor((event.offsetX - this.left) / this.cell);
    this.move(this.layers[row]?.[column] ? [row, column] : null);
  }

  key(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    if (!step || !this.layers.length) return;
    event.preventDefault();
    const [row, column] = this.at ?? [0, -step[1]];
    const to = Math.min(this.layers.length - 1, Math.max(0, row + step[0]));
    this.move([to, Math.min(this.layers[to].length - 1, Math.max(0, column + step[1]))]);
  }

  move(at) {
    if (JSON.stringify(at) === JSON.stringify(this.at)) return;
    this.at = at;
    if (at) {
      const holders = this.layers[at[0]][at[1]].map((i) => this.peers[i]?.node ?? "?");
      this.reading.textContent = `Layer ${at[0]}, expert ${at[1]}: ${holders.join(", ") || "nobody holds it"}`;
    } else {
      this.reading.textContent = "Point at an expert, or move with the arrow keys.";
    }
    this.draw();
  }
}
