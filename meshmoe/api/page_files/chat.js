// A text or a message to the mesh, and what it writes as it comes.

import { ask, events } from "./feed.js";
import { element, percent } from "./format.js";

export class Chat {
  constructor(root) {
    const find = (id) => root.getElementById(id);
    this.form = find("chat-form");
    this.prompt = find("prompt");
    this.mode = find("mode");
    this.maxTokens = find("max-tokens");
    this.messages = find("messages");
    this.hint = find("chat-hint");
    this.send = find("send");
    this.stop = find("stop");
    this.turns = [];
    this.running = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.ask();
      }
    });
    this.stop.addEventListener("click", () => this.running?.abort());
  }

  async ask() {
    const text = this.prompt.value || (this.mode.value === "continue" ? this.prompt.placeholder : "");
    if (!text.trim() || this.running) return;
    this.prompt.value = "";
    this.hint.hidden = true;
    const chatting = this.mode.value === "chat";
    const answer = element("span");
    const after = element("span", { className: "after" });
    if (chatting) this.say("mine", [element("span", { text: "you", className: "who" }), text]);
    const given = chatting ? element("span", { text: "the mesh", className: "who" }) : element("span", { text, className: "given" });
    this.say("theirs", [given, answer, after]);
    this.running = new AbortController();
    this.send.hidden = true;
    this.stop.hidden = false;
    try {
      const report = await this.stream(chatting, text, (piece) => this.write(answer, piece));
      after.textContent = report ? reportLine(report) : "";
      if (chatting) this.turns.push({ role: "user", content: text }, { role: "assistant", content: answer.textContent });
    } catch (error) {
      after.textContent = error.name === "AbortError" ? "stopped" : error.message;
      after.classList.toggle("bad", error.name !== "AbortError");
    }
    this.running = null;
    this.send.hidden = false;
    this.stop.hidden = true;
    this.prompt.focus();
  }

  async stream(chatting, text, write) {
    const asked = chatting ? { messages: [...this.turns, { role: "user", content: text }] } : { prompt: text };
    const response = await ask(chatting ? "v1/chat/completions" : "v1/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      signal: this.running.signal,
      body: JSON.stringify({
        ...asked, max_tokens: Number(this.maxTokens.value) || 128, temperature: 0, stream: true,
        stream_options: { include_usage: true },
      }),
    });
    let report = null;
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      report = chunk.meshmoe ?? report;
      for (const choice of chunk.choices) write(choice.text ?? choice.delta?.content ?? "");
    }
    return report;
  }

  say(kind, children) {
    this.messages.append(element("div", { className: `message ${kind}`, children }));
    this.messages.scrollTop = this.messages.scrollHeight;
  }

  write(answer, piece) {
    const atEnd = this.messages.scrollHeight - this.messages.scrollTop - this.messages.clientHeight < 40;
    answer.append(piece);
    if (atEnd) this.messages.scrollTop = this.messages.scrollHeight;
  }
}

function reportLine(report) {
  return [
    `${report.completion_tokens} tokens`, `${report.tokens_per_s.toFixed(1)} a second`,
    `${report.rounds_per_token.toFixed(2)} rounds a token`,
    ...(report.acceptance === null ? [] : [`${report.tokens_per_pass.toFixed(2)} tokens a pass`]),
    `hit ratio ${percent(report.hit_ratio)}`,
  ].join(" · ");
}
