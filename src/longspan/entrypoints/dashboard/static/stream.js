// Frames of a running server. By fetch, not EventSource, which could send no key.

const KEY = "longspan-key";

export function key() {
  try { return sessionStorage.getItem(KEY); } catch { return null; }
}

export function keepKey(value) {
  try { value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY); } catch { /* it is asked for again */ }
  given = value;
}

let given = null;

export async function ask(path, options = {}) {
  const known = given || key();
  return fetch(path, { ...options, cache: "no-store", headers: known ? { authorization: `Bearer ${known}` } : {} });
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const parts = (text + piece.value).split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

// on: {frame, state(name, text), key(text)}; goes on for ever.
export async function follow(on) {
  let wait = 500;
  for (;;) {
    const stop = new AbortController();
    try {
      const answer = await ask("/dashboard/events", { signal: stop.signal });
      if (answer.status === 401) {
        await on.key(key() || given ? "This is not one of the server's keys." : "");
        continue;
      }
      if (!answer.ok) {
        const error = await answer.json().catch(() => ({}));
        throw new Error(error.error ? error.error.message : `status ${answer.status}`);
      }
      let silent = setTimeout(() => stop.abort(), 15000);
      for await (const frame of events(answer.body)) {
        clearTimeout(silent);
        silent = setTimeout(() => stop.abort(), 15000);
        wait = 500;
        on.state("live", "live");
        on.frame(frame);
      }
      clearTimeout(silent);
      on.state("lost", "connecting again …");
    } catch (error) {
      const told = error.name === "AbortError" || error instanceof TypeError ? "no answer; trying again …" : error.message;
      on.state("lost", told);
    }
    await new Promise((go) => setTimeout(go, wait));
    wait = Math.min(8000, wait * 2);
  }
}
