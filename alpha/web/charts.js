// Line charts on a canvas, for curves that grow: thinned to the lowest and highest of each pixel, linked in groups that
// share their view and cursor, with logarithmic axes, and a table for those who do not see them.
//
// Knows nothing about runs or about where numbers come from. Colours come from the style sheet: --chart-0 to --chart-9,
// --chart-text, --chart-grid, --chart-back.

const PADDING = { left: 64, right: 12, top: 10, bottom: 24 };
const FONT = "12px system-ui, sans-serif";
const FAINT = 0.3;
const TABLE_ROWS = 50;
const ZOOM_STEP = 1.25;
const LARGEST = 1e150;
const SAME = 1e-9;
const MINUTE = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const DATE = new Intl.DateTimeFormat([], { month: "2-digit", day: "2-digit", ...MINUTE });
const TIME = new Intl.DateTimeFormat([], MINUTE);
const SECOND = new Intl.DateTimeFormat([], { ...MINUTE, second: "2-digit" });
const ROUND_SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d", "#666699", "#b2182b"];

// --- numbers ---------------------------------------------------------------------------------------------------------

/** The first index whose value in the ascending `x` is not below `value`. */
export function lowerBound(x, value) {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Indices, ascending, of points that draw the same picture as all do: the lowest and highest of each of `pixels` pixels
 *  between x = `from` and x = `to`, the first and last inside, and the nearest outside on either side. `scale` maps x to
 *  where it is drawn (Math.log for a logarithmic axis). */
export function thin(x, y, from, to, pixels, scale = (value) => value) {
  const begin = Math.max(0, lowerBound(x, from) - 1);
  let end = lowerBound(x, to);
  while (end < x.length && x[end] <= to) end++;
  end = Math.min(x.length, end + 1);
  const chosen = [];
  if (end - begin <= 2 * pixels + 4) {
    for (let i = begin; i < end; i++) chosen.push(i);
    return chosen;
  }
  const origin = scale(from);
  const perPixel = pixels / (scale(to) - origin);
  let pixel = NaN;
  let lowest = begin;
  let highest = begin;
  const flush = () => {
    const first = Math.min(lowest, highest);
    const second = Math.max(lowest, highest);
    if (chosen[chosen.length - 1] !== first) chosen.push(first);
    if (second !== first) chosen.push(second);
  };
  chosen.push(begin, begin + 1);
  for (let i = begin + 1; i < end - 1; i++) {
    const at = Math.min(pixels - 1, Math.floor((scale(x[i]) - origin) * perPixel));
    if (at !== pixel) {
      if (pixel === pixel) flush();
      pixel = at;
      lowest = highest = i;
    } else if (y[i] < y[lowest]) lowest = i;
    else if (y[i] > y[highest]) highest = i;
  }
  if (pixel === pixel) flush();
  chosen.push(end - 2, end - 1);
  return chosen.sort((a, b) => a - b).filter((each, i, all) => !i || each !== all[i - 1]);
}

/** Round numbers between `low` and `high`, about `count` of them and at least `least` apart; on a logarithmic axis powers of
 *  ten, or of them 1, 2, 5. */
export function ticks(low, high, count, isLog = false, least = 0) {
  if (!(high > low)) return [low];
  if (isLog && high / low >= 10) {
    const decades = Math.log10(high / low);
    const digits = decades > count ? [1] : decades > count / 2 ? [1, 3] : [1, 2, 5];
    const stride = Math.max(1, Math.ceil(decades / count));
    const result = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += stride) {
      for (const digit of digits) {
        const value = digit * 10 ** power;
        if (value >= low && value <= high) result.push(value);
      }
    }
    if (result.length > 1) return result;
  }
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough) ?? 10 * power);
  const result = [];
  for (let i = Math.ceil(low / step); i * step <= high && result.length < 100; i++) result.push(Number((i * step).toPrecision(12)));
  return result;
}

/** Round times between `low` and `high`, in seconds; of dates they are round where the reader is. */
export function timeTicks(low, high, count, isDate) {
  const rough = (high - low) / Math.max(1, count);
  const step = ROUND_SECONDS.find((each) => each >= rough);
  if (rough < 1 || !step) return ticks(low, high, count);
  const offset = isDate ? 60 * new Date(1e3 * low).getTimezoneOffset() : 0;
  const result = [];
  for (let at = Math.ceil((low - offset) / step) * step + offset; at <= high; at += step) result.push(at);
  return result;
}

/** A number in few characters. */
export function format(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e15 || (size && size < 1e-4)) return value.toExponential(2);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"]]) if (size >= unit) return `${Number((value / unit).toPrecision(4))} ${letter}`;
  return String(Number(value.toPrecision(5)));
}

/** A time as an axis of `span` seconds shows it: seconds as a span, or as a date. */
export function formatSeconds(value, isDate, span = Infinity) {
  if (isDate) return (span < 600 ? SECOND : span < 86400 ? TIME : DATE).format(new Date(1e3 * value));
  const minutes = value / 60;
  if (minutes < 2) return `${format(value)} s`;
  return minutes < 120 ? `${format(minutes)} min` : minutes < 2880 ? `${format(minutes / 60)} h` : `${format(minutes / 1440)} d`;
}

// --- a group ---------------------------------------------------------------------------------------------------------

/** Charts that share the x axis: its view, its scale and the cursor. `onView(view)` is told when somebody has changed what
 *  is to be seen: [from, to], or null for all, which follows curves as they grow. While it is not null, nothing moves it. */
export class ChartGroup {
  constructor({ onView = () => {}, formatX = format, describeX = formatX } = {}) {
    this.charts = [];
    this.view = null;
    this.cursor = null;
    this.logX = false;
    this.ticksX = ticks;
    this.onView = onView;
    this.formatX = formatX;
    this.describeX = describeX;
  }

  /** From the first to the last point of all charts. */
  extent() {
    let low = Infinity;
    let high = -Infinity;
    for (const chart of this.charts) {
      for (const { x } of chart.curves) {
        const first = this.logX ? lowerBound(x, Number.MIN_VALUE) : 0;
        if (first < x.length) [low, high] = [Math.min(low, x[first]), Math.max(high, x[x.length - 1])];
      }
    }
    if (!(low <= high)) return this.logX ? [1, 10] : [0, 1];
    return low < high ? [low, high] : this.logX ? [low / 2, low * 2] : [low - 0.5, low + 0.5];
  }

  range() {
    const [low, high] = this.view ?? this.extent();
    return this.logX && low <= 0 ? [Math.min(this.extent()[0], high / 10), high] : [low, high];
  }

  setView(view) {
    this.view = view && view[0] < view[1] && view.every(Number.isFinite) ? view : null;
    this.redraw();
    this.onView(this.view);
  }

  setLogX(isLog) {
    this.logX = isLog;
    this.setView(null);
  }

  setCursor(x) {
    this.cursor = x;
    this.redraw();
  }

  /** Zoom by a factor around an x; the point under the pointer stays where it is. */
  zoom(factor, around) {
    const scale = this.logX ? Math.log : (value) => value;
    const back = this.logX ? Math.exp : (value) => value;
    const [low, high] = this.range().map(scale);
    const centre = scale(around);
    const next = [centre - (centre - low) / factor, centre + (high - centre) / factor];
    const all = this.extent().map(scale);
    const limited = [Math.max(next[0], all[0]), Math.min(next[1], all[1])];
    this.setView(limited[0] <= all[0] && limited[1] >= all[1] ? null : limited.map(back));
  }

  /** Move the view by a part of its width. */
  pan(share) {
    if (!this.view) return;
    const scale = this.logX ? Math.log : (value) => value;
    const back = this.logX ? Math.exp : (value) => value;
    const [low, high] = this.range().map(scale);
    const all = this.extent().map(scale);
    const by = Math.min(Math.max(share * (high - low), all[0] - low), all[1] - high);
    this.setView([back(low + by), back(high + by)]);
  }

  redraw() {
    for (const chart of this.charts) chart.redraw();
  }
}

// --- a chart ---------------------------------------------------------------------------------------------------------

/** One chart in an element, which it fills; `setCurves` gives it what to draw. */
export class Chart {
  constructor(element, group, { title, logY = false } = {}) {
    this.group = group;
    this.title = title;
    this.logY = logY;
    this.curves = [];
    this.marks = [];
    this.element = element;
    this.style = getComputedStyle(element);
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.className = "chart-canvas";
    this.readout = document.createElement("div");
    this.readout.className = "chart-readout";
    this.readout.setAttribute("aria-live", "off");
    this.details = document.createElement("details");
    this.details.className = "chart-table";
    const summary = Object.assign(document.createElement("summary"), { textContent: "Table" });
    summary.setAttribute("aria-label", `Table of ${title}`);
    this.details.append(summary);
    this.details.addEventListener("toggle", () => this.fillTable());
    element.append(this.canvas, this.readout, this.details);
    this.listen();
    group.charts.push(this);
    this.resized = new ResizeObserver(() => this.redraw());
    this.resized.observe(this.canvas);
    this.scrolled = new IntersectionObserver(([{ isIntersecting }]) => {
      this.isSeen = isIntersecting;
      if (this.isDue) this.redraw();
    });
    this.scrolled.observe(this.canvas);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.onScheme = () => this.redraw();
    this.scheme.addEventListener("change", this.onScheme);
    this.describe();
  }

  /** `curves`: {label, x, y, colour (a number), faint, points}, x ascending, y finite; a faint one lies behind the one with
   *  the same label. `marks`: {label, x, colour}, places on the x axis. The view stays as it is. */
  setCurves(curves, marks = []) {
    this.curves = curves;
    this.marks = marks;
    this.describe();
    if (this.details.open) this.fillTable();
    this.group.redraw();
  }

  remove() {
    this.resized.disconnect();
    this.scrolled.disconnect();
    this.scheme.removeEventListener("change", this.onScheme);
    this.group.charts = this.group.charts.filter((each) => each !== this);
    this.element.replaceChildren();
  }

  /** At most one drawing a frame, however many reasons there are; after the first, none while nobody sees it. */
  redraw() {
    this.isDue = true;
    if (!this.isSeen && this.isDrawn) return;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  colour(name) {
    return this.style.getPropertyValue(`--chart-${name}`).trim();
  }

  colourOf(curve) {
    return this.colour(curve % 10) || COLOURS[curve % 10];
  }

  describe() {
    const parts = this.curves.filter((each) => !each.faint && each.x.length).map((each) => `${each.label} ${format(each.y[each.y.length - 1])}`);
    this.canvas.setAttribute("aria-label", `${this.title}: ${parts.join(", ") || "no numbers yet"}. Arrow keys move the cursor, plus and minus zoom.`);
  }

  scaleX(width) {
    const [low, high] = this.group.range().map((each) => (this.group.logX ? Math.log(each) : each));
    const inner = Math.max(1, width - PADDING.left - PADDING.right);
    const scale = this.group.logX ? Math.log : (value) => value;
    const back = this.group.logX ? Math.exp : (value) => value;
    return {
      toPixel: (x) => PADDING.left + ((scale(x) - low) / (high - low)) * inner,
      toValue: (pixel) => back(low + ((pixel - PADDING.left) / inner) * (high - low)),
      inner,
    };
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.isDue = false;
    this.isDrawn = this.curves.some((each) => each.x.length);
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    const [from, to] = this.group.range();
    const axis = this.scaleX(width);
    const scale = this.group.logX ? Math.log : undefined;
    const pictures = this.curves.map((curve) => {
      const chosen = thin(curve.x, curve.y, from, to, Math.ceil(axis.inner * ratio), scale);
      return chosen.filter((i) => (!this.logY || curve.y[i] > 0) && (!this.group.logX || curve.x[i] > 0));
    });
    const [low, high] = this.rangeY(pictures, from, to);
    const scaleY = this.logY ? Math.log : (value) => value;
    const inner = Math.max(1, height - PADDING.top - PADDING.bottom);
    const toY = (y) => PADDING.top + (1 - (scaleY(y) - scaleY(low)) / (scaleY(high) - scaleY(low))) * inner;
    this.drawAxes(context, axis, toY, [from, to], [low, high], width, height);
    context.save();
    context.beginPath();
    context.rect(PADDING.left, PADDING.top, axis.inner, inner);
    context.clip();
    this.curves.forEach((curve, i) => this.drawCurve(context, curve, pictures[i], axis.toPixel, toY));
    for (const mark of this.marks) {
      context.fillStyle = this.colourOf(mark.colour);
      const places = new Set(mark.x.filter((x) => x >= from && x <= to).map((x) => Math.round(axis.toPixel(x))));
      for (const place of places) context.fillRect(place - 0.5, height - PADDING.bottom - 7, 1, 7);
    }
    context.restore();
    this.drawCursor(context, axis, toY, width, height);
  }

  /** Of what is seen, without the points beyond the picture's sides, and with a margin. */
  rangeY(pictures, from, to) {
    let low = Infinity;
    let high = -Infinity;
    pictures.forEach((chosen, curve) => {
      const { x, y } = this.curves[curve];
      for (const i of chosen) if (x[i] >= from && x[i] <= to) [low, high] = [Math.min(low, y[i]), Math.max(high, y[i])];
    });
    if (!(low <= high)) return this.logY ? [1, 10] : [0, 1];
    const least = this.logY ? 1 / LARGEST : -LARGEST; // so that what is computed from these is finite
    [low, high] = [low, high].map((each) => Math.min(Math.max(each, least), LARGEST));
    if (high - low <= SAME * Math.abs(high)) low = high;
    if (this.logY) return low < high ? [low / (high / low) ** 0.04, high * (high / low) ** 0.04] : [low / 2, high * 2];
    const margin = 0.04 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    return [low - margin, high + margin];
  }

  drawAxes(context, axis, toY, [from, to], [low, high], width, height) {
    context.strokeStyle = this.colour("grid") || "#8884";
    context.fillStyle = this.colour("text") || "#888";
    context.lineWidth = 1;
    context.beginPath();
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of ticks(low, high, Math.max(2, height / 45), this.logY)) {
      const y = Math.round(toY(value)) + 0.5;
      context.moveTo(PADDING.left, y);
      context.lineTo(width - PADDING.right, y);
      context.fillText(format(value), PADDING.left - 6, y);
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const value of this.group.ticksX(from, to, Math.max(2, axis.inner / 80), this.group.logX)) {
      const x = Math.round(axis.toPixel(value)) + 0.5;
      context.moveTo(x, PADDING.top);
      context.lineTo(x, height - PADDING.bottom);
      const text = this.group.formatX(value);
      const half = context.measureText(text).width / 2;
      context.fillText(text, Math.min(x, width - half), height - PADDING.bottom + 6);
    }
    context.stroke();
    if (!this.curves.some((each) => each.x.length)) {
      context.textBaseline = "middle";
      context.fillText("no numbers yet", PADDING.left + axis.inner / 2, height / 2);
    }
  }

  drawCurve(context, curve, chosen, toX, toY) {
    context.strokeStyle = context.fillStyle = this.colourOf(curve.colour);
    context.globalAlpha = curve.faint ? FAINT : 1;
    context.lineWidth = curve.faint ? 1 : 1.5;
    context.beginPath();
    for (const i of chosen) context.lineTo(toX(curve.x[i]), toY(curve.y[i]));
    context.stroke();
    if (curve.points || chosen.length === 1) {
      for (const i of chosen) context.fillRect(toX(curve.x[i]) - 2, toY(curve.y[i]) - 2, 4, 4);
    }
    context.globalAlpha = 1;
  }

  /** The values at the cursor: of each curve those of its nearest point. */
  valuesAt(x) {
    return this.curves.filter((curve) => curve.x.length).map((curve) => {
      const right = Math.min(lowerBound(curve.x, x), curve.x.length - 1);
      const i = right > 0 && x - curve.x[right - 1] < curve.x[right] - x ? right - 1 : right;
      return { curve, x: curve.x[i], y: curve.y[i] };
    });
  }

  drawCursor(context, axis, toY, width, height) {
    const x = this.group.cursor;
    if (x === null) {
      this.readout.replaceChildren();
      return;
    }
    const place = Math.round(axis.toPixel(x)) + 0.5;
    context.strokeStyle = this.colour("text") || "#888";
    context.globalAlpha = 0.5;
    context.beginPath();
    context.moveTo(place, PADDING.top);
    context.lineTo(place, height - PADDING.bottom);
    context.stroke();
    context.globalAlpha = 1;
    const values = this.valuesAt(x);
    const lines = values.filter(({ curve }) => !curve.faint).map(({ curve, x: at, y }) => {
      context.fillStyle = this.colourOf(curve.colour);
      context.beginPath();
      context.arc(axis.toPixel(at), toY(y), 3, 0, 7);
      context.fill();
      const line = document.createElement("div");
      const dot = Object.assign(document.createElement("span"), { textContent: "● " });
      dot.style.color = this.colourOf(curve.colour);
      const raw = values.find((each) => each.curve.faint && each.curve.label === curve.label);
      line.append(dot, `${curve.label} ${format(y)}${raw ? `, raw ${format(raw.y)}` : ""}`);
      return line;
    });
    const at = Object.assign(document.createElement("div"), { textContent: this.group.describeX(x) });
    this.readout.replaceChildren(at, ...lines);
    this.readout.dataset.side = place > 0.6 * width ? "left" : "right"; // where it hides nothing near the cursor
  }

  // --- pointer and keys ----------------------------------------------------------------------------------------------

  listen() {
    const { canvas, group } = this;
    const at = (event) => {
      const axis = this.scaleX(canvas.clientWidth);
      return axis.toValue(Math.min(Math.max(event.offsetX, PADDING.left), PADDING.left + axis.inner));
    };
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      held = { x: at(event), pixel: event.offsetX, pans: event.shiftKey && group.view !== null };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (held?.pans) {
        group.pan((held.pixel - event.offsetX) / this.scaleX(canvas.clientWidth).inner);
        held.pixel = event.offsetX;
      }
      group.setCursor(at(event));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held && !held.pans && Math.abs(event.offsetX - held.pixel) > 4) group.setView([held.x, at(event)].sort((a, b) => a - b));
      held = null;
    });
    canvas.addEventListener("pointercancel", () => (held = null));
    canvas.addEventListener("pointerleave", () => group.setCursor(null));
    canvas.addEventListener("dblclick", () => group.setView(null));
    // A page that is scrolled must not zoom: only with Ctrl, as on maps.
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      group.zoom(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("blur", () => group.setCursor(null));
  }

  onKey(event) {
    const { group } = this;
    const axis = this.scaleX(this.canvas.clientWidth);
    const [from, to] = group.range();
    const cursor = group.cursor ?? axis.toValue(PADDING.left + axis.inner / 2);
    const move = (pixels) => group.setCursor(Math.min(Math.max(axis.toValue(axis.toPixel(cursor) + pixels), from), to));
    const actions = {
      ArrowLeft: () => (event.shiftKey ? group.pan(-0.2) : move(-axis.inner / 50)),
      ArrowRight: () => (event.shiftKey ? group.pan(0.2) : move(axis.inner / 50)),
      Home: () => group.setCursor(from),
      End: () => group.setCursor(to),
      "+": () => group.zoom(ZOOM_STEP, cursor),
      "=": () => group.zoom(ZOOM_STEP, cursor),
      "-": () => group.zoom(1 / ZOOM_STEP, cursor),
      0: () => group.setView(null),
      Escape: () => (group.cursor === null ? group.setView(null) : group.setCursor(null)),
    };
    const action = event.ctrlKey || event.altKey || event.metaKey ? undefined : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
    this.readout.setAttribute("aria-live", "polite");
  }

  // --- for others ----------------------------------------------------------------------------------------------------

  /** The picture, with its background, as a Blob of PNG. */
  png() {
    this.draw();
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [this.canvas.width, this.canvas.height];
    const context = copy.getContext("2d");
    context.fillStyle = this.colour("back") || "white";
    context.fillRect(0, 0, copy.width, copy.height);
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }

  /** At most fifty rows, from all over what is seen; made when somebody opens it. */
  fillTable() {
    this.details.querySelector("table")?.remove();
    if (!this.details.open) return;
    const [from, to] = this.group.range();
    const curves = this.curves.filter((each) => !each.faint && each.x.length);
    const longest = curves.reduce((a, b) => (b.x.length > a.x.length ? b : a), { x: [] }).x;
    const begin = lowerBound(longest, from);
    const count = lowerBound(longest, to) + 1 - begin;
    const steps = Math.min(count, TABLE_ROWS);
    const places = Array.from({ length: steps }, (_, i) => longest[begin + Math.round((i * (count - 1)) / Math.max(1, steps - 1))]);
    const table = document.createElement("table");
    const caption = Object.assign(document.createElement("caption"), { textContent: this.title });
    const cell = (tag, text, scope) => Object.assign(document.createElement(tag), { textContent: text, ...(scope && { scope }) });
    const head = document.createElement("tr");
    head.append(cell("th", "x", "col"), ...curves.map((each) => cell("th", each.label, "col")));
    const rows = places.filter((x) => x !== undefined).map((x) => {
      const row = document.createElement("tr");
      const values = new Map(this.valuesAt(x).map(({ curve, y }) => [curve, y]));
      row.append(cell("th", this.group.formatX(x), "row"), ...curves.map((each) => cell("td", format(values.get(each)))));
      return row;
    });
    table.append(caption, Object.assign(document.createElement("thead")), document.createElement("tbody"));
    table.tHead.append(head);
    table.tBodies[0].append(...rows);
    this.details.append(table);
  }
}
