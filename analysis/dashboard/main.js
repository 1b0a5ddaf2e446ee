// The page: state in, table and figures out.

const DRAWN = { bits: bitsFigure, alpha: alphaFigure, depth: depthFigure, roles: rolesFigure };

class Page {
  constructor(model) {
    this.state = new State(model);
    this.started = false; // until then there is the table only
    this.waiting = false;
    this.drawn = 0;
    this.act = {
      sort: (key) => this.sort(key),
      pick: (name, on) => this.pick(name, on),
      open: (name) => this.open(name),
    };
  }

  async start() {
    this.state.fromHash(location.hash.slice(1));
    this.controls();
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) === this.state.toHash()) return;
      this.state.fromHash(location.hash.slice(1));
      this.controls();
      this.changed();
      if (this.state.open) this.open(this.state.open);
    });
    dark.addEventListener("change", () => this.changed());
    this.table();
    this.layers = series(JSON.parse(await unpack("layers-data")));
    await startPlotly();
    this.started = true;
    await this.update();
    document.body.dataset.ready = "true";
    if (this.state.open) await this.open(this.state.open);
  }

  /** Draws once for all changes of a frame. */
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(async () => {
      this.waiting = false;
      await this.update();
    });
  }

  /** The table and what stands around it, for the runs that pass the filters. */
  table() {
    const { state } = this;
    const shown = state.shown();
    this.look = new Look(state);
    const full = shown.filter((run) => run.full).length;
    document.getElementById("count").textContent =
      `${shown.length} of ${counted(state.model.runs.length, "run")}${full ? `, ${full} of them full precision` : ""}`;
    document.getElementById("unpick").hidden = !state.picked.size;
    history.replaceState(null, "", `#${state.toHash()}`);
    drawTable(state, shown, this.act);
    drawLegend(this.look, shown);
    return shown;
  }

  async update() {
    const { state } = this;
    const turn = ++this.drawn;
    const shown = this.table();
    if (!this.started) return;
    const curves = state.curves(shown);
    for (const [id, figure] of Object.entries(DRAWN)) {
      if (turn !== this.drawn) return; // a newer change draws the rest
      const runs = id === "depth" || id === "roles" ? curves : shown;
      await draw(id, figure(state, this.look, runs, this.layers), this.act.open);
    }
    document.body.dataset.drawn = String(turn);
  }

  sort(key) {
    const { sort } = this.state;
    this.state.sort = { key, down: sort.key === key && !sort.down };
    this.changed();
    requestAnimationFrame(() => document.querySelector(`[data-sort="${CSS.escape(key)}"]`)?.focus());
  }

  pick(name, on) {
    if (on) this.state.picked.add(name);
    else this.state.picked.delete(name);
    this.changed();
    requestAnimationFrame(() => document.querySelector(`[data-run="${CSS.escape(name)}"] input`)?.focus());
  }

  async open(name) {
    if (!this.started) return;
    this.state.open = name;
    history.replaceState(null, "", `#${this.state.toHash()}`);
    await openRun(this.state, this.look, this.state.model.runs.find((run) => run.name === name), this.layers);
  }

  controls() {
    const { state } = this;
    const facets = FACETS.filter((key) => state.model.columns.some((column) => column.key === key));
    document.getElementById("facets").replaceChildren(...facets.map((key) => this.facet(key)));
    this.options("metric", state.metrics.map((key) => [key, key]));
    this.options("kind", Object.entries(KINDS).map(([key, name]) => [key, name.join(" ")]));
    for (const channel of ["colour", "mark"]) this.options(channel, DIMENSIONS.map((key) => [key, heading(key)]));
    const columns = state.model.columns.filter(({ key }) => key !== "run");
    const legend = element("legend", "Columns shown");
    document.getElementById("columns").replaceChildren(legend, ...columns.map(({ key }) =>
      this.tick(heading(key), state.columns.has(key), (on) => (on ? state.columns.add(key) : state.columns.delete(key)))));
    const search = document.getElementById("search");
    search.value = state.text;
    search.oninput = () => this.set(() => (state.text = search.value));
    const baseline = document.getElementById("baseline");
    baseline.checked = state.baseline;
    baseline.onchange = () => this.set(() => (state.baseline = baseline.checked));
    document.getElementById("filters").onsubmit = (event) => event.preventDefault();
    document.getElementById("reset").onclick = () => this.set(() => { state.clear(); this.controls(); });
    document.getElementById("unpick").onclick = () => this.set(() => state.picked.clear());
    document.getElementById("run").onclose = () => { state.open = ""; this.changed(); };
  }

  set(change) {
    change();
    this.changed();
  }

  facet(key) {
    const chosen = this.state.facets[key];
    const values = distinct(this.state.model.runs.map((run) => label(run, key)));
    const ticks = values.map((value) =>
      this.tick(value, chosen.has(value), (on) => (on ? chosen.add(value) : chosen.delete(value)), value));
    return element("fieldset", "", { "data-facet": key }, [element("legend", heading(key)), ...ticks]);
  }

  tick(text, checked, change, value = text) {
    const box = element("input", "", { type: "checkbox", value });
    box.checked = checked;
    box.addEventListener("change", () => this.set(() => change(box.checked)));
    return element("label", "", { class: "tick" }, [box, ` ${text}`]);
  }

  options(id, pairs) {
    const select = document.getElementById(id);
    select.replaceChildren(...pairs.map(([value, text]) => element("option", text, { value })));
    select.value = this.state[id];
    select.onchange = () => this.set(() => (this.state[id] = select.value));
  }
}

/** Runs plotly, as the very script that the page's policy names. */
async function startPlotly() {
  const script = element("script", await unpack("plotly"));
  // plotly makes errors while it starts; with a stack each, V8 parses all of it again for every one.
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 0;
  document.body.append(script);
  Error.stackTraceLimit = limit;
}

(async () => {
  try {
    await new Page(readRuns(JSON.parse(await unpack("runs-data")))).start();
  } catch (error) {
    document.getElementById("count").textContent = `The page can't be shown: ${error.message}`;
    throw error;
  }
})();
