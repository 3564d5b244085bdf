// What every page does: its language, local time, the switches, and loading a page again while somebody looks at it.
// TEXTS, VOCABULARY, LANGUAGE and pluralOf come from /texts/CODE.js.
const filled = (text, values) => text.replace(/%(?:%|\((\w+)\)s)/g, (_, name) => (name ? values[name] : "%"));
const _ = (text, values = {}) => filled((TEXTS[text] || [text])[0], values);
const numeral = (number, digits = 0) =>
  number.toLocaleString(LANGUAGE, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const ngettext = (singular, plural, number, values = {}) =>
  filled((TEXTS[singular] || [singular, plural])[pluralOf(number)], { number: numeral(number), ...values });
const wordOf = (kind, value) => VOCABULARY[kind][value] || value;

const two = (number) => String(number).padStart(2, "0");
const timeOf = (form, date) =>
  form.replace("YYYY", date.getFullYear()).replace("MM", two(date.getMonth() + 1)).replace("DD", two(date.getDate()))
    .replace("hh", two(date.getHours())).replace("mm", two(date.getMinutes())).replace("ss", two(date.getSeconds()));
const clockOf = (date) => timeOf("hh:mm:ss", date);
const stampOf = (date) => timeOf(_("YYYY-MM-DD hh:mm:ss"), date);
const minuteOf = (date) => timeOf(_("YYYY-MM-DD hh:mm"), date);
const shortOf = (date) => timeOf(_("MM-DD hh:mm"), date);

const localise = (root) => {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = `${time.textContent} UTC`;
    time.textContent = stampOf(new Date(time.dateTime));  // as long as before, so that nothing moves
  }
  for (const mark of root.querySelectorAll("[data-minute]")) {
    mark.textContent = timeOf("hh:mm", new Date(mark.dataset.minute)) + mark.textContent.slice("hh:mm".length);
  }
};
localise(document);
const zone = document.getElementById("zone");
zone.textContent = zone.parentElement.title = _("local time (%(zone)s)", { zone: Intl.DateTimeFormat().resolvedOptions().timeZone });

const themes = ["system", "light", "dark"];
const theme = document.getElementById("theme");
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(theme.dataset.themeNow) + 1) % themes.length];
  theme.dataset.themeNow = next;
  theme.textContent = _("Theme: %(theme)s", { theme: wordOf("theme", next) });
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  const age = next === "system" ? 0 : 31536000;
  document.cookie = `flawline_theme=${next}; path=/; max-age=${age}; samesite=strict`;
});

const language = document.getElementById("language");
language.addEventListener("change", () => {
  document.cookie = `flawline_language=${language.value}; path=/; max-age=31536000; samesite=strict`;
  location.reload();
});

const isBusy = () => {
  const at = document.activeElement;
  return document.hidden || String(getSelection()) || (at && at.closest("main") && at !== document.querySelector("main"));
};
const refresh = async () => {
  if (isBusy()) return;  // who reads or types keeps what is there
  try {
    const answer = await fetch(location.href);
    if (answer.redirected) location.reload();
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    if (fresh) {
      localise(fresh);
      document.querySelector("main").replaceWith(fresh);
    }
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale");
  }
};
const seconds = Number(document.body.dataset.refresh);
if (seconds) setInterval(refresh, 1000 * seconds);
