// Numbers as people read them. Units are decimal, as everywhere in headrace: 1 GB is 1e9 bytes.

/** Three digits that count: 0.123, 1.23, 12.3, 123, 1,234. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1000) return String(Number(value.toPrecision(digits)));
  return Math.round(value).toLocaleString("en");
}

export function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

const STEPS = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];

export function bytes(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const [step, unit] = STEPS.find(([step]) => Math.abs(value) >= step) ?? [1, "B"];
  return `${number(value / step)} ${unit}`;
}

export function percent(share) {
  return share === null || !Number.isFinite(share) ? "–" : `${number(100 * share, share < 0.1 ? 2 : 3)} %`;
}

/** 350 ms, 4.2 s, 3 min 20 s, 2 h 5 min. */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value < 1) return `${number(value * 1e3)} ms`;
  if (value < 60) return `${number(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
}

export function milliseconds(value) {
  return value === null || value === undefined ? "–" : `${number(value)} ms`;
}

const TIERS = {
  cpu_dram: "RAM", gpu_hbm: "VRAM", gpu1_hbm: "VRAM 2", disk: "disk", net: "hosts", h2d: "RAM → GPU", d2h: "GPU → RAM",
  d2d: "GPU → GPU 2", cpu: "RAM", gpu0: "VRAM", gpu1: "VRAM 2",
};

/** The name of a memory or link for people. */
export function tierName(tier) {
  return TIERS[tier] ?? tier;
}

export function groupName(group) {
  return group === "kv" ? "KV" : group;
}
