// Colours by what they mean. Okabe and Ito's palette, which people tell apart who see few colours; every use has a name
// or a number beside it.

export const theme = { change: 0 };

const probe = document.createElement("span");
probe.hidden = true;
probe.className = "probe";

/** A custom property of the style sheet as a colour that a canvas takes. */
export function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const GROUPS = ["experts", "unchosen", "dense", "kv", "head", "routing", "inputs", "samples"];
const TIERS = ["cpu_dram", "gpu_hbm", "gpu1_hbm"];
const LINKS = ["h2d", "d2h", "d2d", "disk", "net"];

/** Series of a stack: {name, tier, group, indices of columns, variable of its colour}, memories first. */
export function series(columns) {
  const found = new Map();
  columns.forEach((column, i) => {
    const [tier, group] = column.split(".");
    const isLink = LINKS.includes(tier);
    const kind = isLink ? "" : group === "unchosen" ? "experts" : group;
    const key = `${tier}.${kind}`;
    if (!found.has(key)) {
      const shade = isLink ? `link-${tier}` : `${kind}-${Math.max(0, TIERS.indexOf(tier))}`;
      found.set(key, { key, tier, group: kind, columns: [], variable: shade });
    }
    found.get(key).columns.push(i);
  });
  const place = (one) => [...TIERS, ...LINKS].indexOf(one.tier) * 10 + GROUPS.indexOf(one.group);
  return [...found.values()].sort((a, b) => place(a) - place(b));
}
