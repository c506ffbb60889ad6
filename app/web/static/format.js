// Numbers, times and words as people read them.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function count(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) < 100000 ? WHOLE.format(value) : SHORT.format(value);
}

export function rate(value) {
  return value < 10 && value > 0 ? value.toFixed(1) : count(Math.round(value));
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  let left = value;
  while (left >= 1024 && at < units.length - 1) {
    left /= 1024;
    at += 1;
  }
  return `${left >= 100 || at === 0 ? Math.round(left) : left.toFixed(1)} ${units[at]}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(at) {
  const time = new Date(at);
  if (Number.isNaN(time.getTime())) return "–";
  const day = new Date().toDateString() === time.toDateString() ? "" : `${time.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} `;
  return day + time.toLocaleTimeString("en-GB", { hour12: false });
}

export function list(values) {
  return values.length ? values.join(", ") : "–";
}
