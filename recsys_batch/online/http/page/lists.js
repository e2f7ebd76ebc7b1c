// Lists of items: rows are kept and moved, so that the eye can follow them and the keyboard's focus stays where it is.

const still = matchMedia("(prefers-reduced-motion: reduce)");

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function show(list, rows, { empty, onPick, onDrop }) {
  const focused = document.activeElement;
  const place = [...list.children].indexOf(focused?.closest?.("li"));
  const inside = list.contains(focused);
  const old = new Map([...list.children].filter((li) => li.dataset.id !== undefined).map((li) => [li.dataset.id, li]));
  const tops = new Map([...old].map(([id, li]) => [id, li.getBoundingClientRect().top]));
  const base = list.getBoundingClientRect().top;
  const lines = rows.map((row) => {
    const li = old.get(String(row.id)) ?? line(row, onPick, onDrop);
    fill(li, row);
    return li;
  });
  list.replaceChildren(...(lines.length ? lines : [element("li", { className: "empty", textContent: empty })]));
  if (inside) (focused.isConnected ? focused : nearest(list, place))?.focus();
  move(lines, tops, base, list);
}

function line(row, onPick, onDrop) {
  const id = String(row.id);
  const li = element("li");
  li.dataset.id = id;
  const pick = element("button", { type: "button", className: "pick" }, element("b"), element("small"));
  pick.addEventListener("click", () => onPick(id));
  if (row.rank) li.append(element("span", { className: "rank" }));
  li.append(pick);
  if (!onDrop) return li;
  li.append(element("span", { className: "move" }));
  const drop = element("button", { type: "button", className: "drop", textContent: "×", title: "Exclude" });
  drop.addEventListener("click", () => onDrop(id));
  li.append(drop);
  return li;
}

function fill(li, row) {
  if (row.rank) li.querySelector(".rank").textContent = row.rank;
  li.querySelector("b").textContent = row.title;
  li.querySelector("small").textContent = row.detail;
  const pick = li.querySelector(".pick");
  pick.title = `${row.title}\n${row.detail}`;
  pick.setAttribute("aria-label", `Put ${row.title} into the session${row.movedInWords ? `, ${row.movedInWords}` : ""}`);
  const moved = li.querySelector(".move");
  if (!moved) return;
  li.querySelector(".drop").setAttribute("aria-label", `Exclude ${row.title}`);
  moved.textContent = row.moved ?? "";
  moved.className = `move ${row.direction ?? ""}`;
  moved.title = row.movedInWords ?? "";
  li.querySelector(".why")?.remove();
  if (row.contributions) li.append(why(row.contributions, row.scale));
}

function why(contributions, scale) {
  const list = element("dl", { className: "why" });
  for (const [group, value] of Object.entries(contributions)) {
    if (value === 0) continue;
    const bar = element("i", { className: value < 0 ? "less" : "" });
    const width = scale ? (50 * Math.abs(value)) / scale : 0;
    bar.style.width = `${width}%`;
    bar.style.left = `${value < 0 ? 50 - width : 50}%`;
    const track = element("span", { className: "track", ariaHidden: "true" }, bar);
    const number = `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(3)}`;
    list.append(element("dt", { textContent: group }), element("dd", {}, track), element("dd", { className: "number", textContent: number }));
  }
  return list;
}

function nearest(list, place) {
  const buttons = list.querySelectorAll(".pick");
  return buttons[Math.min(Math.max(place, 0), buttons.length - 1)];
}

function move(lines, tops, base, list) {
  if (still.matches) return;
  const shift = list.getBoundingClientRect().top - base;
  for (const li of lines) {
    const before = tops.get(li.dataset.id);
    if (before === undefined) {
      if (tops.size) li.animate([{ opacity: 0 }, { opacity: 1 }], 250);
      continue;
    }
    const distance = before + shift - li.getBoundingClientRect().top;
    if (distance) li.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], { duration: 350, easing: "ease-out" });
  }
}

export function chips(list, ids, title, verb, onRemove) {
  const inside = list.contains(document.activeElement);
  const place = [...list.children].indexOf(document.activeElement?.closest?.("li"));
  list.replaceChildren(
    ...ids.map((id) => {
      const button = element("button", { type: "button", textContent: title(id), title: "Remove" });
      button.setAttribute("aria-label", `${verb} ${title(id)}`);
      button.addEventListener("click", () => onRemove(id));
      return element("li", {}, button);
    }),
  );
  if (inside) list.querySelectorAll("button")[Math.max(0, Math.min(place, ids.length - 1))]?.focus();
}
