// Numbers and names, as people read them.

export function count(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10000) return Math.round(value).toLocaleString("en");
  if (value < 1e6) return `${trim(value / 1e3)}k`;
  return `${trim(value / 1e6)}M`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 0.0995) return `${trim(value * 1000)} ms`;
  if (size < 100) return `${trim(value)} s`;
  if (size < 7200) return `${Math.floor(Math.round(value) / 60)} min ${Math.round(value) % 60} s`;
  return `${trim(value / 3600)} h`;
}

// From one to the other, in the unit of the greater.
export function range(low, high) {
  const [unit, name] = high < 100 ? [1, "s"] : high < 7200 ? [60, "min"] : [3600, "h"];
  const told = (value) => (value / unit).toFixed(value / unit < 10 ? 1 : 0);
  return `${told(Math.max(0, low))} – ${told(high)} ${name}`;
}

// Seconds where there is little room.
export function brief(value) {
  const size = Math.abs(value);
  return size < 600 ? seconds(size < 100 ? value : Math.round(value)).replace(/^(\d+) min (\d+) s$/, (all, m, s) => `${60 * Number(m) + Number(s)} s`) : size < 7200 ? `${trim(value / 60)} min` : `${trim(value / 3600)} h`;
}

// A moment of a log: minutes and seconds since its begin.
export function moment(value) {
  const whole = Math.floor(value + 1e-6), two = (each) => String(each).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(whole % 60)}`;
}

export function share(part, whole) {
  return whole > 0 ? `${trim((100 * part) / whole)} %` : "–";
}

function trim(value) {
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1).replace(/\.0$/, "") : value.toFixed(2).replace(/\.?0+$/, "");
}

export function clock(at, about) {
  if (about && about.clock === "unix") return new Date(at * 1000).toLocaleTimeString("en-GB");
  return moment(at);
}

// What the server makes of a client's id has the client's in its middle.
export function shortId(id) {
  const found = /^(?:chat)?cmpl-(.+)-[0-9a-f]{8}-([0-9]+)$/.exec(id);
  const name = found ? found[1] + (found[2] === "0" ? "" : `·${Number(found[2]) + 1}`) : id;
  return name.length > 14 ? `${name.slice(0, 8)}…${name.slice(-4)}` : name;
}

// A request's colour: neighbours in time are far apart.
export function hue(number) {
  return (number * 137.508 + 200) % 360;
}

export function colour(number, strength = 1) {
  const dark = document.documentElement.dataset.theme === "dark";
  if (number === 0) return dark ? "oklch(0.45 0 0)" : "oklch(0.75 0 0)";
  const [light, chroma] = dark ? [0.68, 0.125] : [0.7, 0.135];
  return `oklch(${light} ${chroma} ${hue(number).toFixed(1)}${strength < 1 ? ` / ${strength}` : ""})`;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
