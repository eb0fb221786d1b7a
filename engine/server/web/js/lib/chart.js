// uPlot as a component: made anew when its shape, its colours or its size in kind change, else only given new data.
import { html, signal, useEffect, useRef } from "./html.js";
import { colour } from "./colours.js";

/** Grows when colours have changed: another theme, forced colours. */
export const colours = signal(0);
for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
  matchMedia(query).addEventListener("change", () => (colours.value += 1));
}

const FONT = "11px ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace";

/** Axes as all charts have them. format: of values at the left. */
export function axes(format, size = 62) {
  const line = { stroke: () => colour("grid"), width: 1 };
  const common = { stroke: () => colour("dim"), font: FONT, grid: line, ticks: { ...line, size: 4 } };
  const ago = (_, splits) => splits.map((at) => (at === 0 ? "now" : String(at)));
  return [
    { ...common, values: ago, size: 24, space: 60, grid: { show: false } },
    { ...common, values: (_, splits) => splits.map(format), size, space: 28 },
  ];
}

/** shape: a word that says when the chart is another one; options(): of uPlot but its size; data: its columns;
 *  label: the chart in words. */
export function Chart({ shape, options, data, height, label }) {
  const place = useRef(null);
  const plot = useRef(null);
  const look = colours.value;

  useEffect(() => {
    const frame = place.current;
    const width = () => Math.max(120, Math.floor(frame.clientWidth));
    plot.current = new globalThis.uPlot(
      {
        width: width(), height, legend: { show: false }, padding: [8, 16, 0, 0],
        cursor: { x: true, y: false, points: { show: false }, drag: { x: false, y: false } },
        ...options(),
      },
      data, frame,
    );
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: width(), height }));
    observer.observe(frame);
    return () => {
      observer.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, look, height]);

  useEffect(() => plot.current?.setData(data), [data]);
  return html`<div class="chart" role="img" aria-label=${label} style=${{ minHeight: `${height}px` }} ref=${place}></div>`;
}
