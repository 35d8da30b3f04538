// One request's story, as `longspan explain` tells it.
import { element, shortId } from "./format.js";
import { ask } from "./stream.js";

export class Story {
  // held: lines of stories by the request's id, of a page that has nobody to ask.
  constructor() {
    this.held = null;
    this.dialog = document.getElementById("story");
    this.title = document.getElementById("story-title");
    this.lines = document.getElementById("story-lines");
    document.getElementById("story-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  async open(id) {
    this.wanted = id;
    this.title.textContent = shortId(id);
    this.title.title = id;
    this.lines.replaceChildren(element("p", { class: "note", text: "reading …" }));
    if (!this.dialog.open) this.dialog.showModal();
    if (this.held) {
      const lines = Object.hasOwn(this.held, id) ? this.held[id] : null;
      const lacking = `This file holds the stories of the ${Object.keys(this.held).length} requests that waited longest. With the event log: longspan explain LOG ${id}`;
      this.lines.replaceChildren(...(lines ? tell(lines) : [element("p", { text: lacking })]));
      return;
    }
    try {
      const answer = await ask(`/requests/${encodeURIComponent(id)}/story`);
      const told = await answer.json().catch(() => ({}));
      if (this.wanted !== id) return; // another has been asked for since
      if (!answer.ok) throw new Error(told.error ? told.error.message : `status ${answer.status}`);
      this.lines.replaceChildren(...told.stories.flatMap((story) => tell(story.lines)));
    } catch (error) {
      if (this.wanted === id) this.lines.replaceChildren(element("p", { text: `No story: ${error.message}` }));
    }
  }
}

// Lines are "ID: lengths", then "  +1.234 s  what", and deeper ones that go with it.
function tell(lines) {
  const list = element("ol");
  for (const line of lines.slice(1)) {
    const found = /^\s+([+-]\d[\d.]* s) {2}(.*)$/.exec(line);
    if (found) list.append(element("li", {}, element("span", { text: found[1] }), element("div", {}, element("p", { text: found[2] }))));
    else if (list.lastChild) list.lastChild.lastChild.append(element("p", { class: "more", text: line.trim() }));
  }
  return [element("h3", { text: lines[0] || "" }), list];
}
