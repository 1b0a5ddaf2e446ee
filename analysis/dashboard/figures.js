// The four figures: runs in, {data, layout, title, note} out.

const KINDS = {
  total_error: ["total error", "‖WX − VX̂‖²/‖WX‖²"],
  local_error: ["local error", "‖(W − V)X̂‖²/‖WX‖²"],
  rounding_error: ["rounding error", "tr((W* − V)H(W* − V)ᵀ)/‖WX‖²"],
};
const STREAMS = {
  relative_error: ["all together", "‖Y − Ŷ‖²/‖Y‖²"],
  relative_error_token: ["mean over tokens", "‖y − ŷ‖²/‖y‖², mean over tokens"],
};
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const better = (state) => (state.lower ? "lower is better" : "higher is better");
const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** What a figure of the metric can't show, said in words. */
function left(state, runs, drawn) {
  const out = new Set(runs);
  for (const run of drawn) out.delete(run);
  const ranks = [...out].map((run) => rank(run.cells[state.metric]));
  const lost = ranks.filter((one) => one === 1 || one === 2);
  const none = ranks.filter((one) => one === 3);
  return [
    lost.length && !drawn.length ? " Nothing finite to draw." : "",
    lost.length ? ` ${counted(lost.length, "run")} diverged (∞ or NaN) and can't be drawn.` : "",
    none.length ? ` ${counted(none.length, "run")} without this metric.` : "",
  ].join("");
}

function fullLine(state, runs, from, to) {
  const values = runs.filter((run) => run.full && Number.isFinite(run.cells[state.metric]));
  return values.map((run) => ({
    x: [from, to], y: [run.cells[state.metric], run.cells[state.metric]], mode: "lines",
    line: { color: theme.text, dash: "dash", width: 1.2 }, customdata: [run.name, run.name],
    hoverinfo: "text", hovertext: hover(run, `${state.metric} ${show(run.cells[state.metric])}`),
  }));
}

/** The metric against effective bits, with the best that can be had for so many bits. */
function bitsFigure(state, look, runs) {
  const x = (run) => run.cells.bits_per_weight;
  const y = (run) => run.cells[state.metric];
  const drawn = runs.filter((run) => !run.full && Number.isFinite(x(run)) && Number.isFinite(y(run)));
  const data = look.groups(drawn).map((group) => ({
    x: group.map(x), y: group.map(y), mode: "markers", customdata: group.map((run) => run.name),
    marker: marker(look, group[0], 9),
    hoverinfo: "text",
    hovertext: group.map((run) => hover(run, `${state.metric} ${show(y(run))} at ${show(x(run))} bits`)),
  }));
  const frontier = [];
  for (const run of [...drawn].sort((a, b) => x(a) - x(b) || (state.lower ? 1 : -1) * (y(a) - y(b)))) {
    const last = frontier.at(-1);
    if (!last || (state.lower ? y(run) < y(last) : y(run) > y(last))) frontier.push(run);
  }
  const one = new Set(drawn.map((run) => run.cells.model)).size === 1;
  if (one && frontier.length > 1) {
    data.unshift({
      x: frontier.map(x), y: frontier.map(y), mode: "lines", hoverinfo: "skip",
      line: { shape: "hv", color: theme.muted, width: 1, dash: "dot" },
    });
  }
  const widths = drawn.map(x);
  const [from, to] = widths.length ? [Math.min(...widths) - 0.15, Math.max(...widths) + 0.15] : [2, 4];
  data.push(...fullLine(state, runs, from, to));
  const values = data.flatMap((trace) => trace.y);
  return {
    data,
    layout: axes({ title: "effective bits per weight" }, { title: state.metric, ...scale(values) }),
    title: `${state.metric} against bits`,
    note: `${counted(drawn.length, "run")}; ${better(state)}.${one ? " Dotted: the best for so many bits." : ""}`
      + left(state, runs.filter((run) => !run.full), drawn),
  };
}

/** Any number against any other. */
function freeFigure(state, look, runs) {
  const [x, y] = [(run) => numeric(run, state.across), (run) => numeric(run, state.up)];
  const drawn = runs.filter((run) => Number.isFinite(x(run)) && Number.isFinite(y(run)));
  const data = look.groups(drawn).map((group) => ({
    x: group.map(x), y: group.map(y), mode: "markers", customdata: group.map((run) => run.name),
    marker: marker(look, group[0], 9), hoverinfo: "text",
    hovertext: group.map((run) => hover(run, `${heading(state.up)} ${show(y(run))}, ${heading(state.across)} ${show(x(run))}`)),
  }));
  const [across, up] = [heading(state.across), heading(state.up)];
  const lost = runs.length - drawn.length;
  return {
    data,
    layout: axes({ title: across, ...scale(drawn.map(x)) }, { title: up, ...scale(drawn.map(y)) }),
    title: `${up} against ${across}`,
    note: `${counted(drawn.length, "run")}.${lost ? ` ${counted(lost, "run")} without both, or not finite.` : ""}`,
  };
}

/** Runs that differ in alpha and seed only; those at alpha 0 start every curve of their recipe. */
function curvesOf(runs) {
  const origins = Map.groupBy(runs.filter((run) => run.curve === null), (run) => run.recipe);
  const curves = Map.groupBy(runs.filter((run) => run.curve !== null), (run) => run.curve);
  return [...curves.values()].map((curve) => [...curve, ...(origins.get(curve[0].recipe) ?? [])]);
}

/** The metric against alpha; a line joins runs that differ in alpha and seed only. */
function alphaFigure(state, look, runs) {
  const quantised = runs.filter((run) => !run.full);
  const drawn = quantised.filter((run) => Number.isFinite(run.cells[state.metric]) && run.cells.alpha !== null);
  const numeric = drawn.map((run) => Number(run.cells.alpha)).filter(Number.isFinite);
  const words = distinct(drawn.map((run) => run.cells.alpha).filter((alpha) => !Number.isFinite(Number(alpha))));
  const top = numeric.length ? Math.max(...numeric, 0.5) : 0;
  const x = (run) => {
    const alpha = Number(run.cells.alpha);
    return Number.isFinite(alpha) ? alpha : top + 0.15 * (1 + words.indexOf(run.cells.alpha));
  };
  const y = (run) => run.cells[state.metric];
  const data = [];
  for (const curve of curvesOf(drawn.filter((run) => Number.isFinite(Number(run.cells.alpha))))) {
    const points = [...Map.groupBy(curve, x)].sort((a, b) => a[0] - b[0]);
    if (points.length < 2) continue;
    const colour = state.colour === "alpha" ? theme.muted : look.colour(curve[0]);
    data.push({
      x: points.map(([alpha]) => alpha), y: points.map(([, group]) => mean(group.map(y))),
      mode: "lines", hoverinfo: "skip", line: { color: colour, width: 1.5 },
    });
  }
  for (const group of look.groups(drawn)) {
    data.push({
      x: group.map(x), y: group.map(y), mode: "markers", customdata: group.map((run) => run.name),
      marker: marker(look, group[0], 9),
      hoverinfo: "text",
      hovertext: group.map((run) => hover(run, `${state.metric} ${show(y(run))}`)),
    });
  }
  const end = top + 0.15 * words.length;
  data.push(...fullLine(state, runs, -0.04, end + 0.04));
  const ticks = [...new Set(numeric)].sort((a, b) => a - b);
  const axis = {
    title: "propagation strength alpha", tickvals: [...ticks, ...words.map((_, i) => top + 0.15 * (i + 1))],
    ticktext: [...ticks.map(show), ...words.map(plain)],
  };
  return {
    data,
    layout: axes(axis, { title: state.metric, ...scale(data.flatMap((trace) => trace.y)) }),
    title: `${state.metric} against alpha`,
    note: `${counted(drawn.length, "run")}; ${better(state)}. A line joins runs that differ in alpha (and seed: mean) only.`
      + left(state, quantised, drawn),
  };
}

/** Relative error of the residual stream, block by block; runs that look alike share a trace. */
function depthFigure(state, look, runs) {
  const { blocks } = state.model;
  // What has diverged lacks both kinds of error; what is older than one of them lacks that one.
  const known = (error) => error !== null && !Number.isNaN(error);
  const measured = ({ keys, values }) => keys.length > 0
    && (Boolean(values[state.stream]?.some(known)) || !values.relative_error.some(known));
  const drawn = runs.filter((run) => measured(blocks.of(run.index)));
  let [lost, below] = [0, 0];
  const data = look.groups(drawn).map((group) => {
    const trace = { x: [], y: [], customdata: [], hovertext: [] };
    for (const run of group) {
      const { keys, values } = blocks.of(run.index);
      keys.forEach(([block], i) => {
        const error = values[state.stream]?.[i] ?? null;
        if (error !== null && !Number.isFinite(error)) lost += 1;
        else if (error !== null && error <= 0) below += 1;
        trace.x.push(block);
        trace.y.push(drawable(error));
        trace.customdata.push(run.name);
        trace.hovertext.push(hover(run, `block ${block}: relative error ${show(error)}`));
      });
      for (const list of Object.values(trace)) list.push(null);
    }
    return {
      ...trace, mode: "lines", hoverinfo: "text", opacity: group.length > 8 ? 0.45 : 1,
      line: { color: look.colour(group[0]), dash: look.dash(group[0]), width: drawn.length > 40 ? 0.8 : 1.8 },
    };
  });
  const values = data.flatMap((trace) => trace.y.filter((error) => error !== null));
  return {
    data,
    layout: axes({ title: "decoder block" }, { title: STREAMS[state.stream][1], ...scale(values) }),
    title: "Error accumulation over depth",
    note: `${counted(drawn.length, "run")}: ${state.picked.size ? "the ticked ones" : "those that pass the filters"}; lower is better.`
      + (values.length ? "" : lost ? " Nothing finite to draw." : below ? " Nothing above zero to draw." : "")
      + (lost ? ` ${counted(lost, "value")} that ${lost === 1 ? "is" : "are"} ∞ or NaN can't be drawn.` : "")
      + (below ? ` ${counted(below, "value")} at or below zero: no place on a logarithmic axis.` : ""),
  };
}

/** Errors of the linears by role: median and quartiles over all blocks of all runs that look alike. */
function rolesFigure(state, look, runs, layers) {
  const name = KINDS[state.kind];
  const named = layers.columns.includes(state.kind);
  const drawn = runs.filter((run) => named && layers.of(run.index).keys.length);
  const roles = [];
  let lost = 0;
  const data = look.groups(drawn).map((group) => {
    const byRole = new Map();
    for (const run of group) {
      const { keys, values } = layers.of(run.index);
      keys.forEach(([, role], i) => {
        if (!byRole.has(role)) byRole.set(role, []);
        const error = values[state.kind][i];
        if (!Number.isFinite(error)) lost += 1;
        else if (error > 0) byRole.get(role).push(error);
      });
    }
    for (const role of byRole.keys()) if (!roles.includes(role)) roles.push(role);
    const found = [...byRole].filter(([, list]) => list.length)
      .map(([role, list]) => [role, Float64Array.from(list).sort()]);
    const at = (q) => found.map(([, sorted]) => quantile(sorted, q));
    const [low, middle, high] = [at(0.25), at(0.5), at(0.75)];
    return {
      x: found.map(([role]) => plain(role)), y: middle, mode: "markers", hoverinfo: "text",
      offsetgroup: look.name(group[0]),
      marker: marker(look, group[0], 8),
      error_y: {
        array: high.map((value, i) => value - middle[i]), arrayminus: middle.map((value, i) => value - low[i]),
        color: look.colour(group[0]), thickness: 1.2, width: 0,
      },
      hovertext: found.map(([role, sorted], i) => `<b>${plain(role)}</b><br>${plain(look.name(group[0]))}<br>`
        + `median ${show(middle[i])}, quartiles ${show(low[i])} – ${show(high[i])}<br>`
        + `${counted(sorted.length, "linear")} of ${counted(group.length, "run")}`),
    };
  });
  const axis = { title: "", type: "category", categoryorder: "array", categoryarray: roles.map(plain) };
  const scaled = scale(data.flatMap((trace) => trace.y));
  return {
    data,
    layout: { ...axes(axis, { title: name[1], ...scaled }), scattermode: "group", scattergap: 0.25 },
    title: `Relative ${name[0]} by role`,
    note: `Median and quartiles over the linears of ${counted(drawn.length, "run")}; ${name[0]} ${name[1]}; lower is better.`
      + (lost ? ` ${counted(lost, "linear")} whose error is ∞ or NaN left out.` : ""),
  };
}
