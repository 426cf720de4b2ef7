/** Numbers, sizes, spans and names as people read them. Pure. */

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });

export const count = (value) => number.format(value);

/** 1,292,922,880 as "1.29 GB", as disks and cards are sold. */
export function bytes(value) {
  let rest = value;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(rest) < 1000 || unit === "GB") return `${rest < 10 && unit !== "B" ? rest.toFixed(1) : Math.round(rest)} ${unit}`;
    rest /= 1000;
  }
}

/** A span: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "4 d". */
export function seconds(value) {
  if (value < 10) return `${(Math.round(value * 10) / 10).toString()} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return parts(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86_400) return parts(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return parts(Math.floor(whole / 86_400), "d", Math.floor((whole % 86_400) / 3600), "h");
}

function parts(large, largeUnit, small, smallUnit) {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}

/** The time of day of *at*; with the day where it is not the day of *nowMs*. */
export function time(at, nowMs) {
  const date = new Date(at);
  const text = clock.format(date);
  return date.toDateString() === new Date(nowMs).toDateString() ? text : `${day.format(date)}, ${text}`;
}

/** A name of the API as a label: `num_frames` as "Num frames", `cfg` as "CFG". */
export function label(name) {
  if (name.length <= 3) return name.toUpperCase();
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}
