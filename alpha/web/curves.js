// The curves of one run: a thinned picture of all, a finer one of what is looked at, and new rows at the end as they come.

import { lowerBound, thin } from "/web/charts.js";
import { address, askJson } from "/web/server.js";

const PIXELS = 1200;
const MOST_POINTS = 8 * PIXELS;
const MARKS = ["clipped", "skipped"];
const AXIS_COLUMNS = { step: (row) => row("step"), tokens: (row) => row("tokens"), elapsed: (row) => row("elapsed_ms") / 1e3, time: (row) => row("time") };

export class Curves {
  /** `smoothed` names those of `names` that are also wanted as a mean. */
  constructor(runId, names, smoothed) {
    Object.assign(this, { runId, names, smoothed });
    this.whole = null;
    this.detail = null;
    this.loads = 0;
  }

  /** All of an axis. `view` is {axis, smoothing, log}. Answers whether it is what was asked for last. */
  async load(view) {
    const load = ++this.loads;
    const pictures = await this.ask(view, null);
    if (load !== this.loads) return false;
    this.view = view;
    this.whole = pictures;
    this.detail = null;
    return true;
  }

  /** What is looked at, as finely as the screen shows it; [from, to], or null for all. */
  async refine(range) {
    const load = ++this.loads;
    const detail = range && this.whole ? { range, pictures: await this.ask(this.view, range) } : null;
    if (load !== this.loads) return false;
    this.detail = detail;
    return true;
  }

  async ask({ axis, smoothing, log }, range) {
    const path = `/api/runs/${encodeURIComponent(this.runId)}/metrics`;
    const query = { axis, pixels: PIXELS, log, from: range?.[0], to: range?.[1] };
    const [plain, mean] = await Promise.all([
      askJson(address(path, { ...query, column: this.names })),
      smoothing && this.smoothed.length ? askJson(address(path, { ...query, column: this.smoothed, smoothing })) : null,
    ]);
    return { plain: plain.columns, mean: mean?.columns ?? {}, marks: plain.marks, version: plain.version, meanVersion: mean?.version };
  }

  /** Rows of an event that are not in the picture yet. */
  append({ begin, metrics }) {
    const count = metrics.step?.length ?? 0;
    if (!this.whole || !count) return;
    const { plain, mean, marks } = this.whole;
    for (let i = 0; i < count; i++) {
      const x = AXIS_COLUMNS[this.view.axis]((name) => metrics[name]?.[i] ?? NaN);
      if (Number.isNaN(x)) continue;
      const isNew = begin + i >= this.whole.version[1];
      const isNewInMean = begin + i >= (this.whole.meanVersion?.[1] ?? Infinity);
      for (const name of this.names) {
        const y = metrics[name]?.[i] ?? null;
        if (y === null) continue;
        if (isNew) push(plain[name], x, y);
        if (isNewInMean && mean[name]) push(mean[name], x, this.nextMean(mean[name], y));
      }
      if (isNew) for (const name of MARKS) if (metrics[name]?.[i]) marks[name].push(x);
    }
    this.whole.version[1] = Math.max(this.whole.version[1], begin + count);
    if (this.whole.meanVersion) this.whole.meanVersion[1] = Math.max(this.whole.meanVersion[1], begin + count);
  }

  /** As charts.js and alpha/series.py smooth, from where the curve has come. */
  nextMean({ y, count }, value) {
    const memory = this.view.smoothing;
    const sum = count ? y[y.length - 1] * (1 - memory ** count) : 0;
    return (memory * sum + (1 - memory) * value) / (1 - memory ** (count + 1));
  }

  /** {x, y} of a column, or of its mean; where there are finer points, these. */
  curve(name, isMean = false) {
    const of = (pictures) => (isMean ? pictures.mean : pictures.plain)[name] ?? { x: [], y: [] };
    if (!this.whole) return { x: [], y: [] };
    const whole = of(this.whole);
    return this.detail ? merged(whole, of(this.detail.pictures), this.detail.range) : whole;
  }

  marks(name) {
    return this.whole?.marks[name] ?? [];
  }
}

function push(picture, x, y) {
  picture.x.push(x);
  picture.y.push(y);
  picture.count++;
  if (picture.x.length < MOST_POINTS) return;
  const chosen = thin(picture.x, picture.y, picture.x[0], x, PIXELS); // of a run that goes on for days
  picture.x = chosen.map((i) => picture.x[i]);
  picture.y = chosen.map((i) => picture.y[i]);
}

/** Finer points between `from` and `to`, with their nearest ones on either side, and others further out. */
function merged(whole, detail, [from, to]) {
  const first = Math.min(from, ...detail.x.slice(0, 1)), last = Math.max(to, ...detail.x.slice(-1));
  const part = ({ x, y }, begin, end) => ({ x: x.slice(begin, end), y: y.slice(begin, end) });
  let after = lowerBound(whole.x, last);
  while (after < whole.x.length && whole.x[after] === last) after++;
  const parts = [part(whole, 0, lowerBound(whole.x, first)), detail, part(whole, after, whole.x.length)];
  return { x: parts.flatMap(({ x }) => x), y: parts.flatMap(({ y }) => y) };
}
