// The nodes as a table, and experts on the move as lists.

import { GONE, ago, duration, element, percent, rate, size } from "./format.js";

const WORDS = { alive: "word-good", suspect: "word-warn", joining: "word-warn", leaving: "word-warn", dead: "word-bad", left: "" };

export function showNodes(body, status, picked, onPick) {
  const focused = document.activeElement?.dataset?.node;
  body.replaceChildren(...status.peers.map((peer, i) => nodeRow(status, peer, i, picked, onPick)));
  if (focused) body.querySelector(`[data-node="${CSS.escape(focused)}"]`)?.focus();
}

function nodeRow(status, peer, index, picked, onPick) {
  const pick = element("button", {
    text: peer.node, className: "pick",
    attributes: {
      type: "button", "data-node": peer.node, "aria-pressed": String(peer.node === picked),
      title: "Show this node's experts alone",
    },
  });
  pick.addEventListener("click", () => onPick(peer.node === picked ? null : peer.node));
  const swatch = element("span", { className: "swatch", attributes: { style: `background: var(--node-${index % 8})` } });
  const used = peer.capacity_bytes ? peer.held_bytes / peer.capacity_bytes : 0;
  const figures = peer.capacity_bytes ? `${size(peer.held_bytes)} of ${size(peer.capacity_bytes)}` : "–";
  const cells = [
    element("td", { children: [swatch, pick, peer.is_self ? element("span", { text: " this node", className: "muted" }) : ""] }),
    element("td", { text: peer.state, className: WORDS[peer.state] ?? "" }),
    element("td", { text: String(peer.experts_held) }),
    element("td", { children: [bar(used, `${peer.node}: capacity used`), figures] }),
    element("td", { text: peer.rtt_ms === null ? "–" : duration(peer.rtt_ms / 1000), className: "number" }),
    element("td", { text: peer.rate_bytes_per_s === null ? "–" : rate(peer.rate_bytes_per_s), className: "number" }),
  ];
  return element("tr", { className: GONE.has(peer.state) ? "gone" : "", children: cells });
}

function bar(share, name) {
  const percentage = Math.min(100, Math.round(share * 100));
  return element("span", {
    className: "bar",
    attributes: {
      role: "progressbar", "aria-label": name, "aria-valuenow": String(percentage), "aria-valuemin": "0", "aria-valuemax": "100",
    },
    children: [element("span", { attributes: { style: `width: ${percentage}%` } })],
  });
}

const OUTCOMES = {
  given: (peer) => `given to ${peer}`,
  taken: (peer) => `taken from ${peer}`,
  kept: (peer) => `kept, not given to ${peer}`,
  forgotten: (peer) => `not taken from ${peer}`,
};

export function showMoves(moving, moved, status) {
  const onTheWay = status.migrations.map((move) => {
    const words = `expert ${move.expert} ${move.direction === "giving" ? "to" : "from"} ${move.peer}, ${move.state} `;
    const known = move.total_bytes > 0;
    return element("li", { children: known ? [words, bar(move.done_bytes / move.total_bytes, words), percent(move.done_bytes / move.total_bytes)] : [words] });
  });
  const named = new Set(status.migrations.map((move) => `expert ${move.expert}`));
  const comingIn = status.transfers.filter(({ what }) => !named.has(what)).map((transfer) => {
    const share = transfer.done_bytes / Math.max(1, transfer.total_bytes);
    const words = `${transfer.what} from ${transfer.source || "a peer"} `;
    return element("li", { children: [words, bar(share, words), percent(share)] });
  });
  moving.replaceChildren(...onTheWay, ...comingIn);
  const exchanges = (status.placement?.exchanges ?? []).slice(-6).reverse().map(exchangeLine);
  const ended = status.migrations_ended.slice(0, 6).map((move) => element("li", {
    children: [
      element("time", { text: ago(move.ago_s) }),
      `expert ${move.expert} ${OUTCOMES[move.outcome]?.(move.peer) ?? move.outcome}`,
      move.reason ? element("span", { text: `: ${move.reason}`, className: "muted" }) : "",
    ],
  }));
  if (!ended.length && !exchanges.length && !moving.children.length) ended.push(element("li", { text: "Nothing moves, and nothing has moved here yet.", className: "muted" }));
  moved.replaceChildren(...exchanges, ...ended);
}

/** Why experts move: what an exchange saves, and what it costs. */
function exchangeLine(exchange) {
  const partner = exchange.partner ? `with ${exchange.partner}` : "alone";
  const costs = exchange.cost_bytes ? `, ${size(exchange.cost_bytes)} to move in ${duration(exchange.cost_s)}` : "";
  return element("li", { children: [
    element("time", { text: ago(Math.max(0, Date.now() / 1000 - exchange.at_s)) }),
    `plan ${exchange.plan_version} ${partner}: ${exchange.adds.length} experts more, ${exchange.drops.length} less here`,
    element("span", {
      text: `, saves ${Number(exchange.gain_ms_per_token.toPrecision(3))} ms a token${costs}`, className: "muted",
    }),
  ] });
}

/** Whether all see the same, and by which rule experts stand where they do. */
export function showAgreement(line, status) {
  const words = [];
  if (status.placement) {
    words.push(status.placement.rule === "exchange"
      ? `placed by use (plan ${status.placement.plan_version}${status.placement.quiet ? ", nothing left to gain" : ""})`
      : "placed by the guardian rule until there is demand");
  }
  if (status.agreement) {
    words.push(status.agreement.equal ? "all nodes agree who holds what" : `${status.agreement.differ.join(", ")} last told of other holders`);
  }
  if (!status.secured) words.push("connections are not encrypted (--insecure)");
  const text = words.join("; ");
  if (line.textContent !== text) line.textContent = text;
}
