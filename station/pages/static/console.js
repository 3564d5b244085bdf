// The page of the line is loaded again every few seconds while somebody looks at it.
const refresh = async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    if (fresh) document.querySelector("main").replaceWith(fresh);
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale");
  }
};
const seconds = Number(document.body.dataset.refresh);
if (seconds) setInterval(refresh, 1000 * seconds);
