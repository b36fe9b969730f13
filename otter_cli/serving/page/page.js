"use strict";
// Streams one answer twice, plain and guided, and shows a signal of each token.
// Text of the model is only ever inserted as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600, HEIGHT = 130, MARGIN = 6;
const byId = (id) => document.getElementById(id);

const page = { model: null, series: [], answers: [], abort: null };

/** One answer: its tokens with their values, and the elements that show them. */
class Answer {
  constructor(id, title) {
    this.title = title;
    this.section = byId(id);
    this.section.append(byId("answer-parts").content.cloneNode(true));
    this.text = this.section.querySelector(".text");
    this.text.setAttribute("aria-label", `${title} answer. Arrow keys go from token to token.`);
    this.reading = this.section.querySelector(".reading");
    this.curve = this.section.querySelector(".curve");
    this.summary = this.section.querySelector(".summary");
    this.details = this.section.querySelector("details");
    this.text.addEventListener("keydown", (event) => this.onKey(event));
    this.text.addEventListener("click", (event) => this.choose(this.spans.indexOf(event.target)));
    this.text.addEventListener("blur", () => this.choose(-1));
    this.details.addEventListener("toggle", () => this.fillTable());
    this.clear();
  }

  clear() {
    this.tokens = []; // {text, values: {signal: value or list}}
    this.spans = [];
    this.places = []; // the token of each span
    this.chosen = -1;
    this.finish = "";
    this.text.replaceChildren();
    this.draw();
  }

  add(text, signals) {
    const counts = Object.values(signals).map((series) => series.tokens.length);
    const count = Math.max(text ? 1 : 0, ...counts);
    for (let n = 0; n < count; n++) {
      const values = {};
      for (const [name, series] of Object.entries(signals)) values[name] = series.tokens[n];
      this.tokens.push({ text: n === count - 1 ? text : "", values });
    }
    if (text) {
      const span = document.createElement("span");
      span.className = "token";
      span.textContent = text;
      this.text.append(span);
      this.spans.push(span);
      this.places.push(this.tokens.length - 1);
    }
  }

  values(series) {
    return this.tokens.map((token) => valueOf(token, series));
  }

  /** Colours and underlines tokens, and draws the curve, on the scale [low, high]. */
  draw(series, low = 0, high = 1) {
    this.series = series;
    this.spans.forEach((span, n) => {
      const value = series ? valueOf(this.tokens[this.places[n]], series) : null;
      const share = value === null ? 0 : part(value, low, high);
      span.style.backgroundColor = value === null ? "" : `hsl(32 ${100 - 5 * share}% ${97 - 37 * share}%)`;
      span.style.borderBottomWidth = `${Math.round(4 * share)}px`;
      span.title = value === null ? "" : `${series.label} ${shown(value)}`;
    });
    this.drawCurve(series, low, high);
    this.describe(series);
    this.fillTable();
  }

  drawCurve(series, low, high) {
    const values = series ? this.values(series) : [];
    const x = (n) => (values.length < 2 ? WIDTH / 2 : MARGIN + (n * (WIDTH - 2 * MARGIN)) / (values.length - 1));
    const y = (value) => HEIGHT - MARGIN - part(value, low, high) * (HEIGHT - 2 * MARGIN);
    const parts = [0, 0.5, 1].map((share) => {
      const height = y(low + share * (high - low));
      return shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: height, y2: height });
    });
    let stretch = [];
    const flush = () => {
      if (stretch.length === 1) stretch.push(stretch[0].replace(/^[^,]*/, (at) => `${+at + 3}`));
      if (stretch.length) parts.push(shape("polyline", { class: "line", points: stretch.join(" ") }));
      stretch = [];
    };
    values.forEach((value, n) => (value === null ? flush() : stretch.push(`${x(n)},${y(value)}`)));
    flush();
    if (this.chosen >= 0) {
      const at = x(this.places[this.chosen]);
      parts.push(shape("line", { class: "marker", x1: at, x2: at, y1: 0, y2: HEIGHT }));
    }
    this.curve.replaceChildren(...parts);
  }

  describe(series) {
    const values = series ? this.values(series).filter((value) => value !== null) : [];
    let text = this.tokens.length ? `${this.tokens.length} tokens` : "";
    if (values.length) {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      text += `, ${series.label} from ${shown(low)} to ${shown(high)}, last ${shown(values.at(-1))}`;
    }
    if (this.finish) text += `. ${this.finish}`;
    this.summary.textContent = text;
    this.curve.setAttribute("aria-label", text ? `Curve: ${text}` : "Curve of the signal, empty so far");
  }

  fillTable() {
    if (!this.details.open) return;
    this.details.querySelector(".value-title").textContent = this.series ? this.series.label : "Value";
    const rows = this.tokens.map((token) => {
      const row = document.createElement("tr");
      const value = this.series ? valueOf(token, this.series) : null;
      for (const text of [token.text || "(no text)", value === null ? "no value" : shown(value)]) {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    });
    this.details.querySelector("tbody").replaceChildren(...rows);
  }

  onKey(event) {
    const steps = { ArrowRight: this.chosen + 1, ArrowLeft: this.chosen - 1, Home: 0, End: this.spans.length - 1 };
    if (!(event.key in steps) || !this.spans.length) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(this.spans.length - 1, steps[event.key])));
  }

  /** Marks a token, in the text and on the curve, and says its value. */
  choose(place) {
    this.spans[this.chosen]?.classList.remove("chosen");
    this.chosen = place;
    this.spans[place]?.classList.add("chosen");
    const token = place < 0 ? null : this.tokens[this.places[place]];
    const value = token && this.series ? valueOf(token, this.series) : null;
    const name = this.series ? this.series.label : "";
    this.reading.textContent = token
      ? `Token ${place + 1}, “${token.text.trim() || "space"}”: ${value === null ? "no value" : `${name} ${shown(value)}`}`
      : "";
    const [low, high] = scale();
    this.drawCurve(this.series, low, high);
  }
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function valueOf(token, series) {
  const value = token.values[series.signal];
  const number = Array.isArray(value) ? value[series.index] : value;
  return typeof number === "number" ? number : null;
}

const part = (value, low, high) => (high > low ? Math.max(0, Math.min(1, (value - low) / (high - low))) : 0.5);
const shown = (value) => (Math.abs(value) >= 1000 ? value.toExponential(2) : value.toFixed(3));

/** Probabilities have the scale 0 to 1; values that of both answers together. */
function scale() {
  const series = page.series[byId("signal").value];
  if (!series) return [0, 1];
  if (series.kind === "classes") return [0, 1];
  const values = page.answers.flatMap((answer) => answer.values(series)).filter((value) => value !== null);
  return values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
}

let drawing = false;
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const [low, high] = scale();
    const series = page.series[byId("signal").value];
    for (const answer of page.answers) answer.draw(series, low, high);
    byId("scale").hidden = !series || !page.answers.some((answer) => answer.tokens.length);
    byId("scale-low").textContent = shown(low);
    byId("scale-high").textContent = shown(high);
  });
}

function headers() {
  const key = byId("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** The server's message for a reply that is an error. */
async function problemOf(reply) {
  if (reply.status === 401) byId("key-field").hidden = false;
  try {
    return (await reply.json()).error.message;
  } catch {
    return `the server answered with status ${reply.status}`;
  }
}

async function loadModel() {
  const reply = await fetch("v1/models", { headers: headers() });
  if (!reply.ok) throw new Error(await problemOf(reply));
  const model = (await reply.json()).data[0];
  page.model = model;
  byId("model").textContent = `Model ${model.id}: ${model.signals.map((signal) => signal.name).join(", ") || "no signals"}`;
  byId("max-tokens").max = model.max_tokens;
  page.series = [];
  const guides = [];
  for (const signal of model.signals) {
    const several = signal.labels.length > 1;
    const labels = several ? signal.labels : [""];
    labels.forEach((label, index) => {
      page.series.push({ signal: signal.name, index, kind: signal.kind, label: several ? `${signal.name}.${label}` : signal.name });
      guides.push(several ? `${signal.name}/${label}` : signal.name);
    });
  }
  byId("signal").replaceChildren(...page.series.map((series, n) => new Option(series.label, n)));
  byId("guide").replaceChildren(...guides.map((name) => new Option(name, name)));
}

function body(guided) {
  const prompt = byId("prompt").value;
  const bound = byId("stop-when").value.trim();
  return {
    model: page.model.id,
    ...(page.model.chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    max_tokens: Number(byId("max-tokens").value),
    temperature: Number(byId("temperature").value),
    seed: 0,
    stream: true,
    signals: page.model.signals.map((signal) => signal.name),
    ...(bound ? { stop_when: bound } : {}),
    ...(guided && byId("guide").value ? { guide: { [byId("guide").value]: Number(byId("strength").value) } } : {}),
  };
}

/** The data of each server-sent event of a reply. */
async function* eventsOf(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}

const ENDS = {
  stop: "The model ended its answer",
  length: "It has the most tokens that were allowed",
  content_filter: "Stopped",
};

async function write(answer, guided, signal) {
  const path = page.model.chat ? "v1/chat/completions" : "v1/completions";
  const request = { method: "POST", headers: headers(), body: JSON.stringify(body(guided)), signal };
  const reply = await fetch(path, request);
  if (!reply.ok) throw new Error(await problemOf(reply));
  for await (const data of eventsOf(reply)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    for (const choice of event.choices) {
      answer.add(choice.delta ? choice.delta.content || "" : choice.text, choice.signals || {});
      if (choice.finish_reason) answer.finish = ENDS[choice.finish_reason] + (choice.stop_reason ? ` at ${choice.stop_reason}` : "");
    }
    redraw();
  }
}

async function submit(event) {
  event.preventDefault();
  byId("error").textContent = "";
  page.abort = new AbortController();
  byId("write").disabled = true;
  byId("stop").disabled = false;
  byId("status").textContent = "Writing…";
  try {
    if (!page.model) await loadModel();
    for (const answer of page.answers) answer.clear();
    redraw();
    const both = page.answers.map((answer, n) => write(answer, n === 1, page.abort.signal));
    const failed = (await Promise.allSettled(both)).find((result) => result.status === "rejected");
    if (failed) throw failed.reason;
    byId("status").textContent = "Both answers are written.";
  } catch (error) {
    const stopped = error.name === "AbortError";
    byId("status").textContent = stopped ? "Stopped." : "";
    if (!stopped) byId("error").textContent = `Error: ${error.message}`;
  } finally {
    byId("write").disabled = false;
    byId("stop").disabled = true;
    redraw();
  }
}

page.answers = [new Answer("plain", "Plain"), new Answer("guided", "Guided")];
byId("form").addEventListener("submit", submit);
byId("stop").addEventListener("click", () => page.abort?.abort());
byId("signal").addEventListener("change", redraw);
byId("strength").addEventListener("input", () => {
  byId("strength-value").textContent = byId("strength").value;
});
loadModel().catch((error) => {
  byId("model").textContent = "The model is not known yet.";
  byId("error").textContent = `Error: ${error.message}`;
});
