// The page: a running server, or an event log.
import { Charts, spark } from "./charts.js";
import { count, element, seconds, share } from "./format.js";
import { Lanes } from "./lanes.js";
import { Player } from "./player.js";
import { State } from "./state.js";
import { Story } from "./story.js";
import { follow, keepKey, key } from "./stream.js";
import { Tables } from "./tables.js";

const LATE_S = 0.15; // what is drawn is so much older than the newest frame, so that what comes late is there in time
const root = document.documentElement;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const story = new Story();
let state = new State();

const tell = (number) => {
  const id = state.ids.get(number);
  if (id) story.open(id);
};
const lanes = new Lanes(tell), tables = new Tables(tell), charts = new Charts();

function put(id, ...content) {
  const node = document.getElementById(id);
  const text = content.map((each) => each.textContent ?? each).join("|");
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.replaceChildren(...content);
}

const small = (text) => element("small", { text });

function showTiles(sample) {
  const { frame, about } = state;
  const used = frame.instances.reduce((sum, each) => sum + each[1], 0), cached = frame.instances.reduce((sum, each) => sum + each[2], 0);
  const all = about ? about.kv_tokens * frame.instances.length : 0;
  put("running", count(frame.running));
  put("waiting", count(frame.waiting));
  put("kv", share(used, all), small(cached ? `+ ${share(cached, all)} cached` : `of ${count(all)}`));
  for (const [id, name] of [["prompt-rate", "promptRate"], ["answer-rate", "answerRate"]]) put(id, sample ? count(sample[name]) : "–");
  const lately = state.samples.filter((each) => each.at > state.at - 60 && each.at <= state.at + 1);
  const sum = (name) => lately.reduce((total, each) => total + each[name], 0);
  put("answered", count(sum("answered")), small("in a minute"));
  put("answered-more", sum("turnedAway") ? `${count(sum("turnedAway"))} refused or aborted` : "");
}

function showSparks(samples) {
  const all = state.about ? state.about.kv_tokens * state.about.instances : 1;
  spark("running-line", samples.map((each) => each.running));
  spark("waiting-line", samples.map((each) => each.waiting));
  spark("kv-line", samples.map((each) => (each.used === null ? null : each.used / all)));
  spark("prompt-rate-line", samples.map((each) => each.promptRate));
  spark("answer-rate-line", samples.map((each) => each.answerRate));
}

function showAbout() {
  const { about } = state;
  if (!about) return;
  put("about", element("b", { text: about.model }), ` · ${about.policy} · ${about.instances} instance${about.instances === 1 ? "" : "s"} · ${count(about.instances * about.kv_tokens)} KV slots`);
  document.title = `${about.model} – Longspan`;
}

function showStatus(name, text) {
  const node = document.getElementById("status");
  node.dataset.state = name;
  const told = node.querySelector(".text");
  if (told.textContent !== text) told.textContent = text;
}

function showAlarm(text) {
  const node = document.getElementById("alarm");
  node.hidden = !text;
  if (text && node.textContent !== text) node.textContent = text;
}

// Light and dark.
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("longspan-theme", root.dataset.theme); } catch { /* it is chosen anew next time */ }
  charts.rebuild();
  charts.update(state.samples);
  if (state.frame) tables.recolour(state);
  lanes.draw(shown());
});

// What is drawn, and when: a few pictures a second are enough for a line that moves a pixel.
let shown = () => state.at, before = 0, dirty = true;
function picture(now) {
  requestAnimationFrame(picture);
  if (player) player.tick();
  if (document.hidden || now - before < (calm.matches ? 1000 : 50)) return;
  if (calm.matches && !dirty) return;
  before = now;
  dirty = false;
  lanes.draw(shown());
}
window.addEventListener("resize", () => { dirty = true; });

// A running server.
let player = null, offset = null, gap = 0.25; // seconds from frame to frame

function onFrame(frame) {
  const samples = state.samples.length;
  if (state.frame && !frame.whole) gap += 0.3 * (Math.min(1.2, frame.at - state.at) - gap);
  state.apply(frame);
  const here = performance.now() / 1000;
  offset = offset === null || Math.abs(frame.at - here - offset) > 2 ? frame.at - here : Math.max(offset - 0.002, frame.at - here);
  dirty = true;
  if (frame.whole) showAbout();
  showAlarm(frame.state || "");
  showTiles(state.samples.at(-1));
  lanes.update(state);
  tables.update(state);
  if (frame.whole || (frame.samples && frame.samples.length) || samples === 0) {
    charts.update(state.samples);
    showSparks(state.samples);
  }
}

function askKey(text) {
  const form = document.getElementById("key-form"), field = document.getElementById("key");
  form.hidden = false;
  document.getElementById("main").hidden = true;
  document.getElementById("key-error").textContent = text;
  showStatus("lost", "a key is needed");
  field.focus();
  return new Promise((go) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      keepKey(field.value.trim());
      field.value = "";
      form.hidden = true;
      document.getElementById("main").hidden = false;
      go();
    }, { once: true });
  });
}

async function live() {
  shown = () => (offset === null ? state.at : Math.min(performance.now() / 1000 + offset - gap - LATE_S, state.at + 2));
  if (root.dataset.key === "needed" && !key()) await askKey("");
  await follow({ frame: onFrame, state: showStatus, key: askKey });
}

// What a page that is one file holds.
async function held() {
  const text = atob(document.getElementById("log").textContent);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// An event log.
async function replay() {
  showStatus("lost", "reading …");
  const log = await (root.dataset.mode === "file" ? held() : fetch("/dashboard/log").then((answer) => answer.json()));
  if (root.dataset.mode === "file") story.held = log.stories;
  charts.fix(log.begin, log.end);
  const show = (now, at, isNew) => {
    state = now;
    dirty = true;
    if (!isNew) { charts.at(at); return; }
    let sample = null;
    for (const each of now.samples) if (each.at <= at) sample = each;
    showTiles(sample);
    lanes.update(now);
    tables.update(now);
    charts.at(at);
  };
  player = new Player(log, (...all) => player && show(...all));
  state = player.state;
  showAbout();
  charts.update(player.whole.samples);
  showSparks(player.whole.samples);
  showStatus("log", "event log");
  shown = () => player.at;
  player.go(log.begin);
  show(player.state, player.at, true);
}

requestAnimationFrame(picture);
(root.dataset.mode === "live" ? live : replay)();
