// Speed and speculation of an answer: while it grows, and in the server's own numbers at its end.

const number = (value, digits = 1) => value.toFixed(digits);

export class Meter {
  constructor() {
    this.firstMs = null;
    this.tokens = 0;
    this.drafted = 0;
  }

  add(tokens) {
    this.firstMs ??= performance.now();
    this.tokens += tokens.length;
    this.drafted += tokens.filter(({ origin }) => origin !== "verifier" && origin !== "bonus").length;
  }

  live() {
    if (this.firstMs === null) return "Reading …";
    const seconds = (performance.now() - this.firstMs) / 1000;
    const speed = seconds > 0.2 ? `${number(this.tokens / seconds)} tokens/s, ` : "";
    const share = this.tokens ? Math.round((100 * this.drafted) / this.tokens) : 0;
    return `${speed}${this.tokens} tokens, ${share} % of them from drafts`;
  }

  // From the server's timings: speed, acceptance, and what plain decoding would have taken, which is an estimate.
  static facts({ timings, metrics, usage }) {
    const parts = [];
    if (timings?.predicted_per_second) parts.push(`${number(timings.predicted_per_second)} tokens/s`);
    if (timings) parts.push(`${timings.predicted_n} tokens`);
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    if (usage) parts.push(`prompt ${usage.prompt_tokens}${cached ? ` (${cached} cached)` : ""}`);
    const speculation = metrics?.speculative_decoding;
    if (speculation?.num_draft_tokens) {
      parts.push(`${Math.round(100 * speculation.draft_acceptance_rate)} % of ${speculation.num_draft_tokens} drafted tokens accepted`);
    }
    const plain = metrics?.plain_decoding?.estimated_ms;
    if (plain && timings) {
      parts.push(`${number(timings.predicted_ms / 1000)} s; plain decoding would have taken ${number(plain / 1000)} s (estimated)`);
    }
    return parts.join(" · ");
  }
}
