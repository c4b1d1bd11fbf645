"use strict";
// Draws each figure.chart with uPlot: colours of the page's theme, keys that hide a curve, marks of
// events, and values by pointer or keyboard.
(() => {
  const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
  const LEVELS = { good: "--good", note: "--note", bad: "--bad" };
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const faded = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
  const long = (hex) => (hex.length === 4 ? "#" + [...hex.slice(1)].map((c) => c + c).join("") : hex);
  const utc = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");
  const number = (v) => {
    if (v === null || v === undefined) return "–";
    if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e7)) return Number(v.toPrecision(3)).toExponential().replace("e+", "e");
    return Number(v.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
  };
  const element = (name, properties, ...inner) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...inner);
    return made;
  };

  function sample(curve) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("width", 22);
    svg.setAttribute("height", 8);
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [key, value] of Object.entries({ x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 2.5, "stroke-dasharray": DASHES[curve.dash % 4].join(" ") })) line.setAttribute(key, value);
    line.style.stroke = `var(--c${curve.colour})`;
    svg.append(line);
    return svg;
  }

  function build(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const place = figure.querySelector(".plot"), keys = figure.querySelector(".keys"), readout = figure.querySelector(".readout");
    const isTime = spec.xTitle === "time", first = spec.x[0], last = spec.x[spec.x.length - 1];
    const data = [spec.x], series = [{}], bands = [], shown = [];
    for (const curve of spec.curves) {
      const ink = () => colour(`--c${curve.colour}`);
      const owner = data.length;
      data.push(curve.values);
      series.push({
        label: curve.label, spanGaps: true, width: curve.faint ? 0.8 : 2, dash: DASHES[curve.dash % 4],
        stroke: () => (curve.faint ? faded(long(ink()), 0.4) : ink()),
        points: { show: curve.points || spec.x.length === 1, size: 7 },
        paths: curve.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
      });
      const belongs = [owner];
      if (curve.low) {
        for (const edge of [curve.high, curve.low]) {
          belongs.push(data.length);
          data.push(edge);
          series.push({ spanGaps: true, width: 0, stroke: "transparent", points: { show: false } });
        }
        bands.push({ series: [belongs[1], belongs[2]], fill: () => faded(long(ink()), 0.18) });
      }
      const same = shown.find((one) => one.curve.label === curve.label);
      if (same) same.numbers.push(...belongs), (same.value = curve.faint ? same.value : owner), (same.curve = curve.faint ? same.curve : curve);
      else shown.push({ curve, numbers: belongs, value: owner, output: element("output", {}) });
    }

    const drawMarks = (u) => {
      const { ctx, bbox } = u, ratio = devicePixelRatio;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      for (const mark of spec.marks) {
        const ink = long(colour(LEVELS[mark.level])), at = u.valToPos(mark.x, "x", true);
        if (mark.until !== null) {
          ctx.fillStyle = faded(ink, 0.12);
          ctx.fillRect(at, bbox.top, Math.max(2, u.valToPos(mark.until, "x", true) - at), bbox.height);
          continue;
        }
        ctx.strokeStyle = ctx.fillStyle = ink;
        ctx.lineWidth = ratio;
        ctx.setLineDash(mark.level === "bad" ? [] : [4 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(at, bbox.top);
        ctx.lineTo(at, bbox.top + bbox.height);
        ctx.stroke();
        ctx.beginPath();
        const r = 4.5 * ratio;
        ctx.moveTo(at - r, bbox.top);
        ctx.lineTo(at + r, bbox.top);
        ctx.lineTo(at, bbox.top + 1.6 * r);
        ctx.fill();
      }
      if (spec.level) {
        const y = u.valToPos(spec.level[0], "y", true);
        ctx.strokeStyle = ctx.fillStyle = colour("--quiet");
        ctx.lineWidth = ratio;
        ctx.setLineDash([2 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(bbox.left, y);
        ctx.lineTo(bbox.left + bbox.width, y);
        ctx.stroke();
        ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        // On a ground of its own: it would be lost on a curve or a shaded span.
        const wide = ctx.measureText(spec.level[1]).width + 8 * ratio, high = 15 * ratio;
        const below = y + 3 * ratio + high < bbox.top + bbox.height, top = below ? y + 3 * ratio : y - 3 * ratio - high;
        const right = bbox.left + bbox.width - 4 * ratio;
        ctx.fillStyle = faded(long(colour("--back")), 0.85);
        ctx.fillRect(right - wide, top, wide, high);
        ctx.fillStyle = colour("--quiet");
        ctx.fillText(spec.level[1], right - 4 * ratio, top + high / 2);
      }
      ctx.restore();
    };

    const tell = (u) => {
      const i = u.cursor.idx;
      const at = i === null || i === undefined ? null : u.data[0][i];
      for (const one of shown) one.output.textContent = at === null ? "" : number(nearest(u.data[one.value], i));
      if (at === null) return (readout.textContent = "");
      const reach = Math.abs(u.posToVal(9, "x") - u.posToVal(0, "x"));
      const cursor = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : at;
      const near = spec.marks.filter((m) => (m.until === null ? Math.abs(m.x - cursor) <= reach : m.x <= cursor && cursor <= m.until));
      readout.textContent = [`${spec.xTitle} ${isTime ? utc(at) + " UTC" : number(at)}`, ...near.slice(0, 4).map((m) => m.label)].join(" · ");
    };
    // Runs side by side have different steps: the last value before the cursor is theirs.
    const nearest = (values, i) => {
      for (let back = 0; back <= 40 && i - back >= 0; back++) if (values[i - back] !== null && values[i - back] !== undefined) return values[i - back];
      return null;
    };

    const isCount = spec.curves.every((curve) => curve.stepped && curve.values.every((v) => v === null || (Number.isInteger(v) && v <= 1000)));
    // Hours and minutes, with the date where it is another one.
    const clock = (u, splits, axis, space, step) => splits.map((moment, i) => {
      const [date, time] = utc(moment).split(" ");
      if (step >= 86400) return date;
      const isNew = i === 0 || utc(splits[i - 1]).slice(0, 10) !== date;
      return (step < 60 ? time : time.slice(0, 5)) + (isNew ? "\n" + date : "");
    });
    const ink = () => colour("--quiet"), grid = { stroke: () => colour("--line"), width: 1 }, ticks = { ...grid, size: 4 };
    const font = "12px system-ui, sans-serif";
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.font = font;
    const plot = new uPlot({
      width: place.clientWidth || 320, height: place.clientHeight || 240, series, bands,
      legend: { show: false }, padding: [8, isTime ? 28 : Math.max(12, canvas.measureText(number(last)).width / 2 + 4), 0, 0],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: {
        x: { time: isTime, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: { range: (u, low, high) => {
          const known = spec.level ? [Math.min(low, spec.level[0]), Math.max(high, spec.level[0])] : [low, high];
          const [from, to] = uPlot.rangeNum(known[0] ?? 0, known[1] ?? 1, 0.08, false);
          return [spec.limits[0] ?? from, spec.limits[1] ?? to];
        } },
      },
      axes: [
        { stroke: ink, grid, ticks, font, label: isTime ? "time (UTC)" : spec.xTitle, labelFont: font, labelSize: 18, labelGap: 0, size: isTime ? 44 : 30, space: isTime ? 95 : 60, values: isTime ? clock : (u, splits) => splits.map(number) },
        { stroke: ink, grid, ticks, font, incrs: isCount ? [1, 2, 5, 10, 20, 50, 100] : undefined, values: (u, splits) => splits.map(number),
          size: (u, values) => (values ? Math.max(36, ...values.map((v) => canvas.measureText(v).width + 14)) : 46) },
      ],
      cursor: { sync: { key: spec.xTitle, setSeries: false }, drag: { x: true, y: false }, points: { size: 7 } },
      hooks: { drawAxes: [drawMarks], setCursor: [tell], setScale: [(u) => (all.hidden = u.scales.x.min <= first && u.scales.x.max >= last)] },
    }, data, place);

    plot.zoomTo = (from, to) => plot.setScale("x", { min: Math.max(first, from), max: Math.min(last, to) });
    plot.xTitle = spec.xTitle;
    // All charts over the same x, as dragging does by itself.
    const zoomTo = (from, to) => plots.filter((one) => one.xTitle === spec.xTitle).forEach((one) => one.zoomTo(from, to));
    const showAll = () => zoomTo(-Infinity, Infinity);
    const all = element("button", { type: "button", className: "all", textContent: "show all", hidden: true, onclick: showAll });
    for (const one of shown) {
      const button = element("button", { type: "button" }, sample(one.curve), one.curve.label, one.output);
      button.setAttribute("aria-pressed", "true");
      button.onclick = () => {
        const on = button.getAttribute("aria-pressed") === "false";
        button.setAttribute("aria-pressed", String(on));
        one.numbers.forEach((n) => plot.setSeries(n, { show: on }));
      };
      keys.append(button);
    }
    keys.append(all);
    place.addEventListener("keydown", (event) => {
      const { min, max } = plot.scales.x, i = plot.cursor.idx;
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity }[event.key];
      if (move !== undefined) {
        const from = i === null || i === undefined ? (move > 0 ? -1 : spec.x.length) : i;
        const to = Math.min(spec.x.length - 1, Math.max(0, from + move));
        plot.setCursor({ left: plot.valToPos(spec.x[to], "x"), top: plot.bbox.height / devicePixelRatio / 2 }, true, true);
      } else if (event.key === "+" || event.key === "-") {
        const middle = i ? spec.x[i] : (min + max) / 2, half = ((max - min) / 2) * (event.key === "+" ? 0.5 : 2);
        zoomTo(middle - half, middle + half);
      } else if (event.key === "Escape") showAll();
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => place.clientWidth && plot.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
    figure.dataset.drawn = "true";
    return plot;
  }

  const plots = [...document.querySelectorAll("figure.chart")].map(build);
  // Canvases know no style sheets: they are drawn again in the theme's, and in the paper's, colours.
  const redraw = () => plots.forEach((plot) => plot.redraw(false, true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);
})();
