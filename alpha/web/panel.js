// Charts with what belongs to them: a title, a legend, buttons, and the controls that all of them share.

import { Chart, ChartGroup, format, formatSeconds, ticks, timeTicks } from "/web/charts.js";
import { choice, element, toggle, whole } from "/web/elements.js";
import { address, download, report, save } from "/web/server.js";

const AXES = [["step", "Steps"], ["tokens", "Tokens"], ["elapsed", "Time of training"], ["time", "Date"]];
const OF_TIME = ["elapsed", "time"];
const REFINE_MILLISECONDS = 150;
export const SMOOTHING = 0.9;

/** Charts in one group. `view` is {axis, logX, logY, smoothing, range}, as the page's address has it; `onChange(what)` is told
 *  when it is another one: "load" (other curves are needed), "refine" (finer ones) or "draw". `numbersOf(title)` are the
 *  numbers behind a chart, {run: ids, column: names}. */
export class Panel {
  constructor(view, onChange, numbersOf) {
    Object.assign(this, { view, onChange, numbersOf });
    this.group = new ChartGroup({ onView: (range) => this.setRange(range), formatX: (x) => this.formatX(x), describeX: (x) => this.describeX(x) });
    this.group.logX = view.logX;
    this.group.view = view.range;
    this.group.ticksX = (...arguments_) => this.ticksX(...arguments_);
    this.charts = new Map();
    this.grid = element("div", { className: "charts" });
    this.element = element("section", { className: "panel", "aria-label": "Curves" }, this.controls(), this.grid);
  }

  controls() {
    const { view } = this;
    const shown = element("output", {}, String(view.smoothing));
    const slider = element("input", { type: "range", min: 0, max: 1, step: 0.02, value: Math.sqrt(view.smoothing),
      oninput: () => {
        // Finer where it matters, near 1.
        view.smoothing = Number(Math.min(0.999, 1 - (1 - slider.value) ** 2).toFixed(4));
        shown.textContent = String(view.smoothing);
        clearTimeout(this.sliding);
        this.sliding = setTimeout(() => this.onChange("load"), REFINE_MILLISECONDS);
      } });
    slider.value = 1 - Math.sqrt(1 - view.smoothing);
    this.reset = element("button", { disabled: !view.range, onclick: () => this.group.setView(null) }, "Show all");
    return element("div", { className: "controls" },
      choice("Over", AXES, view.axis, (axis) => { view.axis = axis; this.group.view = view.range = null; this.markRange(); this.onChange("load"); }),
      toggle("Log x", view.logX, (isLog) => { view.logX = isLog; this.group.setLogX(isLog); this.onChange("load"); }),
      toggle("Log y", view.logY, (isLog) => { view.logY = isLog; for (const { chart } of this.charts.values()) chart.logY = isLog; this.group.redraw(); this.onChange("draw"); }),
      element("label", {}, "Smoothing", slider, shown),
      this.reset,
      element("span", { className: "hint" }, "Drag to zoom, Shift and drag to move, double click for all."),
    );
  }

  /** A chart by its title, made when it is first asked for. */
  chart(title) {
    if (this.charts.has(title)) return this.charts.get(title).chart;
    const legend = element("ul", { className: "legend" });
    const place = element("div", { className: "chart" });
    const name = title.toLowerCase().replaceAll(" ", "-");
    const figure = element("figure", {},
      element("figcaption", {}, element("h3", {}, title), legend,
        element("span", { className: "exports" },
          element("button", { "aria-label": `${title} as CSV`, title: "Every row of what is seen", onclick: () => this.saveNumbers(title, name).catch(report) }, "CSV"),
          element("button", { "aria-label": `${title} as PNG`, onclick: async () => save(URL.createObjectURL(await chart.png()), `${name}.png`) }, "PNG"))),
      place);
    this.grid.append(figure);
    const chart = new Chart(place, this.group, { title, logY: this.view.logY });
    this.charts.set(title, { chart, legend, figure });
    return chart;
  }

  setCurves(title, curves, marks = [], hasLegend = true) {
    const chart = this.chart(title);
    const { legend } = this.charts.get(title);
    const named = [...curves.filter((each) => !each.faint && each.x.length), ...marks.filter(({ x }) => x.length)];
    const key = named.map(({ label, colour }) => `${label} ${colour}`).join();
    if (legend.dataset.key !== key) {
      legend.dataset.key = key;
      legend.replaceChildren(...(hasLegend && named.length > 1 ? named : []).map(({ label, colour }) => {
        const dot = element("span", { className: "dot", "aria-hidden": "true" });
        dot.style.background = `var(--chart-${colour % 10})`;
        return element("li", {}, dot, label);
      }));
    }
    chart.setCurves(curves, marks);
  }

  /** Not the points of the picture, but all that there are. */
  saveNumbers(title, name) {
    const { axis, range } = this.view;
    return download(address("/api/csv", { ...this.numbersOf(title), axis, from: range?.[0], to: range?.[1] }), `${name}.csv`);
  }

  setRange(range) {
    this.view.range = range;
    this.markRange();
    clearTimeout(this.refining);
    this.refining = setTimeout(() => this.onChange("refine"), REFINE_MILLISECONDS);
  }

  markRange() {
    this.reset.disabled = !this.view.range;
  }

  formatX(x) {
    const { axis } = this.view;
    const [from, to] = this.group.range();
    if (OF_TIME.includes(axis)) return formatSeconds(x, axis === "time", to - from);
    return format(x);
  }

  ticksX(low, high, count, isLog) {
    const { axis } = this.view;
    return OF_TIME.includes(axis) && !isLog ? timeTicks(low, high, count, axis === "time") : ticks(low, high, count, isLog, 1);
  }

  /** Where the cursor is, with its unit. */
  describeX(x) {
    const { axis } = this.view;
    if (axis === "step") return `step ${whole(Math.round(x))}`;
    return axis === "tokens" ? `${format(Math.round(x))} tokens` : this.formatX(x);
  }
}

/** The view that the page's address says. */
export function viewOf(query) {
  const range = ["from", "to"].map((name) => Number(query.get(name) || NaN));
  const smoothing = Number(query.get("smoothing") ?? SMOOTHING);
  return {
    axis: AXES.some(([axis]) => axis === query.get("x")) ? query.get("x") : "step",
    logX: query.get("logx") === "1",
    logY: query.get("logy") === "1",
    smoothing: smoothing >= 0 && smoothing <= 0.999 ? smoothing : SMOOTHING,
    range: range[0] < range[1] ? range : null,
  };
}

/** A view as the page's address says it; what is as ever is left out. */
export function queryOf({ axis, logX, logY, smoothing, range }) {
  return {
    x: axis === "step" ? "" : axis,
    logx: logX ? 1 : "",
    logy: logY ? 1 : "",
    smoothing: smoothing === SMOOTHING ? "" : smoothing,
    from: range?.[0],
    to: range?.[1],
  };
}

/** What `Curves.load` needs of a view. */
export function asked({ axis, smoothing, logX }) {
  return { axis, smoothing, log: logX };
}
