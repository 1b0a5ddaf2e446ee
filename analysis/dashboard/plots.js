// One look for all figures: colours by value, symbols by value, and plotly behind one door.

// Okabe and Ito's palette, the yellow last; full precision has the text's own colour.
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C", "#F0E442"];
const DARK = { "#0072B2": "#3F9FD8", "#8C8C8C": "#B0B0B0" }; // the same hues, legible on black
const SYMBOLS = ["circle-open", "circle", "diamond", "square", "triangle-up", "cross", "x", "star"];
const GLYPHS = ["○", "●", "◆", "■", "▲", "✚", "✖", "★"];
const DASHES = ["dot", "solid", "dash", "dashdot", "longdash", "longdashdot"];
const CONFIG = {
  responsive: true, displaylogo: false, // the usual tools less those that send a figure elsewhere
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = {}; // the page's own colours, as the light or dark style sheet has them

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["text", "muted", "line", "panel"]) theme[name] = style.getPropertyValue(`--${name}`).trim();
}

function paint(index) {
  const colour = PALETTE[index % PALETTE.length];
  return dark.matches ? DARK[colour] ?? colour : colour;
}

/** plotly reads tags in text: none of a record's words may become one. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** Which colour and which symbol a run has, by its place among all runs, filtered or not. */
class Look {
  constructor(state) {
    const quantised = state.model.runs.filter((run) => !run.full);
    this.keys = { colour: state.colour, mark: state.mark };
    this.values = {};
    this.words = {}; // the same as the legend has them
    for (const [channel, key] of Object.entries(this.keys)) {
      this.values[channel] = distinct(quantised.map((run) => label(run, key)));
      this.words[channel] = this.values[channel].map((value) => (NAMES.has(key) ? value : `${heading(key)} ${value}`));
    }
  }

  place(channel, run) {
    return this.values[channel].indexOf(label(run, this.keys[channel]));
  }

  colour(run) {
    return run.full ? theme.text : paint(this.place("colour", run));
  }

  symbol(run) {
    return run.full ? "star-diamond" : SYMBOLS[this.place("mark", run) % SYMBOLS.length];
  }

  dash(run) {
    return run.full ? "solid" : DASHES[this.place("mark", run) % DASHES.length];
  }

  /** Runs that look alike, in the legend's order; each group's first run stands for its look. */
  groups(runs) {
    const groups = new Map();
    for (const run of runs) {
      const key = run.full ? "full" : `${this.place("colour", run)}/${this.place("mark", run)}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(run);
    }
    const order = (run) => (run.full ? -1 : this.place("colour", run) * 1000 + this.place("mark", run));
    return [...groups.values()].sort((a, b) => order(a[0]) - order(b[0]));
  }

  name(run) {
    if (run.full) return "full precision";
    return `${said(run, this.keys.colour)}, ${said(run, this.keys.mark)}`;
  }
}

/** The legend above the figures, for what is in view. */
function drawLegend(look, runs) {
  const parts = [];
  const present = (channel) => new Set(runs.filter((run) => !run.full).map((run) => look.place(channel, run)));
  for (const index of [...present("colour")].sort((a, b) => a - b)) {
    const swatch = element("span", "", { class: "swatch" });
    swatch.style.background = paint(index);
    parts.push(element("span", "", {}, [swatch, look.words.colour[index]]));
  }
  for (const index of [...present("mark")].sort((a, b) => a - b)) {
    const glyph = element("span", GLYPHS[index % GLYPHS.length], { class: "glyph" });
    parts.push(element("span", "", {}, [glyph, look.words.mark[index]]));
  }
  if (runs.some((run) => run.full)) {
    parts.push(element("span", "", {}, [element("span", "– –", { class: "glyph" }), "full precision"]));
  }
  document.getElementById("legend").replaceChildren(...parts);
}

/** The hover text of a run, with what it adds. */
function hover(run, extra) {
  const recipe = ["method", "bits", "group_size", "alpha", "seed"]
    .filter((key) => key in run.cells && !(run.full && key !== "method"))
    .map((key) => (key === "method" ? label(run, key) : `${heading(key)} ${label(run, key)}`));
  const words = [recipe.join(" · "), ...(run.said.length ? [run.said.join(" · ")] : []), extra];
  return `<b>${plain(run.name)}</b><br>${words.map(plain).join("<br>")}`;
}

/** A figure's axes: quiet, in the page's colours. */
function axes(x, y) {
  const base = {
    gridcolor: theme.line, linecolor: theme.line, zeroline: false, automargin: true, ticks: "outside",
    tickcolor: theme.line, exponentformat: "power", title: { standoff: 8 },
  };
  return {
    xaxis: { ...base, ...x, title: { ...base.title, text: plain(x.title) } },
    yaxis: { ...base, ...y, title: { ...base.title, text: plain(y.title) } },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { color: theme.text, family: "system-ui, sans-serif", size: 12 },
    hoverlabel: { bgcolor: theme.panel, bordercolor: theme.line, font: { color: theme.text }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.muted, activecolor: theme.text },
    hovermode: "closest", margin: { l: 60, r: 16, t: 8, b: 44 }, height: 320,
  };
}

const NARROW = 5; // below this ratio of the largest to the smallest value there may be one tick of 1, 2, 5

/** A logarithmic axis where the values allow one and need one; its ticks are written out: 1, 2, 5, 10, … */
function scale(values) {
  if (!values.length || !values.every((value) => value > 0)) return { type: "linear" };
  const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, 0]);
  if (high / low < NARROW) return { type: "linear" };
  const steps = high / low > 300 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power++) {
    for (const step of steps) ticks.push([step * 10 ** power, step, power]);
  }
  const write = ([value, step, power]) => (value >= 1e-3 && value < 1e5 ? String(Number(value.toPrecision(1)))
    : `${step === 1 ? "" : `${step}·`}10<sup>${power}</sup>`);
  return { type: "log", tickvals: ticks.map(([value]) => value), ticktext: ticks.map(write) };
}

/** A mark's look; open symbols take its colour for their line. */
const marker = (look, run, size) => {
  const colour = look.colour(run);
  return { color: colour, symbol: look.symbol(run), size, line: { width: 1.4, color: colour } };
};

/** Draws into `id`; a click on a point that belongs to a run opens that run. */
async function draw(id, figure, open) {
  const place = document.getElementById(id);
  const fresh = !place.data;
  await Plotly.react(place, figure.data, figure.layout, CONFIG);
  if (fresh && open) {
    place.on("plotly_click", ({ points }) => points[0]?.customdata && open(points[0].customdata));
  }
  for (const part of ["title", "note"]) {
    const words = document.getElementById(`${id}-${part}`);
    if (words) words.textContent = figure[part];
  }
}
