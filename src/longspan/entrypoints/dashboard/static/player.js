// A log, played: its frames are all there, and time goes as the slider and the speed say.
import { State } from "./state.js";
import { moment, seconds } from "./format.js";

export class Player {
  // log: {about, begin, end, frames}; show(state, at): called for each new moment.
  constructor(log, show) {
    this.log = log;
    this.show = show;
    this.whole = new State(true);
    for (const frame of log.frames) this.whole.apply(frame);
    this.state = new State();
    this.state.about = log.about;
    this.state.ids = this.whole.ids;
    this.place = -1;
    this.at = log.begin;
    this.playing = false;
    this.button = document.getElementById("play");
    this.slider = document.getElementById("time");
    this.clock = document.getElementById("clock");
    this.speed = document.getElementById("speed");
    const speeds = [...this.speed.options].map((each) => Number(each.value)), wanted = (log.end - log.begin) / 90;
    this.speed.value = speeds.filter((each) => each <= Math.max(1, wanted)).at(-1);
    this.slider.min = log.begin;
    this.slider.max = log.end;
    this.button.addEventListener("click", () => this.toggle());
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    document.addEventListener("keydown", (event) => this.onKey(event));
    document.getElementById("player").hidden = false;
    this.go(log.begin);
  }

  onKey(event) {
    if (event.target.closest("input, select, button, dialog, a") && !(event.target === this.slider && event.key === " ")) return;
    const step = (this.log.end - this.log.begin) / 100;
    const moves = { " ": () => this.toggle(), ArrowLeft: () => this.go(this.at - step), ArrowRight: () => this.go(this.at + step), Home: () => this.go(this.log.begin), End: () => this.go(this.log.end) };
    if (moves[event.key]) {
      event.preventDefault();
      moves[event.key]();
    }
  }

  toggle() {
    if (!this.playing && this.at >= this.log.end) this.go(this.log.begin);
    this.playing = !this.playing;
    this.button.textContent = this.playing ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    this.before = performance.now();
  }

  // Called for each picture.
  tick() {
    if (!this.playing) return;
    const now = performance.now();
    const at = this.at + ((now - this.before) / 1000) * Number(this.speed.value);
    this.before = now;
    this.go(at);
    if (this.at >= this.log.end) this.toggle();
  }

  go(at) {
    this.at = Math.min(this.log.end, Math.max(this.log.begin, at));
    this.slider.value = this.at;
    this.slider.setAttribute("aria-valuetext", seconds(this.at - this.log.begin));
    this.clock.textContent = `${moment(this.at - this.log.begin)} of ${moment(this.log.end - this.log.begin)}`;
    const frames = this.log.frames;
    let place = this.place >= 0 && frames[this.place].at <= this.at ? this.place : -1;
    if (place < 0 || this.at - frames[place].at > 30) place = this.wholeBefore(this.at);
    const from = place;
    while (place + 1 < frames.length && frames[place + 1].at <= this.at) place += 1;
    if (place === this.place) return this.show(this.state, this.at, false);
    const begin = from === this.place ? from + 1 : from;
    for (let number = begin; number <= place; number += 1) {
      const frame = frames[number];
      if (frame.whole) this.state.requests = new Map();
      this.state.applyRequests(frame);
    }
    this.place = place;
    this.fill();
    return this.show(this.state, this.at, true);
  }

  wholeBefore(at) {
    let low = 0, high = this.log.frames.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.log.frames[middle].at <= at) low = middle; else high = middle - 1;
    }
    while (low > 0 && !this.log.frames[low].whole) low -= 1;
    return low;
  }

  // The lists as of now.
  fill() {
    const past = (each) => each.at <= this.at;
    this.state.spans = new Map([...this.whole.allSpans].filter(([, span]) => span.start <= this.at && span.end > this.at - 75));
    this.state.samples = this.whole.samples;
    this.state.news = this.whole.allNews.filter(past).slice(-60).reverse();
    this.state.ended = this.whole.allEnded.filter(past).slice(-60).reverse();
  }
}
