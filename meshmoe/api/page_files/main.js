// The page: one status from the node at a time, shown in all its parts.

import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { ask, follow, setKey } from "./feed.js";
import { duration, percent, three } from "./format.js";
import { Graph } from "./graph.js";
import { HeatMap } from "./heat.js";
import { showAgreement, showMoves, showNodes } from "./tables.js";

const find = (id) => document.getElementById(id);
const graph = new Graph(find("graph"), pick);
const heat = new HeatMap(find("heat"), find("legend"), find("heat-reading"));
const charts = new Charts(find("charts"));
new Chat(document);

let picked = null;
let latest = null;

function pick(node) {
  picked = node;
  if (latest) show(latest);
}

function show(status) {
  latest = status;
  document.title = `${status.node}: meshmoe`;
  find("node-name").textContent = status.node;
  const model = status.model;
  find("model-line").textContent = model
    ? `${model.name}, ${model.experts} experts in ${model.moe_layers} layers, meshmoe ${status.software}`
    : `meshmoe ${status.software}`;
  const alive = status.peers.filter((peer) => peer.state === "alive").length;
  const serving = status.serving;
  setState(
    serving.ready ? `serving, ${alive} of ${status.peers.length} nodes` : serving.reason || status.phase,
    serving.ready ? "good" : "bad",
  );
  find("figure-speed").textContent = three(serving.tokens_per_s_now);
  find("figure-rounds").textContent = serving.rounds_per_token === null ? "–" : serving.rounds_per_token.toFixed(2);
  find("figure-pass").textContent = serving.tokens_per_pass === null ? "–" : serving.tokens_per_pass.toFixed(2);
  find("figure-drafts").textContent = serving.acceptance === null || serving.drafted_per_pass === null
    ? "no drafts"
    : `${percent(serving.acceptance)} of ${serving.drafted_per_pass.toFixed(1)} drafts right`;
  find("figure-hit").textContent = serving.hit_ratio === null ? "–" : percent(serving.hit_ratio);
  const p99 = serving.latency.token_ms_p99;
  find("figure-p99").textContent = p99 === null ? "–" : duration(p99 / 1000);
  graph.show(status, picked);
  showNodes(document.querySelector("#nodes tbody"), status, picked, pick);
  heat.show(status, picked);
  showAgreement(find("agreement"), status);
  showMoves(find("moving"), find("moved"), status);
  find("join").textContent = status.join_command ? `Join from another box: ${status.join_command}` : "";
}

function setState(text, kind) {
  const shown = find("state-text");
  if (shown.textContent !== text) shown.textContent = text; // said aloud only when it changes
  find("state").className = `state ${kind}`;
}

async function start() {
  charts.start(await (await ask("mesh/history")).json());
}

follow({
  status: show,
  sample: (sample) => charts.add(sample),
  lost: (error) => {
    setState(error.status ? error.message : "the node does not answer", "bad");
    find("key-form").hidden = error.status !== 401;
  },
});
start().catch(() => {});

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(find("key").value);
  location.reload();
});
