// One run: what it is, what it gave, how to repeat it.

const ROLES_SHOWN = 8;

/** A nested configuration as one dotted key a line; a list, or nothing in braces, is a value. */
function flatten(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value) || !Object.keys(value).length) {
    return [[path, typeof value === "string" ? value : JSON.stringify(value)]];
  }
  return Object.entries(value).flatMap(([key, one]) => flatten(one, path ? `${path}.${key}` : key));
}

function pairsTable(pairs, name) {
  const rows = pairs.map(([key, value]) =>
    element("tr", "", {}, [element("th", key, { scope: "row" }), element("td", value)]));
  return element("table", "", { class: "pairs", id: name }, [element("tbody", "", {}, rows)]);
}

function folded(title, content, open = false) {
  const made = element("details", "", {}, [element("summary", title), content]);
  made.open = open;
  return made;
}

/** The command, with a button that copies it; where the clipboard is closed it is selected. */
function commandBox(run) {
  const code = element("code", run.command, { id: "command" });
  const copy = element("button", "Copy", { type: "button", id: "copy" });
  const said = element("span", "", { role: "status", class: "hint", id: "copied" });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(run.command);
      said.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      said.textContent = "selected: press Ctrl+C";
    }
  });
  const sweep = /\s(-m|--multirun)\s(.*\s)?[\w.@/]+=[^\s[{(]*,/.test(run.command);
  const hint = sweep ? "The command of the sweep; of its runs, finished ones are skipped." : "";
  return element("div", "", { class: "command" }, [
    element("pre", "", {}, [code]), copy, said, element("p", hint, { class: "hint" }),
  ]);
}

/** Fills and opens the dialog; draws the curves once it has a size. */
async function openRun(state, look, run, layers) {
  const dialog = document.getElementById("run");
  const close = element("button", "Close", { type: "button", class: "close" });
  close.addEventListener("click", () => dialog.close());
  const cells = state.model.columns
    .filter(({ key }) => key !== "run" && run.cells[key] !== null)
    .map(({ key }) => [heading(key), typeof run.cells[key] === "number" ? exact(run.cells[key]) : label(run, key)]);
  const parts = [element("header", "", {}, [element("h2", run.name, { id: "run-title" }), close])];
  if (run.cells.error) parts.push(element("p", run.cells.error, { class: "error" }));
  if (run.command) parts.push(element("h3", "Command"), commandBox(run));
  const depth = state.model.blocks.of(run.index);
  if (depth.keys.length) {
    const hint = "Thick: this run (dotted: on held-out tokens). Grey: the same recipe at other alphas.";
    parts.push(
      element("h3", "Error over depth"), element("div", "", { id: "run-depth", class: "plot" }),
      element("p", hint, { class: "hint" }),
    );
  }
  const linears = layers.of(run.index);
  const kind = layers.columns.includes(state.kind) ? state.kind : layers.columns[0];
  if (linears.keys.length) {
    parts.push(
      element("h3", `Every linear: ${KINDS[kind].join(" ")}`), element("div", "", { id: "run-linears", class: "plot" }),
      folded("The same as a table", linearsTable(linears)),
    );
  }
  parts.push(element("h3", "Results"), pairsTable(cells, "results"));
  parts.push(folded("Configuration", pairsTable(flatten(run.config ?? {}), "config"), true));
  for (const key of ["hashes", "environment"]) {
    if (run[key]) parts.push(folded(heading(key), pairsTable(flatten(run[key]), key)));
  }
  dialog.replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  if (depth.keys.length) await draw("run-depth", runDepth(state, look, run));
  if (linears.keys.length) await draw("run-linears", runLinears(linears, kind));
  dialog.dataset.drawn = run.name;
}

const exact = (value) => (Number.isFinite(value) ? String(value) : show(value));

/** One run's error over the blocks as a line. */
function depthTrace(state, run, column, line) {
  const { keys, values } = state.model.blocks.of(run.index);
  const errors = values[column] ?? [];
  return {
    x: keys.map(([block]) => block), y: errors.map(drawable), mode: "lines", line, hoverinfo: "text",
    hovertext: keys.map(([block], i) => hover(run, `block ${block}: ${heading(column)} ${show(errors[i])}`)),
  };
}

function depthLayout(state, data) {
  const values = data.flatMap((one) => one.y.filter((error) => error !== null));
  return axes({ title: "decoder block" }, { title: STREAMS[state.stream][1], ...scale(values) });
}

/** This run's curve before those of the same recipe at other alphas. */
function runDepth(state, look, run) {
  const others = state.model.runs.filter((one) =>
    one.recipe === run.recipe && one !== run && !one.full
    && (one.curve === run.curve || one.curve === null || run.curve === null));
  const data = others.map((one) =>
    depthTrace(state, one, state.stream, { color: theme.muted, width: 1, dash: look.dash(one) }));
  data.push(depthTrace(state, run, state.stream, { color: look.colour(run), width: 2.5 }));
  const held = depthTrace(state, run, `${state.stream}_heldout`, { color: look.colour(run), width: 1.5, dash: "dot" });
  if (held.y.some((error) => error !== null)) data.push(held);
  return { data, layout: depthLayout(state, data) };
}

/** Each role's error over the blocks; hover has all that is known of the linear. */
function runLinears({ keys, values }, kind) {
  const rows = keys.map(([block, role, name], i) => ({ block, role, name, i }));
  const data = [...Map.groupBy(rows, (row) => row.role)].map(([role, mine], place) => ({
    x: mine.map((row) => row.block), y: mine.map((row) => drawable(values[kind][row.i])),
    name: plain(role), mode: "lines+markers", hoverinfo: "text",
    line: { color: paint(place), width: 1.2 }, marker: { symbol: SYMBOLS[(place + 1) % ROLES_SHOWN], size: 6 },
    hovertext: mine.map((row) => `<b>${plain(row.name)}</b><br>` + Object.entries(values)
      .map(([column, list]) => `${plain(heading(column))} ${show(list[row.i])}`).join("<br>")),
  }));
  const shown = data.flatMap((one) => one.y.filter((error) => error !== null));
  const layout = axes({ title: "decoder block" }, { title: "relative error", ...scale(shown) });
  return { data, layout: { ...layout, showlegend: true, legend: { orientation: "h", y: -0.25 }, height: 380 } };
}

function linearsTable({ keys, values }) {
  const columns = Object.keys(values);
  const head = element("tr", "", {}, ["linear", ...columns.map(heading)].map((text) => element("th", text, { scope: "col" })));
  const rows = keys.map(([, , name], i) => element("tr", "", {}, [
    element("th", name, { scope: "row" }),
    ...columns.map((column) => element("td", show(values[column][i]), { class: "number" })),
  ]));
  return element("table", "", { class: "pairs" }, [
    element("thead", "", {}, [head]), element("tbody", "", {}, rows),
  ]);
}
