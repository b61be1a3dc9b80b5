// Every checkpoint of every run.

import { bytes, date, element, loss, parameters, setText, whole } from "/web/elements.js";
import { address, askJson, download, remember, report } from "/web/server.js";
import { Table } from "/web/table.js";

export const title = "Models";

export async function show(main) {
  const query = new URLSearchParams(location.search);
  const state = { q: query.get("q") ?? "", sort: query.get("sort") ?? "", down: query.get("down") === "1" };
  const search = element("input", { type: "search", value: state.q, oninput: () => { state.q = search.value; changed(); } });
  const count = element("p", { className: "hint" });
  const shapeOf = ({ model }) => (model ? `${model.arch}, ${model.layers} \u00d7 ${model.dim}, ${model.heads} heads, block ${model.block}` : "");
  const nameOf = (each) => each.runName || each.runId;
  const table = new Table({
    caption: "Models",
    keyOf: (each) => `${each.runId}/${each.name}`,
    sort: state.sort,
    descending: state.down,
    onSort: (sort, down) => { Object.assign(state, { sort, down }); changed(); },
    columns: [
      { name: "run", label: "Run", sort: nameOf, text: nameOf, node: (each) => element("a", { href: address("/run", { id: each.runId }) }, nameOf(each)) },
      { name: "step", label: "Step", numeric: true, sort: (each) => each.step, text: (each) => whole(each.step) },
      { name: "val", label: "Val loss", numeric: true, sort: (each) => each.valLoss, text: (each) => loss(each.valLoss) },
      { name: "parameters", minor: true, label: "Parameters", numeric: true, sort: (each) => each.parameters, text: (each) => (each.parameters ? parameters(each.parameters) : "") },
      { name: "shape", minor: true, label: "Shape", sort: (each) => each.model?.dim ?? null, text: (each) => each.problem ?? shapeOf(each), node: (each) => element("span", { className: each.problem ? "error" : "" }, each.problem ?? shapeOf(each)) },
      { name: "tokenizer", minor: true, label: "Tokenizer", sort: (each) => each.tokenizer ?? null, text: (each) => each.tokenizer ?? "" },
      { name: "domain", minor: true, label: "Domain", sort: (each) => each.domain || null, text: (each) => each.domain },
      { name: "size", minor: true, label: "Size", numeric: true, sort: (each) => each.bytes ?? null, text: (each) => (each.bytes ? bytes(each.bytes) : "") },
      { name: "written", minor: true, label: "Written", sort: (each) => each.written ?? null, text: (each) => date(each.written) },
      { name: "use", label: "Use", text: (each) => each.name, node: (each) => (each.problem ? "" : uses(each)) },
    ],
  });
  const { models } = await askJson("/api/models");

  function changed() {
    remember({ q: state.q, sort: state.sort, down: state.sort && state.down ? 1 : "" });
    draw();
  }

  function draw() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = models.filter((each) => words.every((word) => `${each.runId} ${each.runName} ${each.domain} ${each.tokenizer} ${each.step}`.toLowerCase().includes(word)));
    table.setRows(shown);
    setText(count, models.length ? `${shown.length === models.length ? "" : `${shown.length} of `}${models.length} ${models.length === 1 ? "checkpoint" : "checkpoints"}` : "There is no checkpoint yet: alpha train makes them.");
    table.element.hidden = !models.length;
  }

  main.append(element("h2", {}, "Models"), element("div", { className: "controls" }, element("label", {}, "Find", search), count), table.element);
  draw();
}

function uses({ runId, name, step }) {
  const file = `/api/runs/${encodeURIComponent(runId)}/checkpoints/${encodeURIComponent(name)}`;
  return element("span", {}, element("a", { href: address("/", { model: `${runId}@${step}` }) }, "Play"), " ",
    element("button", { className: "link", "aria-label": `Download step ${step} of ${runId}`, onclick: () => download(file, `${runId}-${name}`).catch(report) }, "Download"));
}
