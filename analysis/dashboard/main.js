// The page: state in, table and figures out.

const FIGURES = { bits: bitsFigure, alpha: alphaFigure, free: freeFigure, depth: depthFigure, roles: rolesFigure };
const ERRORS_ONLY = new Set(["depth", "roles"]); // of the ticked runs, if there are any

class Page {
  constructor(model) {
    this.state = new State(model);
    this.turn = 0; // counts the changes that were shown
    this.waiting = false;
    this.near = new Set(); // the figures in view or almost
    this.act = {
      sort: (key) => this.sort(key),
      pick: (name, on) => this.pick(name, on),
      more: (name) => this.more(name),
      open: (name) => this.open(name),
    };
    // What takes long waits until it is needed: plotly, the errors of the linears.
    this.plotly = once(startPlotly);
    this.layers = once(async () => series(JSON.parse(await unpack("layers-data"))));
  }

  async start() {
    this.state.fromHash(location.hash.slice(1));
    document.getElementById("protocols").textContent = this.state.model.protocols;
    this.controls();
    this.table();
    addEventListener("hashchange", () => this.follow());
    dark.addEventListener("change", () => this.changed());
    await new Promise((seen) => {
      const watch = new IntersectionObserver((entries) => {
        for (const { target, isIntersecting } of entries) this.near[isIntersecting ? "add" : "delete"](target.id);
        seen();
        if (this.drawn) this.figures();
      }, { rootMargin: "150px" });
      for (const id of Object.keys(FIGURES)) watch.observe(document.getElementById(id));
    });
    this.drawn = true;
    await this.figures();
    if (this.state.comparing) this.compare();
    if (this.state.open) await this.open(this.state.open);
    document.body.dataset.ready = performance.now().toFixed();
    document.title = counted(this.state.model.runs.length, "quantisation run");
  }

  /** Goes where the address says, when the reader changed it. */
  follow() {
    if (location.hash.slice(1) === this.state.toHash()) return;
    this.state.fromHash(location.hash.slice(1));
    this.controls();
    this.changed();
    if (this.state.comparing) this.compare();
    if (this.state.open) this.open(this.state.open);
  }

  /** Shows all changes of a frame at once. */
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.table();
      this.figures();
    });
  }

  /** The table and what stands around it, for the runs that pass the filters. */
  table() {
    const { state } = this;
    this.turn += 1;
    this.shown = state.shown();
    this.look = new Look(state);
    readTheme();
    const full = this.shown.filter((run) => run.full).length;
    document.getElementById("count").textContent = `${this.shown.length} of `
      + `${counted(state.model.runs.length, "run")}${full ? `, ${full} of them full precision` : ""}`;
    document.getElementById("unpick").hidden = !state.picked.size;
    const comparing = document.getElementById("comparing");
    comparing.hidden = state.picked.size < 2;
    comparing.textContent = `Compare ${state.picked.size} runs`;
    history.replaceState(null, "", `#${state.toHash()}`);
    drawTable(state, this.shown, this.act);
    drawLegend(this.look, this.shown);
  }

  /** Draws the figures in view that do not show the last change; others when they come into view. */
  async figures() {
    await this.plotly();
    for (const [id, figure] of Object.entries(FIGURES)) {
      const place = document.getElementById(id);
      const turn = this.turn;
      if (!this.near.has(id) || place.dataset.turn === String(turn)) continue;
      place.dataset.turn = turn;
      const runs = ERRORS_ONLY.has(id) ? this.state.curves(this.shown) : this.shown;
      const layers = id === "roles" ? await this.layers() : null;
      await draw(id, figure(this.state, this.look, runs, layers), this.act.open);
      place.dataset.drawn = turn;
    }
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

  /** All rows; the first of the new ones has the focus then. */
  more(name) {
    this.state.allRows = true;
    this.table();
    document.querySelector(`[data-run="${CSS.escape(name)}"] .open`).focus();
  }

  async open(name) {
    this.state.open = name;
    history.replaceState(null, "", `#${this.state.toHash()}`);
    await this.plotly();
    const run = this.state.model.runs.find((one) => one.name === name);
    await openRun(this.state, this.look, run, await this.layers());
  }

  /** The ticked runs side by side. */
  compare() {
    this.state.comparing = true;
    history.replaceState(null, "", `#${this.state.toHash()}`);
    openCompare(this.state, this.act.open, this.plotly());
  }

  /** A closed dialog gives the focus back to what opened it, which the table has drawn anew. */
  closed(back) {
    this.changed();
    requestAnimationFrame(() => requestAnimationFrame(() => back()?.focus()));
  }

  controls() {
    const { state } = this;
    document.getElementById("facets").replaceChildren(...state.facetKeys.map((key) => this.facet(key)));
    this.options("metric", state.metrics.map((key) => [key, key]));
    this.options("kind", Object.entries(KINDS).map(([key, name]) => [key, name.join(" ")]));
    this.options("stream", Object.entries(STREAMS).map(([key, [name]]) => [key, name]));
    for (const channel of ["colour", "mark"]) this.options(channel, state.dimensions.map((key) => [key, heading(key)]));
    for (const axis of ["across", "up"]) this.options(axis, state.axes.map((key) => [key, heading(key)]));
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
    document.getElementById("comparing").onclick = () => this.compare();
    document.getElementById("csv").onclick = () => save("runs.csv", csv(state, this.shown));
    document.getElementById("run").onclose = () => {
      const name = state.open;
      state.open = "";
      this.closed(() => document.querySelector(state.comparing ? "#compare .close" : `[data-run="${CSS.escape(name)}"] .open`));
    };
    document.getElementById("compare").onclose = () => {
      state.comparing = false;
      this.closed(() => document.getElementById("comparing"));
    };
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

/** A function that does its work on the first call and gives that result ever after. */
function once(work) {
  let result;
  return () => (result ??= work());
}

/** Runs plotly, as the very script that the page's policy names. */
async function startPlotly() {
  document.body.append(element("script", await unpack("plotly")));
}

(async () => {
  try {
    await new Page(readRuns(JSON.parse(await unpack("runs-data")))).start();
  } catch (error) {
    document.getElementById("count").textContent = `The page can't be shown: ${error.message}`;
    throw error;
  }
})();
