// Instances over the last minute: what ran where, and whose KV lies there. One canvas over the rows of a list, which
// say the same in words.
import { clock, colour, count, element, moment, seconds, share, shortId } from "./format.js";

const WINDOW_S = 60, MOST_LANES = 128;

export class Lanes {
  constructor(tell) {
    this.tell = tell; // called with a request's number that is clicked
    this.box = document.getElementById("lanes");
    this.canvas = document.getElementById("lanes-canvas");
    this.rows = document.getElementById("lane-rows");
    this.axis = document.getElementById("lanes-axis");
    this.tip = document.getElementById("tip");
    this.items = new Map();
    this.drawn = []; // what can be pointed at: {x, y, w, h, span}
    this.canvas.addEventListener("mousemove", (event) => this.point(event));
    this.canvas.addEventListener("mouseleave", () => { this.tip.hidden = true; });
    this.canvas.addEventListener("click", (event) => {
      const found = this.find(event);
      if (found && found.number) this.tell(found.number);
    });
  }

  // The list: names, what runs, tokens.
  update(state) {
    this.state = state;
    const all = state.instances, instances = all.slice(0, MOST_LANES);
    set(document.getElementById("instances-more"), all.length > MOST_LANES ? `${count(all.length - MOST_LANES)} more instances are not shown.` : "");
    const doing = new Map();
    for (const batch of state.batches) for (const number of batch.group) if (!doing.has(number)) doing.set(number, batch);
    const height = instances.length <= 4 ? 50 : instances.length <= 10 ? 38 : 27;
    this.box.style.setProperty("--lane-height", `${height}px`);
    const beside = (instances.length * height - 40) / 2; // of two tables, whose panels are as high as this one
    document.documentElement.style.setProperty("--table-height", `${Math.max(200, beside)}px`);
    this.box.parentElement.classList.toggle("few", instances.length <= 2);
    for (const number of this.items.keys()) {
      if (!instances.some((each) => each.number === number)) { this.items.get(number).row.remove(); this.items.delete(number); }
    }
    for (const instance of instances) this.row(instance, doing.get(instance.number), state.about);
    const busy = instances.filter((each) => doing.has(each.number)).length;
    this.canvas.setAttribute("aria-label", `Instances over the last minute: ${busy} of ${instances.length} at work now`);
  }

  row(instance, batch, about) {
    let item = this.items.get(instance.number);
    if (!item) {
      item = { name: element("span", { text: `${instance.number}` }), doing: element("small"), lane: element("div", { class: "lane" }),
        meter: element("div", { class: "meter", role: "meter", "aria-valuemin": "0", "aria-label": `KV of instance ${instance.number}` }),
        tokens: element("div", { class: "tokens" }) };
      item.row = element("li", {}, element("div", { class: "name" }, item.name, item.doing), item.lane, item.meter, item.tokens);
      this.items.set(instance.number, item);
      this.rows.append(item.row);
    }
    const others = batch ? batch.group.filter((each) => each !== instance.number) : [];
    const what = batch ? (batch.kind === "move" ? "moves KV" : batch.kind) : "rests";
    const told = instance.state === "up" ? what + (others.length ? ` +${others.length > 2 ? `${others.length} more` : others.join("+")}` : "") : instance.state;
    set(item.doing, told);
    item.doing.title = batch ? `${batch.kind} on ${batch.group.join("+")}: ${batch.numRequests} requests, ${count(batch.tokens)} tokens` : told;
    item.row.dataset.state = instance.state;
    const all = about ? about.kv_tokens : 0;
    item.meter.setAttribute("aria-valuemax", all);
    item.meter.setAttribute("aria-valuenow", instance.used);
    item.meter.setAttribute("aria-valuetext", `${instance.used} used, ${instance.cached} cached, ${all - instance.used - instance.cached} free`);
    set(item.tokens, "");
    item.tokens.replaceChildren(element("b", { text: count(instance.used) }), ` / ${count(all)}`);
    item.tokens.title = `${share(instance.used, all)} in use, ${share(instance.cached, all)} cached`;
  }

  // The picture, as of `at`.
  draw(at) {
    if (!this.state || !this.state.frame) return;
    const { width, height } = this.box.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const paint = this.canvas.getContext("2d");
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, width, height);
    const places = this.places();
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    for (const place of places.values()) rounded(paint, place.x, place.y, place.w, place.h, 6, of("--lane"));
    this.drawSpans(paint, places, at);
    this.drawMeters(paint, of);
    this.label(places, at);
  }

  places() {
    const origin = this.box.getBoundingClientRect();
    const found = new Map();
    for (const [number, item] of this.items) {
      const box = item.lane.getBoundingClientRect();
      found.set(number, { x: box.left - origin.left, y: box.top - origin.top, w: box.width, h: box.height });
    }
    return found;
  }

  drawSpans(paint, places, at) {
    this.drawn = [];
    const begin = at - WINDOW_S;
    const narrow = places.size > 0 && [...places.values()][0].w < 420;
    const shown = [];
    for (const span of [...this.state.spans.values(), ...this.live(at)]) {
      if (span.end < begin || span.start > at) continue;
      const lanes = span.group.map((number) => places.get(number)).filter(Boolean);
      if (!lanes.length) continue;
      const { x: left, w: wide } = lanes[0], scale = wide / WINDOW_S;
      const x = left + Math.max(0, span.start - begin) * scale, end = left + Math.min(WINDOW_S, span.end - begin) * scale;
      shown.push([span, lanes, x, Math.max(narrow ? 0.6 : 0.9, end - x - (end - x > 4 ? 0.6 : 0))]);
    }
    for (const [span, lanes, x, w] of shown) this.join(paint, lanes, x, w, span);
    for (const [span, lanes, x, w] of shown) for (const lane of lanes) this.bar(paint, lane, x, w, span);
  }

  // Batches that run now, as far as they are.
  live(at) {
    return this.state.batches.map((batch) => ({ ...batch, start: Math.min(at, this.state.at - batch.seconds), end: at, count: 1 }));
  }

  // Between the lanes of one batch, so that it looks like the one piece of work that it is.
  join(paint, lanes, x, w, span) {
    if (lanes.length < 2 || span.kind === "move") return;
    const top = Math.min(...lanes.map((lane) => lane.y + lane.h / 2)), bottom = Math.max(...lanes.map((lane) => lane.y + lane.h / 2));
    paint.fillStyle = colour(span.requests.length ? span.requests[0][0] : 0, 0.34);
    paint.fillRect(x, top, w, bottom - top);
  }

  bar(paint, lane, x, w, span) {
    const decodes = span.kind === "decode";
    const h = span.kind === "move" ? lane.h * 0.3 : decodes ? lane.h * 0.46 : lane.h - 6;
    let y = lane.y + (lane.h - h) / 2;
    const named = span.requests.reduce((sum, each) => sum + each[1], 0) || 1;
    const all = Math.max(named, decodes ? span.numRequests : named);
    for (const [number, tokens] of span.requests) {
      const part = (h * tokens) / all;
      paint.fillStyle = colour(number, decodes ? 0.85 : 1);
      paint.fillRect(x, y, w, part);
      this.drawn.push({ x, y, w, h: part, span, number });
      y += part;
    }
    if (all > named) {
      const part = (h * (all - named)) / all;
      paint.fillStyle = colour(0);
      paint.fillRect(x, y, w, part);
      this.drawn.push({ x, y, w, h: part, span, number: 0 });
    }
  }

  drawMeters(paint, of) {
    const origin = this.box.getBoundingClientRect();
    const all = this.state.about ? this.state.about.kv_tokens : 1;
    const held = new Map([...this.items.keys()].map((number) => [number, []]));
    for (const request of this.state.requests.values()) {
      for (const [instance, tokens] of request.held) if (held.has(instance)) held.get(instance).push([request.number, tokens]);
    }
    for (const instance of this.state.instances.slice(0, MOST_LANES)) {
      const box = this.items.get(instance.number).meter.getBoundingClientRect();
      const place = { x: box.left - origin.left, y: box.top - origin.top, w: box.width, h: box.height };
      paint.save();
      clip(paint, place, 4);
      paint.fillStyle = of("--track");
      paint.fillRect(place.x, place.y, place.w, place.h);
      let x = place.x, rest = instance.used;
      for (const [number, tokens] of held.get(instance.number).sort((a, b) => a[0] - b[0])) {
        const shown = Math.min(tokens, rest);
        rest -= shown;
        x = slice(paint, place, x, (place.w * shown) / all, colour(number));
        this.drawn.push({ x: x - (place.w * shown) / all, y: place.y, w: (place.w * shown) / all, h: place.h, number, tokens });
      }
      x = slice(paint, place, x, (place.w * rest) / all, colour(0));
      hatch(paint, { x, y: place.y, w: (place.w * instance.cached) / all, h: place.h }, of("--faint"));
      paint.restore();
    }
  }

  label(places, at) {
    const first = [...places.values()][0];
    if (!first) return;
    const step = first.w < 300 ? 30 : 15, marks = [];
    for (let back = WINDOW_S; back >= 0; back -= step) {
      const text = back === 0 ? (this.state.about && this.state.about.clock === "log" ? moment(at) : "now") : `−${back} s`;
      marks.push([first.x + first.w * (1 - back / WINDOW_S), text]);
    }
    if (this.axis.children.length !== marks.length) this.axis.replaceChildren(...marks.map(() => element("span")));
    marks.forEach(([x, text], place) => {
      const mark = this.axis.children[place];
      set(mark, text);
      mark.style.left = `${x.toFixed(1)}px`;
    });
  }

  find(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    return this.drawn.findLast((each) => x >= each.x - 1 && x <= each.x + each.w + 1 && y >= each.y && y <= each.y + each.h);
  }

  point(event) {
    const found = this.find(event);
    this.tip.hidden = !found;
    this.canvas.style.cursor = found && found.number ? "pointer" : "default";
    if (!found) return;
    const id = this.state.ids.get(found.number);
    const lines = [element("b", { text: found.number ? (id ? shortId(id) : "a request that has ended") : "other requests" })];
    if (found.span) {
      const { span } = found;
      const company = span.numRequests > 1 ? `, ${span.numRequests} requests` : "";
      lines.push(element("div", { text: `${span.kind} on ${span.group.join(span.kind === "move" ? " → " : "+")}${company}` }));
      const batches = span.count > 1 ? `${span.count} batches, ` : "";
      lines.push(element("div", { text: `${batches}${count(span.tokens)} tokens, ${seconds(span.end - span.start)}, ${clock(span.start, this.state.about)}` }));
    } else lines.push(element("div", { text: `${count(found.tokens)} tokens of KV` }));
    this.tip.replaceChildren(...lines);
    this.tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - this.tip.offsetWidth - 8)}px`;
    this.tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - this.tip.offsetHeight - 8)}px`;
  }
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function slice(paint, place, x, w, fill) {
  paint.fillStyle = fill;
  paint.fillRect(x, place.y, w, place.h);
  return x + w;
}

function clip(paint, place, radius) {
  paint.beginPath();
  paint.roundRect(place.x, place.y, place.w, place.h, radius);
  paint.clip();
}

function rounded(paint, x, y, w, h, radius, fill) {
  paint.fillStyle = fill;
  paint.beginPath();
  paint.roundRect(x, y, w, h, radius);
  paint.fill();
}

function hatch(paint, { x, y, w, h }, stroke) {
  if (w < 0.5) return;
  paint.save();
  paint.beginPath();
  paint.rect(x, y, w, h);
  paint.clip();
  paint.strokeStyle = stroke;
  paint.lineWidth = 1;
  paint.beginPath();
  for (let start = x - h; start < x + w; start += 4) {
    paint.moveTo(start, y + h);
    paint.lineTo(start + h, y);
  }
  paint.stroke();
  paint.restore();
}
