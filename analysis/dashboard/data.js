"use strict";
// What the page knows: the records as they were packed, and how a value is written.

/** The text of a packed block of the page. */
async function unpack(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** JSON has no NaN and no infinities: they come as text. Null stays: nothing was measured. */
const toNumber = (value) => (typeof value === "string" ? Number(value) : value);

/** Rows by run: `keys[i]` (a row of keys) and `values[column][i]`, for each of its rows. */
function series(packed) {
  const values = {};
  for (const [column, lists] of Object.entries(packed.values)) {
    values[column] = lists.map((list) => list.map(toNumber));
  }
  return {
    columns: Object.keys(values),
    of: (index) => ({
      keys: packed.layout[index] === null ? [] : packed.layouts[packed.layout[index]],
      values: Object.fromEntries(Object.entries(values).map(([key, lists]) => [key, lists[index]])),
    }),
  };
}

const written = {}; // what a record calls a method, model or corpus -> as it is written

/** The page's model: runs as objects, columns, and the errors over depth. */
function readRuns(packed) {
  Object.assign(HEADS, packed.heads);
  Object.assign(written, packed.written);
  const columns = packed.columns.map(({ key, kind }) => ({ key, kind }));
  columns.sort((a, b) => place(a.key) - place(b.key));
  const count = packed.curves.length;
  const runs = [];
  for (let index = 0; index < count; index++) {
    const run = { index, recipe: packed.recipes[index], curve: packed.curves[index], cells: {} };
    for (const { key, kind, values } of packed.columns) {
      run.cells[key] = kind === "number" ? toNumber(values[index]) : values[index];
    }
    run.name = run.cells.run;
    run.full = run.cells.method === "none";
    for (const [key, values] of Object.entries(packed.details)) run[key] = values[index];
    const names = [...WRITTEN].map((key) => label(run, key));
    run.text = [...Object.values(run.cells), ...names, ...run.said, run.command].join("\n").toLowerCase();
    runs.push(run);
  }
  return {
    runs, columns, blocks: series(packed.blocks), families: packed.families, protocols: packed.protocols,
    names: packed.names, settings: columns.map(({ key }) => key).filter((key) => key.startsWith(SETTINGS)),
  };
}

/** Where a column stands: what a run is, then what it gave, then the rest in the record's order. */
const SETTINGS = "settings/"; // before the name of a setting in which runs differ
const ORDER = ["run", "model", "method", "bits", "group_size", "alpha", SETTINGS, "seed", "status", "bits_per_weight",
  "perplexity/", "accuracy/", "kl/", "error/", "seconds/total"];
function place(key) {
  const found = ORDER.findIndex((one) => (one.endsWith("/") ? key.startsWith(one) : key === one));
  return found < 0 ? ORDER.length : found;
}

const HEADS = {
  variant: "method and settings",
  group_size: "group",
  bits_per_weight: "effective bits",
  checkpoint_bytes: "checkpoint (bytes)",
  peak_memory: "peak memory (bytes)",
  peak_device_memory: "peak device memory (bytes)",
};
/** A column's title: a metric with its corpus or task as it is written. */
function heading(key) {
  const [family, ...rest] = key.split("/");
  const what = written[rest.join("/")];
  const said = what ? `${family}/${what}` : key.replaceAll("_", " ");
  return HEADS[key] ?? said.replace("seconds/", "seconds: ");
}

/** A number to four digits; what was not measured is a dash, what diverged is named. */
function show(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(3);
  return size >= 1e4 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

/** The label of a run's value in filters, legends and cells. */
function label(run, key) {
  if (run.full && (key === "method" || key === "variant")) return "full precision";
  if (key === "group_size" && run.cells[key] === null) return run.full ? "–" : "per channel";
  return show(WRITTEN.has(key) ? written[run.cells[key]] ?? run.cells[key] : run.cells[key]);
}
const WRITTEN = new Set(["method", "model"]);

/** A run's value as it is said by itself: what is no name of a thing has its heading before it. */
const NAMES = new Set(["method", "variant", "model", "protocol", "status"]);
const said = (run, key) => (NAMES.has(key) ? label(run, key) : `${heading(key)} ${label(run, key)}`);

/** A cell as a number, also where the column holds text (alphas, settings); NaN where it is none. */
function numeric(run, key) {
  const value = run.cells[key];
  return value === null || value === undefined || value === "" ? NaN : Number(value);
}

/** Text in the order a reader expects: numbers (alphas are text) by size, before words. */
const collator = new Intl.Collator("en", { numeric: true });
function compareText(a, b) {
  const [x, y] = [Number(a), Number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || collator.compare(a, b);
  return x - y;
}
const distinct = (values) => [...new Set(values)].sort(compareText);

/** Finite numbers first, then ±infinity, NaN, and last what was not measured. */
function rank(value) {
  if (value === null || value === undefined) return 3;
  if (typeof value !== "number") return 0;
  return Number.isFinite(value) ? 0 : Number.isNaN(value) ? 2 : 1;
}

/** Order of two values, going up or down; whatever is not finite stays last either way. */
function compare(a, b, down) {
  const byRank = rank(a) - rank(b);
  if (byRank || rank(a) > 1) return byRank;
  const order = typeof a === "number" && typeof b === "number" ? (a < b ? -1 : a > b ? 1 : 0)
    : compareText(String(a), String(b));
  return down ? -order : order;
}

/** An error as a point on a logarithmic axis; zero, infinite or NaN is a gap. */
const drawable = (error) => (error > 0 && Number.isFinite(error) ? error : null);

/** The quantile of sorted numbers, linear between neighbours. */
function quantile(sorted, q) {
  const place = (sorted.length - 1) * q;
  const low = Math.floor(place);
  const high = Math.ceil(place);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

/** A new element with text and attributes; text is never markup. */
function element(tag, text = "", attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
