// Requests to the node, and its events. Server-sent events are read with fetch, because EventSource cannot send a key.

let key = sessionStorage.getItem("meshmoe-key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("meshmoe-key", value);
}

/** fetch from the node; throws an Error with the node's own words. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    const error = new Error(body?.error?.message ?? `the node answers with HTTP ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return response;
}

/** The events of a response: {name, data} with data as text. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = { name: "message", data: "" };
        for (const line of block.split("\n")) {
          if (line.startsWith("event: ")) event.name = line.slice(7);
          if (line.startsWith("data: ")) event.data += line.slice(6);
        }
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Bring `shown` up to date: members that changed, objects likewise, lists whole. */
export function applyPatch(shown, patch) {
  for (const [name, value] of Object.entries(patch)) {
    const known = shown[name];
    const bothObjects = [value, known].every((one) => one !== null && typeof one === "object" && !Array.isArray(one));
    if (bothObjects) applyPatch(known, value);
    else shown[name] = value;
  }
}

/**
 * Follow the node for as long as the page is open.
 * @param {{status: function(object), sample: function(object), lost: function(Error)}} told
 */
export async function follow(told) {
  let wait = 1;
  while (true) {
    try {
      let shown = null;
      for await (const { name, data } of events(await ask("mesh/events"))) {
        wait = 1;
        const content = JSON.parse(data);
        if (name === "sample") told.sample(content);
        else if (name === "status") shown = content;
        else if (name === "patch" && shown) applyPatch(shown, content);
        else continue;
        if (shown && name !== "sample") told.status(shown);
      }
      throw new Error("the node has stopped");
    } catch (error) {
      told.lost(error);
    }
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    wait = Math.min(wait * 2, 15);
  }
}
