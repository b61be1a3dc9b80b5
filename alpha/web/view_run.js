// One run, while it goes on: its curves, samples, checkpoints, options and log.

import { bytes, date, duration, element, loss, parameters, seldom, setText, spelled, status, title as titleOf, whole } from "/web/elements.js";
import { Curves } from "/web/curves.js";
import { Panel, asked, queryOf, viewOf } from "/web/panel.js";
import { address, askJson, change, download, follow, remember, report, token } from "/web/server.js";

const NAMES = ["loss", "valLoss", "lr", "gradNorm", "tokens_per_sec", "gpuMemory", "gpuMemoryPeak"];
const SMOOTHED = ["loss", "gradNorm", "tokens_per_sec"];
const COLUMNS = { Loss: ["loss", "valLoss"], "Learning rate": ["lr"], "Gradient norm": ["gradNorm", "clipped", "skipped"],
  "Tokens per second": ["tokens_per_sec"], "Device memory in MB": ["gpuMemory", "gpuMemoryPeak"] };
const MOST_LOG_LINES = 1000;

export const title = "Run";

export async function show(main) {
  const query = new URLSearchParams(location.search);
  const id = query.get("id") ?? "";
  const path = `/api/runs/${encodeURIComponent(id)}`;
  const view = viewOf(query);
  const curves = new Curves(id, NAMES, SMOOTHED);
  const panel = new Panel(view, (what) => reload(what).catch(report), (chart) => ({ run: [id], column: COLUMNS[chart] }));
  let news = null;
  const drawSoon = seldom(() => {
    head.set(news.run, news.share);
    draw();
  });
  const head = new Head(id, path);
  const samples = new Samples();
  const checkpoints = new Checkpoints(id, path);
  const options = element("section", {}, element("h2", {}, "Options"));
  const log = new Log();
  main.append(head.element, panel.element,
    element("div", { className: "columns" }, element("div", {}, samples.element, log.element), element("div", {}, checkpoints.element, options)));
  draw();

  async function reload(what) {
    remember({ id, ...queryOf(view) });
    if (what === "load" && (await curves.load(asked(view))) && view.range) await curves.refine(view.range);
    if (what === "refine") await curves.refine(view.range);
    draw();
  }

  function draw() {
    const both = (name, label, colour) => [{ label, colour, faint: view.smoothing > 0, ...curves.curve(name) },
      ...(view.smoothing > 0 ? [{ label, colour, ...curves.curve(name, true) }] : [])];
    panel.setCurves("Loss", [...both("loss", "training", 0), { label: "validation", colour: 1, points: true, ...curves.curve("valLoss") }]);
    panel.setCurves("Learning rate", [{ label: "learning rate", colour: 0, ...curves.curve("lr") }]);
    panel.setCurves("Gradient norm", both("gradNorm", "gradient norm", 0),
      [{ label: "clipped", colour: 4, x: curves.marks("clipped") }, { label: "skipped", colour: 9, x: curves.marks("skipped") }]);
    panel.setCurves("Tokens per second", both("tokens_per_sec", "tokens per second", 0));
    const memory = [["gpuMemory", "in use", 0], ["gpuMemoryPeak", "at most", 1]].map(([name, label, colour]) => {
      const { x, y } = curves.curve(name);
      return { label, colour, x, y: y.map((each) => each / 1e6) };
    });
    if (memory[0].x.length) panel.setCurves("Device memory in MB", memory);
  }

  async function loadAll() {
    const [, run, told, lines] = await Promise.all([reload("load"), askJson(path), askJson(`${path}/samples`), askJson(`${path}/log`), checkpoints.load().catch(report)]);
    options.replaceChildren(element("h2", {}, "Options"), ...describeOptions(run));
    samples.set(told.samples);
    log.set(lines.lines);
  }

  await follow(`${path}/events`, (event) => {
    if (event.gone) {
      report(new Error("This run is not there any more."));
      return;
    }
    news = event;
    if (event.reset) {
      head.set(event.run, event.share);
      loadAll().catch(report);
      return;
    }
    curves.append(event);
    drawSoon();
    if (event.samples.length) samples.add(event.samples);
    if (event.log.length) {
      log.add(event.log);
      checkpoints.load().catch(report);
    }
  }).catch((error) => {
    if (error.status !== 404) throw error;
    main.replaceChildren(element("h2", {}, "Run"), element("p", {}, "The ", element("a", { href: "/runs" }, "table of runs"), " has those that there are."));
    throw new Error(`There is no run ${id}.`);
  });
}

// --- parts ---------------------------------------------------------------------------------------------------------------

class Head {
  constructor(id, path) {
    this.name = element("h2", {}, id);
    this.id = element("small", {}, id);
    this.facts = element("dl", { className: "facts" });
    this.notes = element("p", { className: "notes" });
    this.error = element("p", { className: "error", hidden: true });
    this.element = element("section", { className: "head" }, this.name, this.id, this.facts, this.error, this.notes);
    if (token) this.element.append(this.form(path));
  }

  set(run, share) {
    document.title = `${run.status === "running" && run.iters ? `${Math.floor((100 * (run.step ?? 0)) / run.iters)} % ` : ""}${titleOf(run)} – Alpha`;
    setText(this.name, titleOf(run));
    this.id.hidden = !run.name;
    const facts = [
      ["Status", status(run)],
      ["Step", `${whole(run.step ?? 0)}${run.iters ? ` of ${whole(run.iters)}` : ""}`],
      ["Loss", loss(run.loss)],
      ["Validation loss", loss(run.valLoss)],
      ["Tokens per second", run.tokensPerSec === null ? "" : whole(Math.round(run.tokensPerSec))],
      ["Time left", duration(run.secondsLeft)],
      ["Domain", run.domain],
      ["Group", run.group],
      ["Begun", date(run.created)],
      ["Read so far", share < 1 ? `${Math.floor(100 * share)} %` : ""],
    ];
    const known = facts.filter(([, value]) => value !== "");
    const terms = known.map(([term]) => term).join();
    if (this.facts.dataset.terms !== terms) {
      this.facts.dataset.terms = terms;
      this.facts.replaceChildren(...known.map(([term]) => element("div", {}, element("dt", {}, term), element("dd"))));
    }
    known.forEach(([, value], place) => {
      const cell = this.facts.children[place].lastElementChild;
      if (cell.textContent !== (value.textContent ?? value)) cell.replaceChildren(value);
    });
    this.error.hidden = !run.error;
    setText(this.error, run.error);
    setText(this.notes, run.notes);
    if (this.fields && !this.fields.some((field) => field === document.activeElement)) {
      for (const field of this.fields) field.value = run[field.name];
    }
  }

  form(path) {
    const field = (name, label, tag) => element("label", {}, label, element(tag, { name, maxLength: name === "notes" ? 20000 : 100 }));
    const labels = [field("name", "Name", "input"), field("group", "Group", "input"), field("notes", "Notes", "textarea")];
    this.fields = labels.map((label) => label.lastElementChild);
    const write = async () => {
      const run = await change(path, "PATCH", Object.fromEntries(this.fields.map(({ name, value }) => [name, name === "notes" ? value : value.trim()])));
      this.set(run, 1);
    };
    const remove = async () => {
      if (!confirm("Delete this run, with all checkpoints? This cannot be undone.")) return;
      await change(path, "DELETE");
      location.assign("/runs");
    };
    return element("details", { className: "edit" }, element("summary", {}, "Name, group, notes"), ...labels,
      element("div", { className: "controls" }, element("button", { className: "main", onclick: () => write().catch(report) }, "Save"),
        element("button", { onclick: () => remove().catch(report) }, "Delete the run")));
  }
}

/** The newest sample, or the one that somebody chose. */
class Samples {
  constructor() {
    this.samples = [];
    this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Which sample", oninput: () => this.draw() });
    this.step = element("output");
    this.text = element("p", { className: "sample" });
    this.element = element("section", { hidden: true }, element("h2", {}, "Samples"), element("div", { className: "controls" }, this.slider, this.step), this.text);
  }

  set(samples) {
    const isLast = Number(this.slider.value) >= this.samples.length - 1;
    this.samples = samples;
    this.element.hidden = !samples.length;
    this.slider.max = Math.max(0, samples.length - 1);
    this.slider.hidden = samples.length < 2;
    if (isLast) this.slider.value = samples.length - 1;
    this.draw();
  }

  add(samples) {
    this.set([...this.samples.filter(({ step }) => step < samples[0].step), ...samples]);
  }

  draw() {
    const sample = this.samples[Number(this.slider.value)];
    if (!sample) return;
    setText(this.step, `after step ${whole(sample.step)}`);
    this.slider.setAttribute("aria-valuetext", this.step.textContent);
    if (this.text.textContent !== sample.prompt + sample.text) this.text.replaceChildren(element("b", {}, sample.prompt), sample.text);
  }
}

class Checkpoints {
  constructor(id, path) {
    Object.assign(this, { id, path });
    this.body = element("tbody");
    const heads = ["Step", "Val loss", "Size", "Written", "Use"].map((text, i) => element("th", { scope: "col", className: ["numeric", "numeric", "numeric", "minor", ""][i] }, text));
    this.table = element("table", {}, element("caption", { className: "unseen" }, "Checkpoints"), element("thead", {}, element("tr", {}, ...heads)), this.body);
    this.shape = element("p", { className: "hint" });
    this.element = element("section", { hidden: true }, element("h2", {}, "Checkpoints"), this.shape, element("div", { className: "table" }, this.table));
  }

  async load() {
    const { checkpoints } = await askJson(`${this.path}/checkpoints`);
    this.element.hidden = !checkpoints.length;
    const known = checkpoints.find((each) => each.parameters);
    setText(this.shape, known ? `${parameters(known.parameters)} parameters${known.tokenizer && `, tokenizer ${known.tokenizer}`}` : "");
    this.body.replaceChildren(...checkpoints.map((each) => this.row(each)));
  }

  row(checkpoint) {
    const { name, step, problem } = checkpoint;
    if (problem) return element("tr", {}, element("th", { scope: "row", className: "numeric" }, whole(step)), element("td", { colSpan: 4, className: "error" }, problem));
    const file = `${this.path}/checkpoints/${encodeURIComponent(name)}`;
    const number = (tag, text, more) => element(tag, { className: "numeric", ...more }, text);
    return element("tr", {}, number("th", whole(step), { scope: "row" }), number("td", loss(checkpoint.valLoss)), number("td", bytes(checkpoint.bytes)),
      element("td", { className: "minor" }, date(checkpoint.written)),
      element("td", {}, element("a", { href: address("/", { model: `${this.id}@${step}` }) }, "Play"), " ",
        element("button", { className: "link", "aria-label": `Download the checkpoint of step ${step}`, onclick: () => download(file, `${this.id}-${name}`).catch(report) }, "Download")));
  }
}

class Log {
  constructor() {
    this.lines = [];
    this.text = element("pre", { tabIndex: 0, role: "region", "aria-label": "Log" });
    this.element = element("section", {}, element("h2", {}, "Log"), this.text);
  }

  set(lines) {
    this.lines = lines;
    this.draw();
  }

  add(lines) {
    this.lines = [...this.lines, ...lines].slice(-MOST_LOG_LINES);
    this.draw();
  }

  draw() {
    const { scrollTop, scrollHeight, clientHeight } = this.text;
    const isAtEnd = scrollTop + clientHeight >= scrollHeight - 4;
    setText(this.text, this.lines.join("\n"));
    if (isAtEnd) this.text.scrollTop = this.text.scrollHeight;
  }
}

function describeOptions({ changed, model, training, history, problem }) {
  const problems = problem ? [element("p", { className: "error" }, problem)] : [];
  if (!Object.keys(model).length) return problems;
  const table = (values, caption) => element("table", {}, element("caption", { className: "unseen" }, caption),
    element("tbody", {}, ...Object.entries(values).map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, spelled(value))))));
  const all = { ...model, ...training };
  const parts = [
    ...problems,
    Object.keys(changed).length ? table(changed, "Options that differ from the defaults") : element("p", {}, "All options have their defaults."),
    element("details", {}, element("summary", {}, `All ${Object.keys(all).length} options`), table(all, "All options")),
  ];
  if (history.length) parts.push(element("p", { className: "hint" }, `Resumed with other options: ${history.map((each) => JSON.stringify(each)).join(", ")}`));
  return parts;
}
