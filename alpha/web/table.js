// A table whose rows come and go: sorted by any column, a hundred rows until somebody wants all. A row that is the same
// stays the same elements, so that focus, selection and place are kept while others change.

import { element } from "/web/elements.js";

const FIRST_ROWS = 100;
const COLLATOR = new Intl.Collator(undefined, { numeric: true });

/** `columns`: {name, label, sort(row) → number or text, text(row), node(row), numeric, minor (not on a phone)}. A cell shows `node`, made again when
 *  `text` is another one, or else `text`. `keyOf(row)` names a row; `onSort(name, descending)` is told what was chosen. */
export class Table {
  constructor({ caption, columns, keyOf, sort, descending = false, onSort = () => {}, onRow = () => {} }) {
    Object.assign(this, { columns, keyOf, sort, descending, onSort, onRow });
    this.rows = [];
    this.known = new Map();
    this.shown = FIRST_ROWS;
    this.heads = columns.map((column) => this.head(column));
    this.body = element("tbody");
    const table = element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    this.more = element("button", { onclick: () => this.showAll() });
    this.element = element("div", { className: "table" }, table, this.more);
    this.markSorted();
  }

  head(column) {
    const head = element("th", { scope: "col", className: classOf(column) });
    if (column.sort) head.append(element("button", { onclick: () => this.sortBy(column) }, column.label));
    else head.append(element("span", { className: column.hidesLabel ? "unseen" : "" }, column.label));
    return head;
  }

  sortBy(column) {
    this.descending = this.sort === column.name ? !this.descending : Boolean(column.numeric);
    this.sort = column.name;
    this.markSorted();
    this.onSort(this.sort, this.descending);
    this.setRows(this.rows);
  }

  markSorted() {
    this.columns.forEach((column, i) => {
      if (column.name === this.sort) this.heads[i].setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else this.heads[i].removeAttribute("aria-sort");
    });
  }

  showAll() {
    this.shown = Infinity;
    this.setRows(this.rows);
  }

  setRows(rows) {
    this.rows = this.sorted(rows);
    const shown = this.rows.slice(0, this.shown);
    const known = new Map();
    shown.forEach((row, place) => {
      const key = this.keyOf(row);
      const line = this.known.get(key) ?? this.line(row);
      known.set(key, line);
      this.update(line, row);
      if (this.body.children[place] !== line) this.body.insertBefore(line, this.body.children[place] ?? null);
    });
    while (this.body.children.length > shown.length) this.body.lastElementChild.remove();
    this.known = known;
    this.more.hidden = shown.length === this.rows.length;
    this.more.textContent = `Show all ${this.rows.length}`;
  }

  line(row) {
    const naming = this.columns.find((column) => !column.hidesLabel);
    const cell = (column) => element(column === naming ? "th" : "td", { ...(column === naming && { scope: "row" }), className: classOf(column) });
    const line = element("tr", {}, ...this.columns.map(cell));
    line.texts = [];
    this.onRow(line, row);
    return line;
  }

  update(line, row) {
    this.columns.forEach((column, i) => {
      const text = column.text(row);
      if (line.texts[i] === text) return;
      line.texts[i] = text;
      line.children[i].replaceChildren(column.node ? column.node(row) : text);
    });
  }

  sorted(rows) {
    const column = this.columns.find((each) => each.name === this.sort);
    if (!column) return rows;
    const sign = this.descending ? -1 : 1;
    const values = rows.map((row) => ({ row, value: column.sort(row) ?? null }));
    values.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // what is not known comes last
      if (a.value === b.value) return 0;
      return sign * (typeof a.value === "string" ? COLLATOR.compare(a.value, b.value) : a.value - b.value);
    });
    return values.map(({ row }) => row);
  }
}

function classOf({ numeric, minor }) {
  return `${numeric ? "numeric" : ""} ${minor ? "minor" : ""}`.trim();
}
