// The map: points by class, told apart by shape and colour; what is encircled can be split off or named.
const desk = document.getElementById("desk");
const canvas = document.getElementById("map");
const none = document.getElementById("none");
const tip = document.getElementById("tip");
const pen = canvas.getContext("2d");
const SIDE = 4095;
const SHAPES = [
  (to, x, y, r) => to.arc(x, y, r, 0, 7),
  (to, x, y, r) => to.rect(x - r, y - r, 2 * r, 2 * r),
  (to, x, y, r) => { to.moveTo(x, y - 1.3 * r); to.lineTo(x + 1.2 * r, y + r); to.lineTo(x - 1.2 * r, y + r); },
  (to, x, y, r) => { to.moveTo(x, y - 1.4 * r); to.lineTo(x + 1.4 * r, y); to.lineTo(x, y + 1.4 * r); to.lineTo(x - 1.4 * r, y); },
  (to, x, y, r) => { to.moveTo(x, y + 1.3 * r); to.lineTo(x + 1.2 * r, y - r); to.lineTo(x - 1.2 * r, y - r); },
  (to, x, y, r) => { to.rect(x - 1.4 * r, y - r / 2, 2.8 * r, r); to.rect(x - r / 2, y - 1.4 * r, r, 2.8 * r); },
];
// Okabe and Ito's colours, which people with any kind of sight tell apart.
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#3d8fd1", "#d55e00", "#cc79a7"];
const LOOSE = "#8b95a1";
const THUMBS = 24;
const NEAR_PX = 12;

let data = null;
let zoom = 1;
let centre = [SIDE / 2, SIDE / 2];
let chosen = new Set();  // places in data.ids
let hidden = new Set();  // places in data.classes, -1 for what has no class
let lasso = null;
let hovered = -1;
let wanted = false;

const element = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const scale = () => [canvas.clientWidth / SIDE * zoom, canvas.clientHeight / SIDE * zoom];
const toScreen = (x, y) => {
  const [sx, sy] = scale();
  return [(x - centre[0]) * sx + canvas.clientWidth / 2, (y - centre[1]) * sy + canvas.clientHeight / 2];
};
const toMap = (px, py) => {
  const [sx, sy] = scale();
  return [(px - canvas.clientWidth / 2) / sx + centre[0], (py - canvas.clientHeight / 2) / sy + centre[1]];
};
const colourOf = (place) => (place < 0 ? LOOSE : COLOURS[place % COLOURS.length]);
const shapeOf = (place) => SHAPES[place < 0 ? 0 : place % SHAPES.length];  // 6 shapes and 7 colours: 42 pairs
const nameOf = (place) => (place < 0 ? _("no class") : data.classes[place].name || data.classes[place].id);

const draw = () => {
  wanted = false;
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!data) return;
  const radius = Math.max(2, Math.min(6, 40 / Math.sqrt(data.ids.length) * Math.sqrt(zoom) + 2));
  for (const isChosen of [false, true])
    for (let place = -1; place < data.classes.length; place++) {
      if (hidden.has(place)) continue;
      pen.beginPath();
      const mark = shapeOf(place);
      const size = (place < 0 ? 0.6 : 1) * radius + (isChosen ? 1 : 0);
      for (const point of data.members[place + 1]) {
        if (chosen.has(point) !== isChosen) continue;
        const [x, y] = toScreen(data.x[point], data.y[point]);
        if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
        pen.moveTo(x + size, y);
        mark(pen, x, y, size);
        pen.closePath();
      }
      pen.globalAlpha = chosen.size && !isChosen ? 0.35 : 0.9;
      pen.fillStyle = colourOf(place);
      pen.fill();
      if (isChosen) {
        pen.strokeStyle = "#fff";
        pen.lineWidth = 1.5;
        pen.stroke();
      }
    }
  pen.globalAlpha = 1;
  if (lasso) {
    pen.beginPath();
    lasso.forEach(([x, y], step) => (step ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.fillStyle = "#ffffff22";
    pen.fill();
    pen.strokeStyle = "#fff";
    pen.lineWidth = 2;
    pen.setLineDash([6, 4]);
    pen.stroke();
    pen.setLineDash([]);
  }
  if (hovered >= 0) {
    const [x, y] = toScreen(data.x[hovered], data.y[hovered]);
    pen.beginPath();
    pen.arc(x, y, radius + 5, 0, 7);
    pen.strokeStyle = "#fff";
    pen.lineWidth = 2;
    pen.stroke();
  }
};
const redraw = () => {
  if (wanted) return;
  wanted = true;
  requestAnimationFrame(draw);
};

// What is chosen
const isInside = (x, y, polygon) => {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [polygon[i], polygon[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
};
const byClass = () => {
  const counts = new Map();
  for (const point of chosen) counts.set(data.of[point], (counts.get(data.of[point]) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
};
const split = document.getElementById("split");
const of = document.getElementById("of");
const picked = () => [...chosen].filter((point) => data.of[point] === Number(of.value)).map((point) => data.ids[point]);
const sayMeans = () => {
  const place = Number(of.value);
  const count = picked().length;
  const total = data.members[place + 1].length;
  document.getElementById("means").textContent =
    _("%(count)s of the %(total)s regions of %(name)s on this map", { count: numeral(count), total: numeral(total), name: nameOf(place) });
  for (const id of ["only", "alike"]) document.getElementById(id).disabled = count === total;
};
const showChosen = () => {
  const counts = byClass();
  const words = counts.map(([place, count]) => _("%(count)s of %(name)s", { count: numeral(count), name: nameOf(place) }));
  document.getElementById("chosen").textContent = chosen.size
    ? _("%(count)s chosen: %(words)s", { count: numeral(chosen.size), words: words.join(", ") }) : _("Nothing is chosen");
  const step = Math.max(1, Math.ceil(chosen.size / THUMBS));
  const shown = [...chosen].filter((_, order) => order % step === 0);
  document.getElementById("thumbs").replaceChildren(
    ...shown.map((point) => element("img", "", { alt: nameOf(data.of[point]), width: 56, height: 56, src: `/regions/${data.ids[point]}/crop.jpg` }))
  );
  const classes = counts.filter(([place]) => place >= 0);
  if (split) {
    split.hidden = !classes.length;
    of.replaceChildren(...classes.map(([place, count]) => element("option", `${nameOf(place)} (${count})`, { value: place })));
    if (classes.length) sayMeans();
  }
  redraw();
};
const choose = (points, isAdded) => {
  chosen = new Set(isAdded ? [...chosen, ...points] : points);
  showChosen();
};
split?.addEventListener("submit", (event) => {
  const id = data.classes[Number(of.value)].id;
  const isName = event.submitter?.id === "rename";
  split.action = `/classes/${encodeURIComponent(id)}/${isName ? "name" : "split"}`;
  split.elements.regions.value = isName ? "" : picked().join(",");
  const name = split.elements.name;
  if (isName) {
    if (!name.value.trim()) {
      event.preventDefault();
      name.focus();
      return;
    }
    const value = element("input", "", { type: "hidden", name: "value", value: name.value });
    split.append(value);
    setTimeout(() => value.remove());
  }
});
of?.addEventListener("change", sayMeans);

// The pointer and the keys
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const nearest = (px, py) => {
  let best = -1;
  let distance = NEAR_PX * NEAR_PX;
  for (let point = 0; point < data.ids.length; point++) {
    if (hidden.has(data.of[point])) continue;
    const [x, y] = toScreen(data.x[point], data.y[point]);
    const apart = (x - px) ** 2 + (y - py) ** 2;
    if (apart < distance) [best, distance] = [point, apart];
  }
  return best;
};
const hover = (point, px, py) => {
  if (point !== hovered) {
    hovered = point;
    if (point >= 0) {
      tip.querySelector("img").src = `/regions/${data.ids[point]}/crop.jpg`;
      tip.querySelector("span").textContent = _("%(name)s, region %(id)s", { name: nameOf(data.of[point]), id: data.ids[point] });
    }
    redraw();
  }
  tip.hidden = point < 0;
  if (point < 0) return;
  const box = canvas.getBoundingClientRect();
  tip.style.left = `${px > box.width / 2 ? px - tip.offsetWidth - 16 : px + 16}px`;
  tip.style.top = `${Math.max(0, Math.min(box.height - tip.offsetHeight, py - 40))}px`;
};
canvas.addEventListener("pointerdown", (event) => {
  if (!data || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  lasso = [at(event)];
  hover(-1);
});
canvas.addEventListener("pointermove", (event) => {
  if (!data) return;
  const [px, py] = at(event);
  if (!lasso) return hover(nearest(px, py), px, py);
  lasso.push([px, py]);
  redraw();
});
canvas.addEventListener("pointerup", (event) => {
  if (!lasso) return;
  const polygon = lasso.map(([x, y]) => toMap(x, y));
  const [px, py] = at(event);
  const isClick = lasso.every(([x, y]) => Math.hypot(x - px, y - py) < 4);
  lasso = null;
  const points = [];
  if (isClick) {
    const point = nearest(px, py);
    if (point >= 0) points.push(point);
  } else
    for (let point = 0; point < data.ids.length; point++)
      if (!hidden.has(data.of[point]) && isInside(data.x[point], data.y[point], polygon)) points.push(point);
  choose(points, event.shiftKey);
});
canvas.addEventListener("pointercancel", () => { lasso = null; redraw(); });
canvas.addEventListener("pointerleave", () => hover(-1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const [px, py] = at(event);
  const before = toMap(px, py);
  zoom = Math.max(1, Math.min(60, zoom * Math.exp(-event.deltaY / 400)));
  const after = toMap(px, py);
  centre = zoom === 1 ? [SIDE / 2, SIDE / 2] : [centre[0] + before[0] - after[0], centre[1] + before[1] - after[1]];
  redraw();
}, { passive: false });
const reset = () => {
  zoom = 1;
  centre = [SIDE / 2, SIDE / 2];
  redraw();
};
document.getElementById("reset").addEventListener("click", reset);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (event.key === "Escape") choose([], false);
  if (event.key === "0") reset();
});
const filters = document.getElementById("filters");
filters.addEventListener("change", () => filters.requestSubmit());
new ResizeObserver(redraw).observe(canvas);

// The key of the map: a class is hidden and shown, and chosen as a whole
const showKey = () => {
  const list = document.getElementById("key");
  const places = [...data.classes.keys(), -1].filter((place) => data.members[place + 1].length);
  places.sort((a, b) => data.members[b + 1].length - data.members[a + 1].length);
  list.replaceChildren(
    ...places.map((place) => {
      const line = element("li", "");
      const sign = element("canvas", "", { width: 24, height: 24, "aria-hidden": "true" });
      const small = sign.getContext("2d");
      small.beginPath();
      shapeOf(place)(small, 12, 12, 7);
      small.fillStyle = colourOf(place);
      small.fill();
      const all = element("button", `${nameOf(place)} · ${numeral(data.members[place + 1].length)}`, { type: "button", title: _("choose all of it") });
      all.addEventListener("click", () => choose(data.members[place + 1], false));
      const seen = element("button", _("hide"), { type: "button", "aria-pressed": "false", "aria-label": _("hide %(name)s", { name: nameOf(place) }) });
      seen.addEventListener("click", () => {
        const isHidden = !hidden.has(place);
        if (isHidden) hidden.add(place);
        else hidden.delete(place);
        seen.setAttribute("aria-pressed", isHidden);
        choose([...chosen].filter((point) => !hidden.has(data.of[point])), false);
      });
      line.append(sign, all, seen);
      return line;
    })
  );
};
const load = async () => {
  none.textContent = _("The map is being made …");
  const query = desk.dataset.class ? `?class=${encodeURIComponent(desk.dataset.class)}` : "";
  const answer = await fetch(`/api/map${query}`).catch(() => null);
  if (answer && (answer.status === 401 || answer.redirected)) {
    location.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    return;
  }
  if (!answer || !answer.ok) {
    const { error } = answer ? await answer.json().catch(() => ({ error: _("the console answers %(status)s", { status: answer.status }) })) : { error: _("the console does not answer") };
    none.textContent = _("%(error)s: load the page again", { error });
    return;
  }
  const content = await answer.json();
  content.members = [[], ...content.classes.map(() => [])];
  content.of.forEach((place, point) => content.members[place + 1].push(point));
  data = content;
  none.textContent = data.ids.length ? "" : _("No region yet: they come with the first frames that are not accepted.");
  desk.dataset.ready = "yes";
  showKey();
  showChosen();
};
load();
