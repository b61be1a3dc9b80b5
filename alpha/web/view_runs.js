// All runs in a folder, the newest first, while they go on.

import { choice, date, duration, element, loss, setText, sparkline, status, title as titleOf, whole } from "/web/elements.js";
import { address, askJson, change, follow, remember, report, token } from "/web/server.js";
import { Table } from "/web/table.js";

const SPARKLINE_SECONDS = 20;
const SPARKLINES_AT_ONCE = 50;
const STATUSES = ["running", "finished", "interrupted", "failed", "empty", "damaged"];

export const title = "Runs";

export async function show(main) {
  const query = new URLSearchParams(location.search);
  const state = { q: query.get("q") ?? "", status: query.get("status") ?? "", group: query.get("group") ?? "", sort: query.get("sort") ?? "created", down: query.get("down") !== "0" };
  const runs = new Map();
  const chosen = new Set();
  const sparklines = new Sparklines(() => draw());
  const search = element("input", { type: "search", value: state.q, oninput: () => { state.q = search.value; changed(); } });
  const group = choice("Group", [["", "all"]], "", (value) => { state.group = value; changed(); });
  const count = element("p", { className: "hint" });
  const compare = element("button", { disabled: true, onclick: () => location.assign(address("/compare", { run: [...chosen] })) }, "Compare");
  const remove = element("button", { disabled: true, hidden: !token, onclick: () => removeChosen().catch(report) }, "Delete");
  const table = new Table({
    caption: "Runs",
    keyOf: (run) => run.runId,
    sort: state.sort,
    descending: state.down,
    onSort: (sort, down) => { Object.assign(state, { sort, down }); changed(); },
    onRow: (line, run) => sparklines.watch(line, run.runId),
    columns: [
      { name: "choose", label: "Choose", hidesLabel: true, text: (run) => run.runId, node: (run) => chooser(run) },
      { name: "run", label: "Run", sort: titleOf, text: (run) => titleOf(run), node: (run) => link(run) },
      { name: "status", label: "Status", sort: (run) => run.status, text: (run) => `${run.status} ${run.phase} ${run.error} ${shareOf(run)}`, node: (run) => progress(run) },
      { name: "group", minor: true, label: "Group", sort: (run) => run.group || null, text: (run) => run.group },
      { name: "domain", minor: true, label: "Domain", sort: (run) => run.domain || null, text: (run) => run.domain },
      { name: "step", minor: true, label: "Step", numeric: true, sort: (run) => run.step, text: (run) => (run.iters ? `${whole(run.step ?? 0)} / ${whole(run.iters)}` : whole(run.step)) },
      { name: "loss", label: "Loss", numeric: true, sort: (run) => run.loss, text: (run) => loss(run.loss) },
      { name: "val", label: "Val loss", numeric: true, sort: (run) => run.valLoss, text: (run) => loss(run.valLoss) },
      { name: "curve", minor: true, label: "Curve", text: (run) => sparklines.version(run), node: (run) => sparklines.picture(run) },
      { name: "pace", minor: true, label: "Tokens/s", numeric: true, sort: (run) => run.tokensPerSec, text: (run) => whole(run.tokensPerSec && Math.round(run.tokensPerSec)) },
      { name: "left", minor: true, label: "Time left", numeric: true, sort: (run) => run.secondsLeft, text: (run) => duration(run.secondsLeft) },
      { name: "created", minor: true, label: "Begun", sort: (run) => run.created || run.updated, text: (run) => date(run.created || run.updated) },
    ],
  });

  function chooser(run) {
    const box = element("input", { type: "checkbox", checked: chosen.has(run.runId), "aria-label": `Choose ${titleOf(run)}`, onchange: () => {
      if (box.checked) chosen.add(run.runId);
      else chosen.delete(run.runId);
      markChosen();
    } });
    return box;
  }

  function markChosen() {
    compare.disabled = chosen.size < 2;
    compare.textContent = chosen.size < 2 ? "Compare" : `Compare ${chosen.size}`;
    remove.disabled = !chosen.size;
  }

  async function removeChosen() {
    const names = [...chosen].map((id) => titleOf(runs.get(id) ?? { runId: id })).join(", ");
    if (!confirm(`Delete ${names}, with all checkpoints? This cannot be undone.`)) return;
    for (const id of [...chosen]) {
      await change(`/api/runs/${encodeURIComponent(id)}`, "DELETE");
      chosen.delete(id);
      runs.delete(id);
    }
    markChosen();
    draw();
  }

  function changed() {
    remember({ q: state.q, status: state.status, group: state.group, sort: state.sort === "created" ? "" : state.sort, down: state.down ? "" : 0 });
    draw();
  }

  function draw() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (run) => (!state.status || run.status === state.status) && (!state.group || run.group === state.group) &&
      words.every((word) => `${run.runId} ${run.name} ${run.group} ${run.domain} ${run.status} ${run.notes}`.toLowerCase().includes(word));
    const shown = [...runs.values()].filter(matches);
    table.setRows(shown);
    setText(count, runs.size ? `${shown.length === runs.size ? "" : `${shown.length} of `}${runs.size} ${runs.size === 1 ? "run" : "runs"}` : "There is no run yet: alpha train makes one, and it will be here.");
    table.element.hidden = !runs.size;
    const groups = [...new Set([...runs.values()].map((run) => run.group).filter(Boolean))].sort();
    const select = group.querySelector("select");
    if (select.dataset.key !== groups.join("\n")) {
      select.dataset.key = groups.join("\n");
      select.replaceChildren(...[["", "all"], ...groups.map((each) => [each, each])].map(([value, text]) => new Option(text, value, false, value === state.group)));
    }
    group.hidden = !groups.length;
  }

  main.append(element("h2", {}, "Runs"), element("div", { className: "controls" },
    element("label", {}, "Find", search),
    choice("Status", [["", "all"], ...STATUSES.map((each) => [each, each])], state.status, (value) => { state.status = value; changed(); }),
    group, compare, remove, count), table.element);
  await follow("/api/events", (event) => {
    if (event.whole) runs.clear();
    for (const id of event.gone) runs.delete(id);
    for (const run of event.runs) runs.set(run.runId, run);
    draw();
  });
}

function link(run) {
  const made = element("a", { href: address("/run", { id: run.runId }) }, titleOf(run));
  return run.name ? element("span", {}, made, element("small", {}, run.runId)) : made;
}

function shareOf(run) {
  return run.status === "running" && run.iters ? Math.floor((100 * (run.step ?? 0)) / run.iters) : "";
}

function progress(run) {
  const share = shareOf(run);
  const bar = share === "" ? [] : [element("progress", { max: 100, value: share, "aria-label": "Share of the steps" })];
  return element("span", { title: run.error }, status(run), ...bar);
}

/** Small curves, only of rows that are on the screen. */
class Sparklines {
  constructor(onNews) {
    this.onNews = onNews;
    this.losses = new Map();
    this.asked = new Map();
    this.visible = new Set();
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.visible.add(target.dataset.run);
        else this.visible.delete(target.dataset.run);
      }
      this.soon();
    });
  }

  watch(line, runId) {
    line.dataset.run = runId;
    this.observer.observe(line);
  }

  version(run) {
    if (this.visible.has(run.runId)) this.soon(run);
    return String(this.asked.get(run.runId)?.version ?? "");
  }

  picture(run) {
    const losses = this.losses.get(run.runId);
    return losses?.length ? sparkline(losses) : "";
  }

  /** Ask for those that are not known, or not any more as they were: of a run that goes on, now and then. */
  soon(run) {
    if (run) {
      const known = this.asked.get(run.runId);
      if (known && known.step !== run.step && performance.now() - known.time > 1000 * SPARKLINE_SECONDS) this.asked.delete(run.runId);
      if (known) known.step ??= run.step;
    }
    this.timer ??= setTimeout(() => this.ask().catch(report).finally(() => { this.timer = null; }), 100);
  }

  async ask() {
    const wanted = [...this.visible].filter((id) => !this.asked.has(id)).slice(0, SPARKLINES_AT_ONCE);
    if (!wanted.length) return;
    for (const id of wanted) this.asked.set(id, { time: performance.now() });
    const { losses } = await askJson(address("/api/sparklines", { run: wanted }));
    for (const id of wanted) {
      this.losses.set(id, losses[id] ?? []);
      this.asked.get(id).version = performance.now();
    }
    this.onNews();
  }
}
