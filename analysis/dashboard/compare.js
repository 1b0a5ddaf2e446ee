// The ticked runs side by side, and the table as a file.

/** Fills and opens the dialog: what differs between the configurations, curves over one another, results.
 *
 * The curves come once `plotly` is there. */
async function openCompare(state, open, plotly) {
  const dialog = document.getElementById("compare");
  const runs = state.model.runs.filter((run) => state.picked.has(run.name));
  const configs = runs.map((run) => new Map(flatten(run.config ?? {})));
  const keys = [...new Set(configs.flatMap((config) => [...config.keys()]))];
  const differs = (key) => new Set(configs.map((config) => config.get(key))).size > 1;
  const setting = (key) => [state.model.names[key] ?? key, key, configs.map((config) => config.get(key) ?? "–")];
  const results = state.model.columns
    .filter(({ key, kind }) => kind === "number" && key !== "bits" && runs.some((run) => run.cells[key] !== null))
    .map(({ key }) => [heading(key), key, runs.map((run) => show(run.cells[key])), bestAmong(state, key, runs)]);
  const close = element("button", "Close", { type: "button", class: "close" });
  close.addEventListener("click", () => dialog.close());
  const same = keys.filter((key) => !differs(key));
  const curves = runs.filter((run) => state.model.blocks.of(run.index).keys.length);
  const hint = `Residual stream, ${STREAMS[state.stream][0]}: ${counted(curves.length, "run")} of ${runs.length}; lower is better.`;
  dialog.replaceChildren(
    element("header", "", {}, [element("h2", `${runs.length} runs side by side`, { id: "compare-title" }), close]),
    element("h3", "Settings that differ"), sideBySide(runs, keys.filter(differs).map(setting), "differences", open),
    ...(curves.length ? [
      element("h3", "Error accumulation over depth"), element("div", "", { id: "compare-depth", class: "plot" }),
      element("p", hint, { class: "hint" }),
    ] : []),
    element("h3", "Results"), sideBySide(runs, results, "outcomes", open),
    folded(`${same.length} settings that are the same`, pairsTable(same.map((key) => [key, configs[0].get(key)]), "same")),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  await plotly;
  if (curves.length) await draw("compare-depth", comparedDepth(state, curves));
  dialog.dataset.drawn = runs.map((run) => run.name).join(" ");
}

/** The compared runs' errors over depth, each in a colour of its own that the legend names. */
function comparedDepth(state, runs) {
  const data = runs.map((run, place) => ({
    ...depthTrace(state, run, state.stream, {
      color: paint(place), width: 2, dash: place < PALETTE.length ? "solid" : DASHES[place % DASHES.length],
    }),
    name: plain(run.name), customdata: state.model.blocks.of(run.index).keys.map(() => run.name),
  }));
  return { data, layout: { ...depthLayout(state, data), showlegend: true, legend: { orientation: "h", y: -0.25 }, height: 380 } };
}

/** Of the compared runs those that nobody beats in a metric, where they differ in it. */
function bestAmong(state, key, runs) {
  const family = state.model.families[key.split("/")[0]];
  const values = runs.map((run) => run.cells[key]);
  const finite = values.filter(Number.isFinite);
  if (!family || /_stderr\/|^noise\//.test(key) || new Set(finite).size < 2) return [];
  const best = family.better === "lower" ? Math.min(...finite) : Math.max(...finite);
  return values.map((value) => value === best);
}

function sideBySide(runs, rows, name, open) {
  if (!rows.length) return element("p", "None.", { class: "hint", id: name });
  const head = element("tr", "", {}, [element("td", ""), ...runs.map((run) => {
    const button = element("button", run.name, { type: "button", class: "open" });
    button.addEventListener("click", () => open(run.name));
    return element("th", "", { scope: "col" }, [button]);
  })]);
  const body = rows.map(([words, key, values, best = []]) => element("tr", "", { "data-key": key }, [
    element("th", words, { scope: "row", title: key }),
    ...values.map((value, i) => element("td", value, best[i] ? { class: "best" } : {})),
  ]));
  return element("div", "", { class: "sides" }, [
    element("table", "", { class: "pairs", id: name }, [element("thead", "", {}, [head]), element("tbody", "", {}, body)]),
  ]);
}

/** The rows and columns in view as CSV, all digits, the command last. */
function csv(state, shown) {
  const columns = ["run", ...state.model.columns.map(({ key }) => key).filter((key) => state.columns.has(key))];
  const rows = shown.map((run) => [...columns.map((key) => run.cells[key]), run.command]);
  return [[...columns, "command"], ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}

/** Text that a spreadsheet would take for a formula gets a quote before it. */
function field(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return Number.isNaN(value) ? "nan" : Number.isFinite(value) ? String(value) : value > 0 ? "inf" : "-inf";
  const text = /^[=+@\t\r]|^-(?!\d)/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Hands the reader a file. */
function save(name, text) {
  const link = element("a", "", { download: name, href: URL.createObjectURL(new Blob([text], { type: "text/csv" })) });
  link.click();
  URL.revokeObjectURL(link.href);
}
