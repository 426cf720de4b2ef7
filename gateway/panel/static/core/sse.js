/** Server-sent events out of the pieces of a text, as the HTML standard reads them. Pure. */

export class EventParser {
  /** What a later connection sends as `Last-Event-ID`. */
  lastId = "";
  #rest = "";
  #id = null;
  #data = [];
  #event = "";

  /**
   * The events that *piece* completes.
   * @param {string} piece
   * @returns {{event: string, data: string}[]}
   */
  read(piece) {
    const text = this.#rest + piece;
    const found = [];
    let from = 0;
    for (const end of text.matchAll(/\r\n|\n|\r/g)) {
      if (end[0] === "\r" && end.index === text.length - 1) break; // the other half of a CRLF may follow
      const event = this.#line(text.slice(from, end.index));
      if (event) found.push(event);
      from = end.index + end[0].length;
    }
    this.#rest = text.slice(from);
    return found;
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    return null; // a comment, whose name is empty, and whatever else is not known
  }

  #dispatch() {
    const event = this.#data.length ? { event: this.#event || "message", data: this.#data.join("\n") } : null;
    if (this.#id !== null) this.lastId = this.#id; // not before the block is whole: a break inside it loses its event
    this.#id = null;
    this.#data = [];
    this.#event = "";
    return event;
  }
}
