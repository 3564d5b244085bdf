// The review page: one frame at a time, one key for each judgement.
const desk = document.getElementById("desk");
const { queue, token } = desk.dataset;
const isOffered = desk.dataset.offered === "yes";
const mayJudge = desk.dataset.may === "yes";
const filters = new URLSearchParams(location.search);
const view = desk.querySelector(".view svg");
const none = document.getElementById("none");
const problem = document.getElementById("problem");
const LOW_WATER = 5;  // frames left when more are asked for
const LOOK_AGAIN_MS = 5000;
const RATES_MS = 60000;
const COPY_STEP_MS = 500;
const COPY_STEPS = 60;  // half a minute: discovery copies a frame within a second, unless it or a store is away

const WORDS = {
  alarm: { question: _("Does it show a defect?"), real: _("Real defect"), false: _("False alarm") },
  audit: { question: _("It was accepted. Does it show a defect all the same?"), real: _("Missed defect"), false: _("Good part") },
};
const KINDS = { "near-miss": _("accepted, a near miss"), accepted: _("accepted, random sample"), picked: _("accepted") };

let items = [];
let place = 0;  // of the frame that is shown
let isDone = false;  // the server has no more frames behind the last item
let isAsking = false;

const element = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const address = (path, more = {}) => {
  const query = new URLSearchParams(filters);
  query.delete("frame");
  query.set("queue", queue);
  for (const [key, value] of Object.entries(more)) query.set(key, value);
  return `${path}?${query}`;
};
const complain = (text) => {
  problem.textContent = text || "";
  problem.hidden = !text;
};
const ask = async (url, options) => {
  const answer = await fetch(url, options).catch(() => null);
  if (!answer) throw new Error(_("the console does not answer: nothing was changed, try again"));
  if (answer.status === 401 || answer.redirected) {
    location.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    throw new Error(_("log in again"));
  }
  const content = await answer.json().catch(() => ({ error: _("the console answers %(status)s", { status: answer.status }) }));
  if (!answer.ok) throw new Error(content.error);
  return content;
};
const send = (path, fields) => {
  const who = document.getElementById("who");
  const body = new URLSearchParams({ token, ...(who ? { who: who.value } : {}), ...fields });
  return ask(address(path), { method: "POST", body });
};

// What is shown
const drawPicture = (item) => {
  const [width, height] = item.size;
  const href = `/pictures/${encodeURIComponent(item.frame)}`;
  const parts = [node("image", { href, width, height })];
  if (item.has_heat)
    parts.push(node("image", { class: "heat-layer", width, height, preserveAspectRatio: "none", href: `/defects/${encodeURIComponent(item.frame)}/layer.png` }));
  for (const [x, y, w, h] of item.boxes)
    for (const kind of ["back", "front"]) parts.push(node("rect", { class: kind, x, y, width: w, height: h }));
  view.setAttribute("viewBox", `0 0 ${width} ${height}`);
  view.setAttribute("aria-label", _("frame %(frame)s of %(camera)s", { frame: item.frame, camera: item.camera }));
  view.replaceChildren(...parts);
  parts[0].addEventListener("error", () => { none.textContent = _("the picture cannot be loaded"); });
};
const drawFacts = (item) => {
  const facts = [
    [_("camera"), item.camera],
    [_("captured"), stampOf(new Date(item.captured_at))],
    [_("score"), numeral(item.score, 2)],
    [_("p-value"), item.p_value.toLocaleString(LANGUAGE, { maximumSignificantDigits: 3 })],
    [_("class"), item.class ? element("a", item.class.name || item.class.id, { href: `/classes/${encodeURIComponent(item.class.id)}` }) : "–"],
    [_("look-alike group"), item.group],
    [_("part"), item.part],
    [_("lot"), item.lot],
    [_("shift"), item.shift],
    [_("model"), item.model],
    [_("frame"), item.has_heat ? element("a", item.frame, { href: `/defects/${encodeURIComponent(item.frame)}` }) : item.frame],
  ];
  document.getElementById("facts").replaceChildren(
    ...facts.filter(([, value]) => value !== null).flatMap(([name, value]) => {
      const content = element("dd", "");
      content.append(value);
      return [element("dt", name), content];
    })
  );
};
const draw = () => {
  const item = items[place];
  const fact = desk.querySelector(".fact");
  const buttons = desk.querySelectorAll("[data-judgement]");
  for (const button of buttons) button.disabled = !item;
  none.textContent = "";
  if (!item) {
    view.replaceChildren();
    view.setAttribute("aria-label", _("no frame"));
    delete desk.dataset.decision;
    fact.querySelector("svg").replaceChildren();
    fact.querySelector(".word").textContent = "";
    document.getElementById("facts").replaceChildren();
    const skipped = items.length;
    document.getElementById("question").textContent = isDone ? _("No frame waits here") : _("The next frames are being read");
    none.textContent = !isDone ? ""
      : skipped ? ngettext("%(number)s frame of this list is not judged yet: N begins again", "%(number)s frames of this list are not judged yet: N begins again", skipped)
      : _("All frames of this list are judged. New ones appear by themselves.");
    return;
  }
  const isAlarm = queueOf(item) === "alarms";
  const words = isAlarm ? WORDS.alarm : WORDS.audit;
  const decision = isAlarm ? item.stratum : "accept";
  desk.dataset.decision = decision;
  fact.querySelector("svg").replaceChildren(...shape(decision));
  fact.querySelector(".word").textContent = KINDS[item.stratum] || wordOf("kind of frame", item.stratum).replace("-", " ");
  document.getElementById("question").textContent = words.question;
  for (const button of buttons) if (words[button.dataset.judgement]) button.querySelector("span").textContent = words[button.dataset.judgement];
  drawPicture(item);
  drawFacts(item);
  const coming = items[place + 1];
  if (coming) new Image().src = `/pictures/${encodeURIComponent(coming.frame)}`;  // so that it is there at once
};
const queueOf = (item) => (item.stratum in KINDS ? "audit" : "alarms");
const drawAround = ({ waiting, history }) => {
  for (const count of document.querySelectorAll("[data-waiting]")) count.textContent = waiting[count.dataset.waiting];
  document.title = document.title.replace(/^(\(\d+\) )?/, waiting[queue] ? `(${waiting[queue]}) ` : "");
  document.getElementById("history").replaceChildren(
    ...history.map((entry) => {
      const line = element("li", "");
      const link = element("a", entry.frame, { href: `/review?frame=${encodeURIComponent(entry.frame)}` });
      line.append(element("b", wordOf("judgement", entry.judgement), { class: `said ${entry.judgement}` }), link, element("span", `${entry.who}, ${shortOf(new Date(entry.at))}`, { class: "soft" }));
      if (entry.why) line.append(element("q", entry.why));
      return line;
    })
  );
};

// What the judgements tell of the line: of the camera and the time that are chosen
const RATES = [
  ["overkill", _("overkill"), _("share of good parts that were not accepted")],
  ["escape", _("escapes"), _("share of defective parts that were accepted")],
  ["escapes_per_accepted", _("of the accepted"), _("share of accepted parts that show a defect")],
];
const percent = (share) => `${numeral(100 * share, share >= 0.1 ? 0 : share >= 0.01 ? 1 : 2)} %`;
const drawRates = async () => {
  const list = document.getElementById("rates");
  if (!list) return;
  const { rates, strata } = await ask(address("/api/review/rates"));
  list.replaceChildren(
    ...RATES.flatMap(([name, words, meaning]) => {
      const { value, low, high } = rates[name];
      const content = element("dd", value === null ? _("too few are judged") : `${percent(value)} `);
      if (value !== null) content.append(element("span", _("%(low)s to %(high)s", { low: percent(low), high: percent(high) }), { class: "soft" }));
      return [element("dt", words, { title: meaning }), content];
    })
  );
  const judged = strata.reduce((sum, part) => sum + part.judged, 0);
  const all = strata.reduce((sum, part) => sum + part.frames, 0);
  list.title = _("95 %% intervals, from %(judged)s judged frames of %(all)s", { judged: numeral(judged), all: numeral(all) });
};

// What people do
const more = async () => {
  if (isDone || !isOffered) return;
  const last = items[items.length - 1];
  const state = await ask(address("/api/review", last ? { after: last.frame } : {}));
  const known = new Set(items.map((item) => item.frame));
  const fresh = state.items.filter((item) => !known.has(item.frame));
  items.push(...fresh);
  isDone = state.items.length === 0;
  drawAround(state);
};
const ahead = async () => {
  if (items.length - place <= LOW_WATER) await more();
};
const attempt = async (work) => {
  if (isAsking) return;  // a key that is held down judges one frame
  isAsking = true;
  try {
    await work();
    complain("");
  } catch (error) {
    complain(error.message);
  } finally {
    isAsking = false;
  }
};
const say = (text) => { document.getElementById("said").textContent = text; };

const judge = (judgement) =>
  attempt(async () => {
    const item = items[place];
    if (!item || !mayJudge) return;
    const why = document.getElementById("why");
    const state = await send("/api/review/judge", { frame: item.frame, judgement, why: why.value, offered: isOffered ? "yes" : "no" });
    why.value = "";
    say(_("%(frame)s is judged: %(judgement)s", { frame: item.frame, judgement: wordOf("judgement", judgement) }));
    if (isOffered) items.splice(place, 1);
    drawAround(state);
    await ahead();
    draw();
  });
const undo = () =>
  attempt(async () => {
    if (!mayJudge) return;
    const state = await send("/api/review/undo", {});
    say(_("%(frame)s is no longer judged: %(judgement)s", { frame: state.entry.frame, judgement: wordOf("judgement", state.entry.judgement) }));
    const back = state.items.filter((item) => !isOffered || queueOf(item) === queue);
    if (isOffered && back.length) {
      items = items.filter((item) => item.frame !== back[0].frame);
      place = Math.min(place, items.length);
      items.splice(place, 0, ...back);
    }
    drawAround(state);
    draw();
  });
const next = () =>
  attempt(async () => {
    if (!isOffered) location.href = "/review";
    else if (place < items.length) place += 1;
    else {
      items = [];
      place = 0;
      isDone = false;
    }
    await ahead();
    draw();
  });
const previous = () =>
  attempt(async () => {
    place = Math.max(0, place - 1);
    draw();
  });
const heat = document.getElementById("heat");
const toggleHeat = () => {
  const wanted = heat.getAttribute("aria-pressed") !== "true";
  heat.setAttribute("aria-pressed", wanted);
  desk.classList.toggle("no-heat", !wanted);
};

const KEYS = { r: () => judge("real"), f: () => judge("false"), u: () => judge("unsure"), n: next, z: undo, h: toggleHeat, arrowright: next, arrowleft: previous };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape" && event.target.closest("input")) event.target.blur();
  if (event.target.closest("input, select, textarea")) return;
  const work = KEYS[event.key.toLowerCase()];
  if (!work) return;
  event.preventDefault();
  work();
});
for (const button of desk.querySelectorAll("[data-judgement]")) button.addEventListener("click", () => judge(button.dataset.judgement));
document.getElementById("next").addEventListener("click", next);
document.getElementById("undo")?.addEventListener("click", undo);
heat.addEventListener("click", toggleHeat);
const form = document.getElementById("filters");
form?.addEventListener("change", () => form.requestSubmit());
for (const link of document.querySelectorAll("[data-queue]:not(#desk)")) {
  const kept = new URLSearchParams(filters);
  for (const name of ["kind", "class", "frame"]) kept.delete(name);
  kept.set("queue", link.dataset.queue);
  link.href = `/review?${kept}`;
}

const state = JSON.parse(desk.dataset.state);
items = state.items;
isDone = !isOffered || items.length === 0;
drawAround(state);
draw();

// A frame of the last minutes that has no picture yet: it is asked for, and waited for.
const fetchPicture = async (frame) => {
  const question = document.getElementById("question");
  question.textContent = "";
  none.textContent = mayJudge ? _("the picture of this frame is being fetched") : _("no picture of this frame is kept");
  if (!mayJudge) return;
  await send("/api/review/keep", { frame });
  for (let step = 0; step < COPY_STEPS && !items.length; step++) {
    await new Promise((resolve) => setTimeout(resolve, COPY_STEP_MS));
    items = (await ask(`/api/review/${encodeURIComponent(frame)}`)).items;
  }
  if (!items.length) throw new Error(_("the picture has not come: see whether discovery runs, then load this page again"));
  draw();
};
drawRates().catch((error) => complain(error.message));
setInterval(() => document.hidden || drawRates().catch(() => {}), RATES_MS);
if (state.can_keep) attempt(() => fetchPicture(state.can_keep));
// While the list is at its end, new frames are looked for; alarms are offered from the latest on.
setInterval(() => {
  if (isOffered && !document.hidden && place >= items.length && !items.length)
    attempt(async () => {
      isDone = false;
      await more();
      draw();
    });
}, LOOK_AGAIN_MS);
