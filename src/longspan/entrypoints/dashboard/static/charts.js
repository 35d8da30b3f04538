// What was, over time: latencies by class, KV, tokens a second. uPlot draws; legends tell what is under the cursor.
import { brief, count, element, moment, seconds } from "./format.js";

const CLASSES = ["short", "medium", "long"];
const SPAN_S = 600;

function of(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// id; series: [label, colour's name, value(sample), more], form(value) for legend and axis.
class Chart {
  constructor(id, series, form) {
    this.box = document.getElementById(id);
    this.legend = document.getElementById(`${id}-legend`);
    this.series = series;
    this.form = form;
    const items = new Map(); // by ink: what is dashed stands with what is not
    this.values = series.map(([label, ink, , more]) => {
      const value = element("b", { text: "–" });
      if (more && more.quiet) {
        items.get(ink).append(element("small", {}, "95 % ", value));
        return { value };
      }
      const mark = element("i", { class: "key" });
      items.set(ink, element("li", {}, mark, element("span", { text: label }), value));
      this.legend.append(items.get(ink));
      return { value, mark, ink };
    });
    this.data = [[], ...series.map(() => [])];
    this.build();
    new ResizeObserver(() => this.resize()).observe(this.box);
  }

  build() {
    if (this.plot) this.plot.destroy();
    for (const each of this.values) if (each.mark) each.mark.style.background = of(each.ink);
    const grid = { stroke: of("--line"), width: 1 }, stroke = of("--faint"), font = "11px system-ui, sans-serif";
    this.plot = new uPlot({
      width: this.box.clientWidth || 300, height: 168, legend: { show: false }, padding: [8, 6, 0, 0],
      cursor: { points: { size: 5 }, drag: { x: false, y: false }, y: false, sync: { key: "longspan" } },
      scales: { x: { time: this.isUnix !== false, range: (plot, low, high) => this.range(low, high) }, y: { range: (plot, low, high) => [0, high > 0 ? high * 1.12 : 1] } },
      axes: [{ stroke, grid: { show: false }, ticks: { show: false }, font, size: 26, space: 70,
        values: this.isUnix === false ? (plot, ticks) => ticks.map((tick) => moment(tick)) : [[1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1], [60, "{HH}:{mm}", null, null, null, null, null, null, 1]] },
      { stroke, grid, ticks: { show: false }, font, size: 52, space: 34, values: (plot, ticks) => ticks.map((tick) => (this.form === seconds ? brief(tick) : this.form(tick))) }],
      series: [{}, ...this.series.map(([label, ink, , more]) => ({
        label, stroke: of(ink), width: more && more.quiet ? 1 : 1.7, dash: more && more.quiet ? [3, 4] : undefined,
        fill: more && more.fill ? `color-mix(in oklab, ${of(ink)} ${more.fill}%, transparent)` : undefined, points: { show: false }, spanGaps: false,
      }))],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)], draw: [(plot) => this.mark(plot)] },
    }, this.data, this.box);
    this.tell(null);
  }

  range(low, high) {
    if (this.limits) return this.limits;
    return high - low < SPAN_S ? [high - Math.max(60, Math.min(SPAN_S, high - low)), high] : [high - SPAN_S, high];
  }

  set(samples) {
    this.data = [samples.map((each) => each.at), ...this.series.map(([, , value]) => samples.map((each) => value(each) ?? null))];
    this.plot.setData(this.data);
    if (this.plot.cursor.idx === null || this.plot.cursor.idx === undefined) this.tell(null);
  }

  // The values at a place of the data; the last ones where there is none.
  tell(place) {
    this.values.forEach((each, number) => {
      const column = this.data[number + 1];
      const last = this.now === undefined ? column.length - 1 : column.length - 1 - [...this.data[0]].reverse().findIndex((at) => at <= this.now);
      const value = column[place ?? last];
      each.value.textContent = value === null || value === undefined ? "–" : this.form(value);
    });
  }

  // A log's present moment.
  mark(plot) {
    if (this.now === undefined) return;
    const x = plot.valToPos(this.now, "x", true);
    plot.ctx.save();
    plot.ctx.fillStyle = of("--accent");
    plot.ctx.fillRect(x, plot.bbox.top, Math.max(1, window.devicePixelRatio), plot.bbox.height);
    plot.ctx.restore();
  }

  at(now) {
    this.now = now;
    this.plot.redraw(false);
    this.tell(null);
  }

  resize() {
    const width = this.box.clientWidth;
    if (width && Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: 168 });
  }
}

function byClass(name) {
  return [
    ...CLASSES.map((label, place) => [label, `--${label}`, (sample) => sample[name][place][0]]),
    ...CLASSES.map((label, place) => [`${label}, 95 %`, `--${label}`, (sample) => sample[name][place][1], { quiet: true }]),
  ];
}

export class Charts {
  constructor() {
    this.all = [
      new Chart("ttft", byClass("ttft"), seconds),
      new Chart("tpot", byClass("tpot"), seconds),
      new Chart("slots", [["in use", "--accent", (sample) => sample.used, { fill: 14 }], ["cached", "--medium", (sample) => sample.cached, { fill: 10 }]], count),
      new Chart("rates", [["prompts", "--accent", (sample) => sample.promptRate, { fill: 12 }], ["answers", "--long", (sample) => sample.answerRate, { fill: 10 }]], count),
    ];
    for (const name of ["ttft", "tpot"]) {
      document.getElementById(`${name}-legend`).title = "Medians; dashed: 95 of 100 are below. Short prompts have up to 8,192 tokens, long ones more than 65,536.";
    }
  }

  update(samples) { for (const chart of this.all) chart.set(samples); }

  rebuild() { for (const chart of this.all) chart.build(); }

  // Of a log: the whole of it is shown, and where it is looked at.
  fix(begin, end) {
    for (const chart of this.all) {
      chart.limits = [begin, Math.max(end, begin + 1)];
      chart.isUnix = false;
      chart.build();
    }
  }

  at(now) { for (const chart of this.all) chart.at(now); }
}

// A line behind a number, in an SVG of 100 x 26.
export function spark(id, values) {
  const svg = document.getElementById(id);
  if (!svg.firstChild) {
    svg.setAttribute("viewBox", "0 0 100 26");
    svg.setAttribute("preserveAspectRatio", "none");
    for (const name of ["area", "stroke"]) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      svg.append(path);
    }
  }
  const shown = values.filter((value) => value !== null).slice(-90);
  const most = Math.max(...shown, 1e-9);
  const line = shown.map((value, place) => `${place ? "L" : "M"}${((100 * place) / Math.max(1, shown.length - 1)).toFixed(2)} ${(25 - 22 * (value / most)).toFixed(2)}`).join("");
  svg.children[0].setAttribute("d", shown.length > 1 ? `${line}L100 26L0 26Z` : "");
  svg.children[1].setAttribute("d", shown.length > 1 ? line : "");
}
