// What there is to see: frames, as the server makes them (metrics/fleet/frames.py), added up.

const MOST_SPANS = 4000, MOST_SAMPLES = 3600, MOST_KEPT = 60;

const REQUEST = ["number", "id", "phase", "prompt", "computed", "output", "maxTokens", "found", "arrived", "ttft", "held",
  "quote", "tenant", "priority", "preemptions", "inFlight"];
const SPAN = ["number", "start", "end", "group", "kind", "requests", "numRequests", "count", "tokens"];
const BATCH = ["group", "kind", "requests", "numRequests", "tokens", "seconds"];
const SAMPLE = ["at", "running", "waiting", "used", "cached", "promptRate", "answerRate", "ttft", "tpot", "answered", "turnedAway"];
const ENDED = ["number", "id", "prompt", "output", "arrived", "ttft", "tpot", "why", "at"];
const NEWS = ["at", "what", "instance", "request", "detail"];

function named(names, row) {
  return Object.fromEntries(names.map((name, place) => [name, row[place]]));
}

export class State {
  // keepsAll: of a log, all that ever was is kept, too.
  constructor(keepsAll = false) {
    this.keepsAll = keepsAll;
    this.allSpans = new Map();
    this.allNews = [];
    this.allEnded = [];
    this.about = null;
    this.ids = new Map(); // of requests, by number, also of those that have ended
    this.clear();
  }

  clear() {
    this.frame = null;
    this.requests = new Map();
    this.spans = new Map();
    this.samples = [];
    this.news = [];
    this.ended = [];
  }

  apply(frame) {
    if (frame.whole) {
      if (this.keepsAll) this.requests = new Map(); else this.clear();
      this.about = frame.about || this.about;
    }
    this.applyRequests(frame);
    const news = (frame.news || []).map((row) => named(NEWS, row)), ended = (frame.ended || []).map((row) => named(ENDED, row));
    for (const each of ended) this.ids.set(each.number, each.id);
    for (const row of frame.samples || []) this.samples.push(named(SAMPLE, row));
    const spans = this.keepsAll ? this.allSpans : this.spans;
    for (const row of frame.spans || []) {
      spans.delete(row[0]);
      spans.set(row[0], named(SPAN, row));
    }
    if (this.keepsAll) {
      this.allNews.push(...news);
      this.allEnded.push(...ended);
      return;
    }
    while (this.spans.size > MOST_SPANS) this.spans.delete(this.spans.keys().next().value);
    if (this.samples.length > MOST_SAMPLES) this.samples.splice(0, this.samples.length - MOST_SAMPLES);
    this.news = [...news.reverse(), ...this.news].slice(0, MOST_KEPT);
    this.ended = [...ended.reverse(), ...this.ended].slice(0, MOST_KEPT);
  }

  applyRequests(frame) {
    this.frame = frame;
    for (const number of frame.gone || []) this.requests.delete(number);
    for (const row of frame.requests || []) {
      this.requests.set(row[0], named(REQUEST, row));
      this.ids.set(row[0], row[1]);
    }
  }

  get at() { return this.frame ? this.frame.at : 0; }

  get instances() {
    return (this.frame ? this.frame.instances : []).map(([number, used, cached, state]) => ({ number, used, cached, state }));
  }

  get batches() { return (this.frame ? this.frame.batches : []).map((row) => named(BATCH, row)); }

  get queue() { return (this.frame ? this.frame.queue : []).map((number) => this.requests.get(number)).filter(Boolean); }

  get running() { return [...this.requests.values()].filter((each) => each.phase !== "waiting").sort((a, b) => a.number - b.number); }
}
