// The queue, what is at work, what has ended, and news.
import { clock, colour, count, element, range, seconds, shortId } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function swatch(number) {
  const made = svg("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": "true" });
  made.append(svg("rect", { width: 10, height: 10, rx: 3, fill: colour(number) }));
  return made;
}

function bar(part, number, label) {
  const made = svg("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": label });
  made.append(svg("rect", { class: "rail", width: 100, height: 8, rx: 4 }));
  made.append(svg("rect", { width: Math.max(0, Math.min(100, 100 * part)) || 0, height: 8, rx: 4, fill: colour(number) }));
  return made;
}

export class Table {
  // cells(item): for each column an array of nodes and texts; [] leaves the cell empty.
  constructor(id, cells, onRow = () => {}) {
    this.table = document.getElementById(id);
    this.body = this.table.tBodies[0];
    this.right = [...this.table.tHead.rows[0].cells].map((cell) => cell.className);
    this.cells = cells;
    this.onRow = onRow;
    this.rows = new Map();
    const scroll = element("div", { class: "scroll" });
    this.table.replaceWith(scroll);
    scroll.append(this.table);
  }

  update(items) {
    this.table.closest(".panel").classList.toggle("is-empty", items.length === 0);
    this.table.hidden = items.length === 0;
    const wanted = new Set(items.map((item) => item.number));
    for (const [number, row] of this.rows) {
      if (!wanted.has(number)) { row.node.remove(); this.rows.delete(number); }
    }
    items.forEach((item, place) => {
      const row = this.row(item);
      if (this.body.children[place] !== row.node) this.body.insertBefore(row.node, this.body.children[place] || null);
    });
  }

  row(item) {
    let row = this.rows.get(item.number);
    if (!row) {
      row = { node: element("tr"), texts: [] };
      for (const name of this.right) row.node.append(element("td", { class: name }));
      row.node.dataset.number = item.number;
      this.rows.set(item.number, row);
      this.onRow(row.node, item.number);
    }
    this.cells(item).forEach(({ text, nodes, title }, place) => {
      if (row.texts[place] === text) return; // unchanged, so that focus and selection stay
      row.texts[place] = text;
      row.node.cells[place].replaceChildren(...(nodes ? nodes() : [text]));
      if (title) row.node.cells[place].title = title;
    });
    return row;
  }
}

const plain = (text, title) => ({ text, title });

export class Tables {
  constructor(tell) {
    this.tell = tell;
    this.queue = new Table("queue", (item) => this.waiting(item), (row, number) => this.pointAhead(row, number));
    this.requests = new Table("requests", (item) => this.working(item));
    this.ended = new Table("ended", (item) => this.done(item));
    this.news = document.getElementById("news");
    this.told = null;
  }

  recolour(state) {
    for (const table of [this.queue, this.requests, this.ended]) for (const row of table.rows.values()) row.texts = [];
    this.update(state, true);
  }

  update(state, all) {
    this.state = state;
    const focus = this.focus();
    const queue = state.queue;
    let ahead = 0, tokens = 0;
    for (const item of queue) {
      Object.assign(item, { place: ahead + 1, ahead, tokensAhead: tokens });
      ahead += 1;
      tokens += Math.max(0, item.prompt + item.output - item.found);
    }
    this.queue.update(queue);
    document.getElementById("queue-note").textContent = queue.length ? `${count(state.frame.waiting)} waiting, ${count(tokens)} tokens to compute` : "";
    const running = state.running;
    this.requests.update(running);
    const hidden = state.frame.hidden || 0;
    document.getElementById("requests-note").textContent = hidden ? `${count(hidden)} more are not shown` : "";
    this.ended.update(state.ended);
    this.refocus(focus);
    this.updateNews(state, all);
  }

  // Whose row has the focus, in which table, and where.
  focus() {
    const row = document.activeElement.closest("tr[data-number]");
    const table = row && [this.queue, this.requests, this.ended].find((each) => each.body === row.parentNode);
    return table ? { table, number: Number(row.dataset.number), place: row.sectionRowIndex, button: document.activeElement } : null;
  }

  // A row that is moved, or goes, loses the focus: it stays with the request, in whichever table it is now, else in its place.
  refocus(held) {
    if (!held || document.activeElement === held.button) return;
    const tables = [held.table, this.queue, this.requests, this.ended];
    const found = tables.map((table) => table.rows.get(held.number)).find((row) => row);
    const rows = held.table.body.rows;
    const row = found ? found.node : rows[Math.min(held.place, rows.length - 1)];
    if (row) row.querySelector("button").focus({ preventScroll: true });
  }

  id(item) {
    return { text: `${item.id}`, title: item.tenant ? `${item.id}, tenant ${item.tenant}` : item.id, nodes: () => {
      const button = element("button", { class: "id", type: "button", "aria-label": `Story of ${item.id}` }, swatch(item.number), shortId(item.id));
      button.addEventListener("click", () => this.tell(item.number));
      return [button];
    } };
  }

  waiting(item) {
    const waited = this.state.at - item.arrived, quote = item.quote;
    const left = quote ? [quote[0] - waited, quote[1] - waited] : null;
    const expected = !left ? "–" : left[1] < 0 ? "late" : range(left[0], left[1]);
    const title = quote ? `at its arrival half of such requests were expected within ${seconds(quote[0])}, 95 of 100 within ${seconds(quote[1])}; promised within ${seconds(quote[2])}` : "this policy does not predict";
    return [
      plain(`${item.place}`), this.id(item), plain(count(item.prompt)), plain(seconds(Math.round(waited * 10) / 10)),
      { text: expected, title, nodes: () => [element("span", { class: left && left[1] < 0 ? "late" : "", text: expected })] },
      plain(item.ahead ? `${item.ahead} · ${count(item.tokensAhead)}` : "next", item.ahead ? `${item.ahead} requests with ${item.tokensAhead} tokens to compute` : ""),
    ];
  }

  // Who is pointed at, or has the focus, shows who goes before it.
  pointAhead(row, number) {
    const show = (on) => {
      const place = this.state.queue.findIndex((item) => item.number === number);
      this.state.queue.forEach((item, other) => {
        const node = this.queue.rows.get(item.number);
        if (node) {
          node.node.classList.toggle("ahead", on && other < place);
          node.node.classList.toggle("self", on && other === place);
        }
      });
    };
    for (const name of ["mouseenter", "focusin"]) row.addEventListener(name, () => show(true));
    for (const name of ["mouseleave", "focusout"]) row.addEventListener(name, () => show(false));
  }

  working(item) {
    const decodes = item.phase === "decode";
    const part = decodes ? item.output / item.maxTokens : item.computed / item.prompt;
    const told = decodes ? `${count(item.output)} of ${count(item.maxTokens)}` : `${count(item.computed)} of ${count(item.prompt)}`;
    const rests = item.inFlight === 0 ? (decodes ? "" : "pauses") : "";
    const tokens = item.held.reduce((sum, each) => sum + each[1], 0);
    return [
      this.id(item),
      { text: `${told} ${rests} ${Math.round(74 * part)}`, title: decodes ? "tokens of its answer, of the most it may have" : `tokens of its prompt that have KV${item.found ? `; ${item.found} were found` : ""}`,
        nodes: () => [bar(part, item.number, decodes ? `answer: ${told}` : `prompt: ${told}`), told, ...(rests ? [element("span", { class: "chip", text: rests })] : [])] },
      plain(item.held.map((each) => each[0]).join("+") || "–", item.held.map(([instance, many]) => `instance ${instance}: ${many} tokens`).join("\n")),
      plain(count(tokens)),
      plain(item.ttft === null ? "–" : seconds(item.ttft)),
    ];
  }

  done(item) {
    const why = item.why || "–";
    return [this.id(item), plain(count(item.prompt)), plain(count(item.output)), plain(seconds(item.ttft)), plain(seconds(item.tpot)),
      { text: why, title: why, nodes: () => [element("span", { class: /^(stop|length)$/.test(why) ? "" : "late", text: why.split(":")[0] })] }];
  }

  updateNews(state, all) {
    const key = state.news.length ? JSON.stringify(state.news[0]) + state.news.length : "";
    if (key === this.told && !all) return;
    this.told = key;
    this.news.closest(".panel").classList.toggle("is-empty", state.news.length === 0);
    this.news.replaceChildren(...state.news.map((each) => {
      const who = each.instance !== null ? `instance ${each.instance}` : shortId(each.request);
      const what = { up: "joined", leaving: "is about to leave", lost: "is lost", preempted: "was preempted", refused: "was refused" }[each.what] || each.what;
      return element("li", {}, element("time", { text: clock(each.at, state.about) }), element("span", { class: each.what, text: `${who} ${what}${each.detail ? `: ${each.detail}` : ""}` }));
    }));
  }
}
