// What the reader chose, kept in the address so that a link shows the same.

const FACETS = ["model", "method", "bits", "group_size", "alpha", "protocol", "status"];
const DIMENSIONS = ["method", "alpha", "bits", "group_size", "model", "seed"];
const MOST = 8; // settings that are columns and filters at first sight; all can be chosen

class State {
  constructor(model) {
    this.model = model;
    this.metrics = model.columns
      .filter(({ key, kind }) => kind === "number" && key.split("/")[0] in model.families)
      .map(({ key }) => key);
    const known = new Set(model.columns.map(({ key }) => key));
    this.facetKeys = [...FACETS, ...model.settings.slice(0, MOST)].filter((key) => known.has(key));
    this.dimensions = [...(known.has("variant") ? ["variant"] : []), ...DIMENSIONS, ...model.settings];
    const numbers = ({ key, kind }) => kind === "number" || key === "alpha"
      || (key.startsWith(SETTINGS) && model.runs.every((run) => !Number.isNaN(numeric(run, key)) || run.cells[key] === null));
    this.axes = model.columns.filter(numbers).map(({ key }) => key);
    this.usual = this.usualColumns();
    this.allRows = false;
    this.fromHash("");
  }

  /** The columns worth a first look: what varies, the headline metrics, the cost. */
  usualColumns() {
    const { runs, columns } = this.model;
    const quantised = runs.filter((run) => !run.full);
    const varies = (key) => new Set(quantised.map((run) => run.cells[key])).size > 1;
    const headline = (key) => /^(perplexity|accuracy|kl)\//.test(key) || key === "error/last_block";
    const always = new Set(["method", "bits", "alpha", "bits_per_weight", "seconds/total"]);
    const maybe = new Set(["model", "group_size", "seed", "protocol", "status", "error", "blocks", "calibration_tokens"]);
    const settings = new Set(this.model.settings.slice(0, MOST));
    return columns
      .map(({ key }) => key)
      .filter((key) => settings.has(key) || always.has(key) || headline(key) || (maybe.has(key) && varies(key)));
  }

  clear() {
    this.facets = Object.fromEntries(this.facetKeys.map((key) => [key, new Set()]));
    this.text = "";
    this.baseline = true;
  }

  /** The runs that pass, in the table's order. Full precision may stay whatever the recipe. */
  shown() {
    const words = this.text.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = (run) => {
      const facets = run.full && this.baseline ? ["model", "status"] : this.facetKeys;
      return facets.filter((key) => key in this.facets).every((key) => !this.facets[key].size || this.facets[key].has(label(run, key)))
        && ((run.full && this.baseline) || words.every((word) => run.text.includes(word)));
    };
    const runs = this.model.runs.filter(passes);
    const { key, down } = this.sort;
    return key ? runs.sort((a, b) => compare(a.cells[key], b.cells[key], down)) : runs;
  }

  /** The runs whose curves are drawn: the ticked ones, or else all that pass. */
  curves(shown) {
    return this.picked.size ? this.model.runs.filter((run) => this.picked.has(run.name)) : shown;
  }

  /** Whether less is better for the chosen metric. */
  get lower() {
    return this.model.families[this.metric.split("/")[0]]?.better !== "higher";
  }

  toHash() {
    const pairs = new URLSearchParams();
    for (const key of this.facetKeys) for (const value of this.facets[key]) pairs.append(key, value);
    if (this.text) pairs.set("q", this.text);
    if (!this.baseline) pairs.set("baseline", "0");
    if (this.sort.key) pairs.set("sort", (this.sort.down ? "-" : "") + this.sort.key);
    if ([...this.columns].join() !== this.usual.join()) {
      for (const key of this.columns) pairs.append("column", key);
    }
    for (const name of this.picked) pairs.append("pick", name);
    for (const key of ["metric", "kind", "stream", "colour", "mark", "across", "up"]) pairs.set(key, this[key]);
    if (this.comparing) pairs.set("compare", "1");
    if (this.open) pairs.set("run", this.open);
    return pairs.toString();
  }

  /** What an address says, as far as these records know it; the rest is as at first. */
  fromHash(hash) {
    const pairs = new URLSearchParams(hash);
    const known = new Set(this.model.columns.map(({ key }) => key));
    const names = new Set(this.model.runs.map(({ name }) => name));
    const one = (key, allowed, otherwise) => (allowed.includes(pairs.get(key)) ? pairs.get(key) : otherwise);
    this.facets = Object.fromEntries(this.facetKeys.map((key) => {
      const labels = new Set(this.model.runs.map((run) => label(run, key)));
      return [key, new Set(pairs.getAll(key).filter((value) => labels.has(value)))];
    }));
    this.text = pairs.get("q") ?? "";
    this.baseline = pairs.get("baseline") !== "0";
    const sort = pairs.get("sort") ?? "";
    const key = sort.replace(/^-/, "");
    this.sort = { key: known.has(key) ? key : "", down: sort.startsWith("-") };
    const columns = pairs.getAll("column").filter((column) => known.has(column));
    this.columns = new Set(columns.length ? columns : this.usual);
    this.picked = new Set(pairs.getAll("pick").filter((name) => names.has(name)));
    const headline = this.metrics.find((metric) => metric.startsWith("perplexity/"));
    this.metric = one("metric", this.metrics, headline ?? this.metrics[0] ?? "");
    this.kind = one("kind", Object.keys(KINDS), "total_error");
    this.stream = one("stream", Object.keys(STREAMS), "relative_error");
    this.colour = one("colour", this.dimensions, this.dimensions[0]);
    this.mark = one("mark", this.dimensions, "alpha");
    this.across = one("across", this.axes, this.axes.includes("seconds/total") ? "seconds/total" : this.axes[0] ?? "");
    this.up = one("up", this.axes, this.metric);
    this.comparing = pairs.get("compare") === "1" && this.picked.size > 1;
    this.open = one("run", [...names], "");
  }
}
