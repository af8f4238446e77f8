// An answer's text as it grows. Every character reaches the page as text, never as markup; fenced code gets a block.

const CLASSES = { verifier: "by-verifier", bonus: "by-verifier", ngram: "by-lookup", recycle: "by-lookup", effort: "by-effort", grammar: "by-grammar" };

export function classOf(origin) {
  const name = origin.replace(/[@!].*$/, "");
  return CLASSES[name] ?? "by-other";
}

// Appends tokens to an element. A line that begins with three backticks opens or closes a block of code.
export class AnswerText {
  constructor(element) {
    this.element = element;
    this.place = element;
    this.line = []; // tokens of the line that may still become a fence
    this.isFence = true; // as far as the line goes
    this.last = null;
  }

  // `pieces`: [{text, origin}], in order.
  add(pieces) {
    for (const { text, origin } of pieces) {
      let start = 0;
      for (let end; (end = text.indexOf("\n", start)) >= 0; start = end + 1) {
        this.#take(text.slice(start, end + 1), origin);
        this.#endLine();
      }
      this.#take(text.slice(start), origin);
    }
  }

  // The answer is over: what was held back is text.
  finish() {
    this.#flush();
  }

  #take(text, origin) {
    if (!text) return;
    if (!this.isFence) {
      this.#append(text, origin);
      return;
    }
    this.line.push([text, origin]);
    const sofar = this.line.map(([part]) => part).join("");
    if (!/^ {0,3}(`{0,3}|```[^`\n]*)\n?$/.test(sofar)) this.#flush();
  }

  #endLine() {
    const line = this.line.map(([part]) => part).join("");
    if (this.isFence && /^ {0,3}```/.test(line)) {
      if (this.place === this.element) this.#open();
      else this.place = this.element;
      this.line = [];
      this.last = null;
    } else {
      this.#flush();
    }
    this.isFence = true;
  }

  #open() {
    const block = document.createElement("pre");
    const code = document.createElement("code");
    block.tabIndex = 0;
    block.append(code);
    this.element.append(block);
    this.place = code;
  }

  #flush() {
    this.isFence = false;
    const held = this.line;
    this.line = [];
    for (const [text, origin] of held) this.#append(text, origin);
  }

  // Neighbouring tokens of one origin share an element: a long answer stays a short document.
  #append(text, origin) {
    const kind = classOf(origin);
    if (this.last?.parentNode === this.place && this.last.className === `token ${kind}` && this.last.title === origin) {
      this.last.firstChild.appendData(text);
      return;
    }
    const span = document.createElement("span");
    span.className = `token ${kind}`;
    span.title = origin;
    span.textContent = text;
    this.place.append(span);
    this.last = span;
  }
}
