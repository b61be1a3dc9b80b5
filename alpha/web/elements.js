// Elements of pages, and how values are written in them. Texts are only ever text, whoever wrote them.

import { format } from "/web/charts.js";

const SLOWNESS = 400;
const LONGEST_PAUSE_SECONDS = 5;
const WHOLE = new Intl.NumberFormat("en");
const DAY = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const DATE = new Intl.DateTimeFormat([], DAY);
const DATE_WITH_YEAR = new Intl.DateTimeFormat([], { ...DAY, year: "numeric" });

/** An element: properties where it has them, else attributes; children are elements or texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Change a text only where it is another one, so that neither a selection nor a screen reader is disturbed. */
export function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

export function number(value) {
  return value === null || value === undefined ? "" : format(value);
}

export function loss(value) {
  return value === null || value === undefined ? "" : Math.abs(value) < 1000 ? value.toFixed(4) : format(value);
}

export function whole(value) {
  return value === null || value === undefined ? "" : WHOLE.format(value);
}

/** The value of an option. */
export function spelled(value) {
  if (typeof value === "string") return value || "\u2013";
  return typeof value === "number" ? String(Number(value.toPrecision(8))) : JSON.stringify(value);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86400)} days`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count > 0 ? Math.min(units.length - 1, Math.floor(Math.log10(count) / 3)) : 0;
  return `${Number((count / 1000 ** power).toPrecision(3))} ${units[power]}`;
}

export function date(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return "";
  return (time.getFullYear() === new Date().getFullYear() ? DATE : DATE_WITH_YEAR).format(time);
}

export function parameters(count) {
  return count >= 1e6 ? `${Number((count / 1e6).toPrecision(3))} M` : whole(count);
}

/** How a run is doing: a dot whose colour says it, and the word. */
export function status(run) {
  const word = run.status === "running" && run.phase && run.phase !== "training" ? `running, ${run.phase}` : run.status;
  return element("span", { className: "status", "data-status": run.status }, word);
}

/** A function that calls `work`, which draws, soon after it is called, once however often; and so seldom that it and the frame
 *  that it makes take less than a hundredth of the time. */
export function seldom(work) {
  let timer = null;
  let next = 0;
  const now = () => {
    timer = null;
    requestAnimationFrame(() => {
      const begin = performance.now();
      setTimeout(() => { // the frame has been made
        next = begin + Math.min(SLOWNESS * (performance.now() - begin), 1000 * LONGEST_PAUSE_SECONDS);
      });
    });
    work();
  };
  return () => { timer ??= setTimeout(now, Math.max(0, next - performance.now())); };
}

export function title(run) {
  return run.name || run.runId;
}

/** A curve in the size of a word. */
export function sparkline(values) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 100 24");
  picture.setAttribute("class", "sparkline");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `Loss from ${loss(values[0])} to ${loss(values.at(-1))}`);
  const sorted = [...values].sort((a, b) => a - b);
  const [low, high] = [sorted[0], sorted.at(-1)];
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", values.map((value, i) => {
    const x = values.length > 1 ? (98 * i) / (values.length - 1) + 1 : 50;
    return `${x.toFixed(1)},${(22 - 20 * (high > low ? (value - low) / (high - low) : 0.5)).toFixed(1)}`;
  }).join(" "));
  picture.append(line);
  return picture;
}

/** Buttons that choose one of a few; `options` are [value, label]. */
export function choice(label, options, chosen, onChoice) {
  const select = element("select", { onchange: () => onChoice(select.value) });
  for (const [value, text] of options) select.add(new Option(text, value, false, value === chosen));
  return element("label", {}, label, select);
}

export function toggle(label, checked, onChange) {
  const box = element("input", { type: "checkbox", checked, onchange: () => onChange(box.checked) });
  return element("label", { className: "toggle" }, box, label);
}
