// What was drawn in this tab, newest first, kept in sessionStorage as far as it has room.

const STORE = "ppvilg.history";
const LONGEST = 60;

let entries = load();

export const all = () => entries;

export function add(entry) {
  entries = [entry, ...entries.filter((other) => other.id !== entry.id)].slice(0, LONGEST);
  save();
}

export function clear() {
  entries = [];
  sessionStorage.removeItem(STORE);
}

function load() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? [];
  } catch {
    return [];
  }
}

// When there is no room left, the oldest are forgotten from the store first.
export function save() {
  for (let kept = entries.length; kept > 0; kept = Math.floor(kept / 2)) {
    try {
      sessionStorage.setItem(STORE, JSON.stringify(entries.slice(0, kept)));
      return;
    } catch {
      continue;
    }
  }
}
