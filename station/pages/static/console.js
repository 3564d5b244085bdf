// What every page does: local time, the theme's switch, and loading a page again while somebody looks at it.
const two = (number) => String(number).padStart(2, "0");
const clockOf = (date) => `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
const stampOf = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clockOf(date)}`;

const localise = (root) => {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = `${time.textContent} UTC`;
    time.textContent = stampOf(new Date(time.dateTime));  // as long as before, so that nothing moves
  }
};
localise(document);
document.getElementById("zone").textContent = `local time (${Intl.DateTimeFormat().resolvedOptions().timeZone})`;

const themes = ["system", "light", "dark"];
const theme = document.getElementById("theme");
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(theme.dataset.themeNow) + 1) % themes.length];
  theme.dataset.themeNow = next;
  theme.textContent = `Theme: ${next}`;
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  const age = next === "system" ? 0 : 31536000;
  document.cookie = `flawline_theme=${next}; path=/; max-age=${age}; samesite=strict`;
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
