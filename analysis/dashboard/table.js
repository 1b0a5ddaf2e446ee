// The table: a row a run, a button a heading.

const FIRST_ROWS = 100; // laying out a thousand takes half a second; the others come on demand

function drawTable(state, shown, act) {
  const table = document.getElementById("table");
  const columns = state.model.columns.filter(({ key }) => state.columns.has(key));
  const best = bestOf(state, shown, columns);
  table.tHead.replaceChildren(headRow(state, columns, act));
  const rows = document.createDocumentFragment();
  const first = state.allRows ? shown : shown.slice(0, FIRST_ROWS);
  for (const run of first) rows.append(bodyRow(state, run, columns, best, act));
  const whole = (child) => element("tr", "", {}, [element("td", "", { colspan: columns.length + 2 }, [child])]);
  if (!shown.length) rows.append(whole("No run passes these filters."));
  if (first.length < shown.length) {
    const words = `Show the other ${shown.length - first.length} runs`;
    const more = element("button", words, { type: "button", id: "more" });
    more.addEventListener("click", () => act.more(shown[first.length].name));
    rows.append(whole(more));
  }
  table.tBodies[0].replaceChildren(rows);
}

function headRow(state, columns, act) {
  const row = element("tr", "", {}, [element("td", "")]);
  for (const { key, kind } of [{ key: "run", kind: "text" }, ...columns]) {
    const sorted = state.sort.key === key;
    const cell = element("th", "", { scope: "col", class: kind });
    if (sorted) cell.setAttribute("aria-sort", state.sort.down ? "descending" : "ascending");
    const arrow = sorted ? (state.sort.down ? " ▼" : " ▲") : "";
    const button = element("button", heading(key) + arrow, { type: "button", "data-sort": key });
    button.addEventListener("click", () => act.sort(key));
    cell.append(button);
    row.append(cell);
  }
  return row;
}

function bodyRow(state, run, columns, best, act) {
  const kind = run.full ? "full" : run.cells.status === "done" ? "" : "undone";
  const row = element("tr", "", { "data-run": run.name, class: kind });
  const tick = element("input", "", { type: "checkbox", "aria-label": `show the curves of ${run.name}` });
  tick.checked = state.picked.has(run.name);
  tick.addEventListener("change", () => act.pick(run.name, tick.checked));
  const open = element("button", run.name, { type: "button", class: "open" });
  row.append(element("td", "", {}, [tick]), element("th", "", { scope: "row" }, [open]));
  for (const { key, kind } of columns) {
    const value = run.cells[key];
    const cell = element("td", label(run, key), { class: kind });
    if (typeof value === "number") cell.title = String(value);
    if (best.get(key) === value && typeof value === "number") cell.classList.add("best");
    row.append(cell);
  }
  row.addEventListener("click", (event) => {
    if (!event.target.closest("input")) act.open(run.name);
  });
  return row;
}

/** Of each metric the best quantised value in view, where there is more than one. */
function bestOf(state, shown, columns) {
  const best = new Map();
  for (const { key } of columns) {
    if (!state.metrics.includes(key) || /_stderr\/|^noise\//.test(key)) continue;
    const values = shown.filter((run) => !run.full).map((run) => run.cells[key]).filter(Number.isFinite);
    if (new Set(values).size < 2) continue;
    const lower = state.model.families[key.split("/")[0]].better === "lower";
    best.set(key, values.reduce((a, b) => (lower ? Math.min(a, b) : Math.max(a, b))));
  }
  return best;
}
