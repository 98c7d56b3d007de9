// Spectra: densities of the singular values, the fitted law, its edge and the spikes, of one layer or of two.

const MARGIN = { left: 56, right: 14, top: 12, bottom: 44 };

/** Round numbers from 0 to at most `end`, about so many. */
function ticks(end, wanted) {
  const rough = end / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, at) => at * step);
}

/** A spectrum as points of (s, density), in units of `unit`: the bars, and the law where one is fitted. */
function curvesOf(spectrum, unit) {
  const step = (spectrum.high - spectrum.low) / spectrum.shares.length;
  const bars = spectrum.shares.map((share, at) => ({
    from: (spectrum.low + at * step) / unit,
    to: (spectrum.low + (at + 1) * step) / unit,
    density: (unit * share) / step,
  }));
  const law = spectrum.law;
  const apart = law ? (law.high - law.low) / (law.heights.length - 1) : 0;
  const points = law
    ? law.heights.map((height, at) => [(law.low + at * apart) / unit, (unit * law.peak * height) / 1000])
    : [];
  return { bars, points, unit, spectrum };
}

/** A figure of one spectrum or two, as wide as asked for; `scaled` measures each in units of its own edge. */
function spectrumChart(spectra, { width, scaled = false }) {
  if (!spectra.length) return element("p", { class: "note" }, "No distribution is known.");
  const curves = spectra.map((spectrum) => curvesOf(spectrum, scaled && spectrum.edge > 0 ? spectrum.edge : 1));
  const height = Math.min(300, Math.max(220, 0.4 * width));
  const end = Math.max(...curves.map((curve) => curve.spectrum.end / curve.unit));
  const heights = ({ bars, points }) => [...bars.map((bar) => bar.density), ...points.map(([, density]) => density)];
  const top = 1.08 * Math.max(...curves.flatMap(heights), 1e-300);
  const x = (s) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * s) / end;
  const y = (density) => height - MARGIN.bottom - (height - MARGIN.top - MARGIN.bottom) * Math.min(density / top, 1);
  const told = spectra.map(described).join(" ");
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": told });
  drawing.append(...axes(width, height, x, y, end, top, scaled));
  curves.forEach((curve, at) => drawing.append(...drawn(curve, ["one", "other"][at], x, y)));
  return element("figure", {}, drawing, legend(spectra), caption(spectra));
}

function axes(width, height, x, y, end, top, scaled) {
  const [left, right, floor] = [MARGIN.left, width - MARGIN.right, height - MARGIN.bottom];
  const made = [];
  for (const s of ticks(end, width < 480 ? 4 : 8)) {
    made.push(shape("line", { class: "tick", x1: x(s), x2: x(s), y1: floor, y2: floor + 5 }));
    made.push(shape("text", { x: x(s), y: floor + 18, "text-anchor": "middle" }, significant(s)));
  }
  for (const density of ticks(top, 4)) {
    made.push(shape("line", { class: "grid", x1: left, x2: right, y1: y(density), y2: y(density) }));
    made.push(shape("text", { x: left - 7, y: y(density) + 4, "text-anchor": "end" }, significant(density, 3)));
  }
  made.push(shape("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
  const across = scaled ? "singular value over the edge of its layer" : "singular value";
  made.push(shape("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, across));
  const middle = (MARGIN.top + floor) / 2;
  const turned = { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` };
  made.push(shape("text", turned, "density"));
  return made;
}

function drawn(curve, which, x, y) {
  const { bars, points, unit, spectrum } = curve;
  const made = [];
  if (which === "one") {
    for (const bar of bars.filter((bar) => bar.density > 0)) {
      const box = { x: x(bar.from), y: y(bar.density), width: x(bar.to) - x(bar.from), height: y(0) - y(bar.density) };
      made.push(shape("rect", { class: "found", ...rounded(box) }));
    }
  } else {
    const steps = bars.map((bar) => `L${point(x(bar.from), y(bar.density))}L${point(x(bar.to), y(bar.density))}`);
    made.push(shape("path", { class: "found other", d: `M${point(x(bars[0].from), y(0))}${steps.join("")}` }));
  }
  if (points.length) {
    made.push(shape("path", { class: `law ${which}`, d: `M${points.map(([s, d]) => point(x(s), y(d))).join("L")}` }));
    const edge = x(spectrum.edge / unit);
    made.push(shape("line", { class: `edge ${which}`, x1: edge, x2: edge, y1: MARGIN.top, y2: y(0) }));
  }
  const low = y(0) - (which === "one" ? 0 : 14);
  for (const s of spectrum.spikes.filter((s) => s <= spectrum.end)) {
    made.push(shape("line", { class: `spike ${which}`, x1: x(s / unit), x2: x(s / unit), y1: low - 14, y2: low }));
  }
  return made;
}

const point = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;
const rounded = (box) => Object.fromEntries(Object.entries(box).map(([name, value]) => [name, value.toFixed(1)]));

/** What the drawing shows, in words. */
function described(spectrum) {
  const law = spectrum.law ? ` The edge of the fitted law is ${significant(spectrum.edge)}.` : " No law is fitted.";
  const most = spectrum.shares.indexOf(Math.max(...spectrum.shares));
  const mode = spectrum.low + ((most + 0.5) * (spectrum.high - spectrum.low)) / spectrum.shares.length;
  return `Singular values of ${plain(spectrum.label)}: most lie near ${significant(mode, 3)}.${law}`;
}

/** A line of swatches for each spectrum. */
function legend(spectra) {
  const lines = spectra.map((spectrum, at) => {
    const which = ["one", "other"][at];
    const told = [[`found ${which}`, "singular values"]];
    if (spectrum.law) {
      told.push([`law ${which}`, "law of even noise"], [`edge ${which}`, `its edge ${significant(spectrum.edge)}`]);
    }
    if (spectrum.spikes.length) told.push([`spike ${which}`, "spikes"]);
    const side = spectra.length > 1 ? [element("li", {}, element("b", {}, "AB"[at]))] : [];
    const marks = told.map(([kind, text]) => element("li", {}, swatch(kind), text));
    return element("ul", { class: "legend" }, ...side, ...marks);
  });
  return element("div", {}, ...lines);
}

function swatch(kind) {
  const mark = kind.startsWith("found one")
    ? shape("rect", { class: kind, x: 2, y: 3, width: 20, height: 9 })
    : kind.startsWith("spike")
      ? shape("line", { class: kind, x1: 12, x2: 12, y1: 1, y2: 14 })
      : shape("path", { class: kind, d: "M2 8L22 8" });
  return shape("svg", { class: "swatch", width: 24, height: 15, viewBox: "0 0 24 15", "aria-hidden": "true" }, mark);
}

function caption(spectra) {
  const texts = spectra.flatMap((spectrum, at) => {
    const of = spectra.length > 1 ? `${"AB"[at]}: ` : "";
    return spectrum.beyond ? [`${of}${counted(spectrum.beyond, "value lies", "values lie")} further right.`] : [];
  });
  return texts.length ? element("figcaption", { class: "note" }, texts.join(" ")) : "";
}
