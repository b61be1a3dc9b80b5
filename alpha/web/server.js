// What pages ask the server: once, or as news that go on. And what stands in the page's own address.

const STREAM_SECONDS = 10;
const POLL_SECONDS = 5;
const QUIET_SECONDS = 60;
const find = (id) => document.getElementById(id);

/** An answer that is not one, with its status. */
export class RefusedError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** What changes runs needs this; empty where nothing can be changed. */
export const token = document.querySelector("meta[name=token]")?.content ?? "";

export async function ask(path, { headers, ...options } = {}) {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, {
    ...options,
    headers: { ...headers, ...(key && { authorization: `Bearer ${key}` }), ...(options.method && { "x-alpha-token": token }) },
  });
  if (answer.ok) return answer;
  if (answer.status === 401) find("key-label").hidden = false;
  const body = await answer.json().catch(() => null);
  throw new RefusedError(body?.error?.message ?? `The server answered ${answer.status}.`, answer.status);
}

export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

export function change(path, method, values) {
  return askJson(path, { method, ...(values && { body: JSON.stringify(values), headers: { "content-type": "application/json" } }) });
}

/** A path with a query; lists are given several times, and what is undefined or "" is left out. */
export function address(path, query = {}) {
  const parts = Object.entries(query).flatMap(([name, value]) => [value].flat().map((each) => [name, each]));
  const text = new URLSearchParams(parts.filter(([, value]) => value !== undefined && value !== "" && value !== null)).toString();
  return text ? `${path}?${text}` : path;
}

/** The page's address keeps what is shown, so that it can be sent to somebody, or come back to. */
export function remember(query) {
  history.replaceState(null, "", address(location.pathname, query));
}

/** The key, for servers that want one, lasts as long as the tab. */
export function askForKey() {
  find("key").addEventListener("change", () => {
    sessionStorage.setItem("key", find("key").value);
    location.reload();
  });
}

export function report(error) {
  find("problem").textContent = error?.message ?? String(error);
}

/** A file of the server, also where a key is needed, which a link could not send. */
export async function download(path, name) {
  let href = path;
  if (sessionStorage.getItem("key")) href = URL.createObjectURL(await (await ask(path)).blob());
  save(href, name);
}

export function save(href, name) {
  const link = Object.assign(document.createElement("a"), { href, download: name });
  link.click();
  if (href.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(href), 1000);
}

// --- news --------------------------------------------------------------------------------------------------------------

/** Tell `onEvent` what is new as long as the page is open: from a stream, which goes on after the last event that arrived,
 *  or by asking now and then where streams do not come through. A page that nobody sees asks for nothing. */
export async function follow(path, onEvent) {
  let last = "";
  const take = (id, event) => {
    if (id) last = id;
    if (event.error) throw new RefusedError(event.error.message, 503);
    find("problem").textContent = "";
    onEvent(event);
  };
  for (;;) {
    await visible();
    try {
      await stream(path, last, take);
    } catch (error) {
      if (error.status === 401 || error.status === 404) throw error;
      await poll(path, last, take).catch((again) => report(again instanceof TypeError ? new Error("The server does not answer; it is asked again and again.") : again));
    }
    if (!document.hidden) await new Promise((resolve) => setTimeout(resolve, 1000 * POLL_SECONDS));
  }
}

async function stream(path, last, take) {
  const controller = new AbortController();
  const stop = () => document.hidden && controller.abort();
  document.addEventListener("visibilitychange", stop);
  let timer = setTimeout(() => controller.abort(), 1000 * STREAM_SECONDS);
  try {
    const headers = { accept: "text/event-stream", ...(last && { "last-event-id": last }) };
    const answer = await ask(path, { headers, signal: controller.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(), 1000 * QUIET_SECONDS);
      live("live");
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const lines = event.split("\n");
        const field = (name) => lines.find((line) => line.startsWith(name))?.slice(name.length);
        if (field("data: ")) take(field("id: "), JSON.parse(field("data: ")));
      }
    }
  } catch (error) {
    if (document.hidden) return;
    throw error;
  } finally {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", stop);
    live("not live");
  }
}

async function poll(path, last, take) {
  const { id, events } = await askJson(path + (last ? `${path.includes("?") ? "&" : "?"}after=${encodeURIComponent(last)}` : ""));
  live("live, by asking now and then");
  for (const event of events) take(id, event);
}

function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true })).then(visible);
}

function live(text) {
  const place = find("live");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.state = text.startsWith("live") ? "live" : "lost";
}
