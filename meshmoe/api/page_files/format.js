// Sizes, rates and times as people write them; the words are those of `meshmoe status`.

export function size(bytes) {
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(value) < 1000 || unit === "TiB") return `${unit === "B" ? value : three(value)} ${unit}`;
    value /= 1024;
  }
  return "";
}

export function rate(bytesPerSecond) {
  let value = bytesPerSecond * 8;
  for (const unit of ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]) {
    if (Math.abs(value) < 1000 || unit === "Gbit/s") return `${three(value)} ${unit}`;
    value /= 1000;
  }
  return "";
}

export function duration(seconds) {
  if (seconds >= 1) return `${three(seconds)} s`;
  if (seconds >= 0.001) return `${three(seconds * 1e3)} ms`;
  return `${three(seconds * 1e6)} µs`;
}

export function ago(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s ago`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ago`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ago`;
  return `${Math.floor(whole / 86400)} days ago`;
}

export function percent(share) {
  return `${Math.round(share * 100)} %`;
}

export function three(value) {
  return String(Number(value.toPrecision(3)));
}

/** An element with text, attributes and children; text is never read as markup. */
export function element(name, { text = "", className = "", attributes = {}, children = [] } = {}) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The colour of the node with this place in the status. */
export function nodeColour(index) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--node-${index % 8}`).trim();
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export const GONE = new Set(["dead", "left"]);
