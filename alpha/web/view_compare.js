// Several runs over the same axes, a colour each, and the options in which they differ.

import { element, loss, seldom, setText, spelled, title as titleOf, whole } from "/web/elements.js";
import { Curves } from "/web/curves.js";
import { Panel, asked, queryOf, viewOf } from "/web/panel.js";
import { address, askJson, follow, remember, report } from "/web/server.js";

const CHARTS = [["Training loss", "loss"], ["Validation loss", "valLoss"], ["Validation, bits per byte", "valBitsPerByte"],
  ["Learning rate", "lr"], ["Gradient norm", "gradNorm"], ["Tokens per second", "tokens_per_sec"], ["Device memory in MB", "gpuMemory"]];
const NAMES = CHARTS.map(([, name]) => name);
const SMOOTHED = ["loss", "gradNorm", "tokens_per_sec"];
const NEWEST = 5;
const MOST = 50;
const AT_A_TIME = 4;

export const title = "Compare";

export async function show(main) {
  const query = new URLSearchParams(location.search);
  const view = viewOf(query);
  const hidden = new Set(query.getAll("hide"));
  const listed = (await askJson("/api/runs")).runs.sort((a, b) => (b.created || b.updated).localeCompare(a.created || a.updated));
  const asks = { run: query.getAll("run"), group: query.get("group") ?? "", newest: Number(query.get("newest")) || 0 };
  const ids = idsOf(asks, listed);
  const runs = ids.map((id, colour) => ({ id, colour, run: listed.find((each) => each.runId === id), curves: new Curves(id, NAMES, SMOOTHED) }));
  const columns = Object.fromEntries(CHARTS);
  const panel = new Panel(view, (what) => reload(what).catch(report), (chart) => ({ run: shown().map(({ id }) => id), column: columns[chart] }));
  const drawSoon = seldom(() => {
    for (const each of runs) if (each.run && !each.isGone) legend.set(each, each.run);
    draw();
  });
  panel.grid.classList.add("pair");
  const legend = new Legend(runs, hidden, () => { rememberAll(); draw(); });
  const options = element("section", {}, element("h2", {}, "Options that differ"));
  main.append(element("h2", {}, "Compare"), choices(listed, asks));
  if (!ids.length) {
    main.append(element("p", { className: "hint" }, listed.length ? "No run was chosen." : "There is no run yet: alpha train makes one."));
    return;
  }
  main.append(legend.element, panel.element, options);
  draw();
  compareOptions(runs).then((table) => options.append(table)).catch((error) => options.append(element("p", { className: "error" }, error.message)));

  function rememberAll() {
    remember({ ...(asks.run.length ? { run: asks.run } : asks.group ? { group: asks.group } : { newest: asks.newest || "" }), hide: [...hidden], ...queryOf(view) });
  }

  async function reload(what) {
    rememberAll();
    if (what !== "draw") await inTurn(runs, async ({ curves }) => {
      if (what === "refine" || ((await curves.load(asked(view))) && view.range)) await curves.refine(view.range);
    });
    draw();
  }

  function shown() {
    return runs.filter(({ id }) => !hidden.has(id));
  }

  function draw() {
    for (const [chart, name] of CHARTS) {
      const isMean = view.smoothing > 0 && SMOOTHED.includes(name);
      const drawn = shown().flatMap(({ id, run, colour, curves }) => {
        const of = (more) => ({ label: run ? titleOf(run) : id, colour, points: name.startsWith("val"), ...curves.curve(name, isMean), ...more });
        // Other curves behind those of several runs would hide more than they show.
        return isMean && name === "loss" ? [of({ faint: true, ...curves.curve(name) }), of()] : [of()];
      });
      if (name === "gpuMemory") {
        if (!drawn.some(({ x }) => x.length)) continue;
        for (const each of drawn) each.y = each.y.map((bytes) => bytes / 1e6);
      }
      panel.setCurves(chart, drawn, [], false);
    }
  }

  await follow(address("/api/events", { run: ids }), (event) => {
    const changed = runs.find(({ id }) => id === event.runId);
    changed.isGone = Boolean(event.gone);
    if (event.gone) {
      legend.gone(changed);
      return;
    }
    changed.run = event.run;
    if (event.reset) {
      legend.set(changed, event.run);
      changed.curves.load(asked(view)).then((isLast) => isLast && view.range && changed.curves.refine(view.range)).then(draw).catch(report);
      return;
    }
    changed.curves.append(event);
    drawSoon();
  });
}

function idsOf({ run, group, newest }, listed) {
  if (run.length) return [...new Set(run)].slice(0, MOST);
  const among = group ? listed.filter((each) => each.group === group) : listed.slice(0, newest || NEWEST);
  return among.slice(0, MOST).map((each) => each.runId);
}

/** Which runs: the newest of all, or those of a group. Others are chosen in the table of runs. */
function choices(listed, asks) {
  const open = (query) => location.assign(address("/compare", query));
  const chosen = asks.run.length || asks.group ? "" : String(asks.newest || NEWEST);
  const newest = element("select", { onchange: () => open({ newest: newest.value }) });
  if (!chosen) newest.add(new Option("\u2013", ""));
  for (const count of new Set(["2", "5", "10", "20", "50", chosen].filter(Boolean))) newest.add(new Option(count, count, false, count === chosen));
  const groups = [...new Set(listed.map((run) => run.group).filter(Boolean))].sort();
  const group = element("select", { onchange: () => open({ group: group.value }) });
  for (const each of asks.group ? groups : ["", ...groups]) group.add(new Option(each || "\u2013", each, false, each === asks.group));
  return element("div", { className: "controls" },
    element("label", {}, "The newest", newest), ...(groups.length ? [element("label", {}, "Group", group)] : []),
    element("span", { className: "hint" }, "Or choose some in the ", element("a", { href: "/runs" }, "table of runs"), "."));
}

/** Names with their colours, which hide and show them. */
class Legend {
  constructor(runs, hidden, onChange) {
    this.lines = new Map(runs.map(({ id, colour, run }) => {
      const box = element("input", { type: "checkbox", checked: !hidden.has(id), onchange: () => {
        if (box.checked) hidden.delete(id);
        else hidden.add(id);
        onChange();
      } });
      const dot = element("span", { className: "dot", "aria-hidden": "true" });
      dot.style.background = `var(--chart-${colour % 10})`;
      const facts = element("span", { className: "hint" });
      const name = run ? titleOf(run) : id;
      box.setAttribute("aria-label", `Show ${name}`);
      return [id, { line: element("li", {}, box, dot, element("a", { href: address("/run", { id }) }, name), facts), facts }];
    }));
    for (const { id, run } of runs) if (run) this.set({ id }, run);
    this.element = element("ul", { className: "runs" }, ...[...this.lines.values()].map(({ line }) => line));
  }

  set({ id }, run) {
    const { facts } = this.lines.get(id);
    setText(facts, `${run.status} at ${whole(run.step ?? 0)}, loss ${loss(run.loss) || "\u2013"}${run.valLoss === null ? "" : `, val ${loss(run.valLoss)}`}`);
  }

  gone({ id }) {
    setText(this.lines.get(id).facts, "not there any more");
  }
}

async function compareOptions(runs) {
  const { options } = await askJson(address("/api/compare", { run: runs.map(({ id }) => id) }));
  const names = Object.keys(options);
  if (runs.length < 2) return element("p", { className: "hint" }, "There is only one run.");
  if (!names.length) return element("p", { className: "hint" }, "None: all options are the same.");
  const heads = runs.map(({ id, run }) => element("th", { scope: "col" }, run ? titleOf(run) : id));
  return element("div", { className: "table" }, element("table", {}, element("caption", {}, "Options that differ"),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Option"), ...heads)),
    element("tbody", {}, ...names.map((name) => element("tr", {}, element("th", { scope: "row" }, name), ...options[name].map((value) => element("td", {}, spelled(value))))))));
}

/** A few at a time, so that fifty runs leave connections for the rest of the page. */
async function inTurn(items, work) {
  const rest = [...items];
  await Promise.all(Array.from({ length: AT_A_TIME }, async () => {
    for (let item = rest.shift(); item; item = rest.shift()) await work(item);
  }));
}
