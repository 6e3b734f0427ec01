// The mesh as a graph, drawn by Cytoscape.js: a disc for each node with its share of the experts as a ring, sized by
// capacity, on a circle in the order of the status, so that nothing jumps when figures change. The table below it says
// the same in words, for keyboards and screen readers.

import { GONE, colour, duration, nodeColour, percent, rate } from "./format.js";

const MANY = 6;

export class Graph {
  constructor(container, onPick) {
    this.container = container;
    this.onPick = onPick;
    this.names = "";
    this.view = null;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.restyle());
    new ResizeObserver(() => this.view && this.arrange()).observe(container);
  }

  show(status, picked) {
    const peers = status.peers;
    const names = peers.map((peer) => peer.node).join("\n");
    const elements = [...peers.map((peer, i) => nodeElement(status, peer, i, picked)), ...linkElements(status, picked)];
    if (this.view === null) {
      this.view = cytoscape({
        container: this.container, elements, style: style(), layout: { name: "null" },
        userZoomingEnabled: false, userPanningEnabled: false, boxSelectionEnabled: false,
      });
      this.view.on("tap", "node", (event) => this.onPick(event.target.id()));
      this.view.on("tap", (event) => event.target === this.view && this.onPick(null));
    } else {
      this.update(elements);
    }
    if (names !== this.names) {
      this.names = names;
      this.arrange();
    }
    this.container.setAttribute("aria-label", summary(status));
  }

  update(elements) {
    const wanted = new Set(elements.map((one) => one.data.id));
    this.view.batch(() => {
      this.view.elements().forEach((shown) => {
        if (!wanted.has(shown.id())) shown.remove();
      });
      for (const one of elements) {
        const shown = this.view.getElementById(one.data.id);
        if (shown.empty()) this.view.add(one);
        else shown.data({ ...one.data, side: shown.data("side") }).classes(one.classes);
      }
    });
  }

  /** On an ellipse that fills the room; names stand outside of it, so that links' figures have the inside. */
  arrange() {
    const nodes = this.view.nodes();
    const count = nodes.length;
    this.container.classList.toggle("many", count > MANY);
    this.view.resize();
    const { clientWidth: width, clientHeight: height } = this.container;
    const largest = Math.max(...nodes.map((node) => node.data("diameter")));
    // Three stand at the corners of a triangle, which takes but three quarters of its circle's height.
    const down = Math.max(20, height / 2 - largest / 2 - 50) * (count === 3 ? 4 / 3 : 1);
    const across = Math.min(Math.max(20, width / 2 - Math.max(70, largest / 2 + 10)), down * 2.2);
    const first = count === 2 ? Math.PI : count % 2 ? -Math.PI / 2 : -Math.PI / 2 - Math.PI / count;
    this.view.batch(() => nodes.forEach((node) => {
      const angle = first + (2 * Math.PI * node.data("index")) / count;
      const y = count < 3 ? 0 : down * Math.sin(angle);
      node.position({ x: count < 2 ? 0 : across * Math.cos(angle), y });
      node.data("side", y < -1 ? "top" : "bottom");
    }));
    this.view.zoom(1);
    this.view.center();
  }

  restyle() {
    this.view?.style(style());
  }
}

function nodeElement(status, peer, index, picked) {
  const gone = GONE.has(peer.state);
  const largest = Math.max(1, ...status.peers.map((one) => one.capacity_bytes));
  const total = status.model?.experts ?? 0;
  const share = gone || !total ? 0 : peer.experts_held / total;
  const words = gone ? peer.state : peer.state === "alive" ? `${percent(share)} of the experts` : peer.state;
  return {
    group: "nodes",
    data: {
      id: peer.node, label: `${peer.node}${peer.is_self ? " (this node)" : ""}\n${words}`, index,
      side: "bottom", share: Math.round(share * 1000) / 10, diameter: (44 + 44 * Math.sqrt(peer.capacity_bytes / largest)) * (status.peers.length > MANY ? 0.7 : 1),
    },
    classes: [gone ? "gone" : peer.state, peer.node === picked ? "picked" : ""].join(" "),
  };
}

/** Among many nodes only the links of the one that is picked, or of this one, are labelled. */
function linkElements(status, picked) {
  const centre = picked ?? status.node;
  const gone = new Set(status.peers.filter((peer) => GONE.has(peer.state)).map((peer) => peer.node));
  const known = new Set(status.peers.map((peer) => peer.node));
  return status.links.filter(({ nodes }) => nodes.every((name) => known.has(name))).map((link) => ({
    group: "edges",
    data: {
      id: link.nodes.join(" – "), source: link.nodes[0], target: link.nodes[1],
      label: status.peers.length > MANY && !link.nodes.includes(centre) ? "" : figures(link),
    },
    classes: link.nodes.some((name) => gone.has(name)) ? "gone" : "",
  }));
}

function figures(link) {
  const roundTrip = link.rtt_ms !== null && duration(link.rtt_ms / 1000);
  return [roundTrip, link.rate_bytes_per_s && rate(link.rate_bytes_per_s)].filter(Boolean).join("\n");
}

function summary(status) {
  const nodes = status.peers.map((peer) => `${peer.node} ${peer.state}`).join(", ");
  return `${status.peers.length} nodes: ${nodes}. ${status.links.length} measured links. The table below has the figures.`;
}

function style() {
  const ink = colour("ink"), card = colour("card"), muted = colour("muted"), link = colour("link");
  const ofNode = (node) => nodeColour(node.data("index"));
  const text = { "font-family": "system-ui, sans-serif", color: ink, "text-wrap": "wrap", "text-background-color": card };
  return [
    { selector: "node", style: {
      ...text, width: "data(diameter)", height: "data(diameter)", label: "data(label)", "font-size": 13, "line-height": 1.35,
      "text-valign": "data(side)", "text-margin-y": (node) => (node.data("side") === "top" ? -8 : 8), "background-color": ofNode, "background-opacity": 0.18,
      "pie-size": "100%", "pie-hole": "74%", "pie-1-background-color": ofNode, "pie-1-background-size": "data(share)",
      "border-width": 1.5, "border-color": ofNode, "overlay-opacity": 0,
    } },
    { selector: "node.suspect, node.joining, node.leaving", style: { "border-style": "dashed", "border-width": 2.5 } },
    { selector: "node.gone", style: {
      "background-color": muted, "background-opacity": 0.08, "border-color": muted, "border-style": "dashed", color: muted,
    } },
    { selector: "node.picked", style: { "border-width": 4, "border-style": "solid" } },
    { selector: "edge", style: {
      ...text, label: "data(label)", "font-size": 12, color: muted, "line-height": 1.25, width: 1.5, "line-color": link,
      "curve-style": "straight", "text-background-opacity": 1, "text-background-padding": 3, "overlay-opacity": 0,
    } },
    { selector: "edge.gone", style: { "line-style": "dashed", label: "" } },
  ];
}
