// The page of alpha serve: a text that the model continues, and a chat. All it knows of the server is the API.

const ALTERNATIVES = 8;
const find = (id) => document.getElementById(id);
const state = { chat: false, messages: [{ role: "user", content: "" }], controller: null, before: null };

// --- the server --------------------------------------------------------------------------------------------------------

function headers() {
  const key = find("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    find("key-label").hidden = false;
    find("key").focus();
  }
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The server answered ${answer.status}.`);
}

/** The chunks of a stream, as they come. */
async function* stream(path, body, signal) {
  const answer = await ask(path, { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal });
  let rest = "";
  for await (const part of decoded(answer.body)) {
    const events = (rest + part).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice("data: ".length));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
  throw new Error("The connection ended before the answer did.");
}

async function* decoded(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

/** How tokens are drawn, as the controls say. */
function sampling() {
  const values = { model: find("model").value };
  for (const name of ["temperature", "top_k", "top_p", "min_p", "max_tokens", "seed"]) {
    const text = find(name).value;
    if (text !== "") values[name] = Number(text);
  }
  if (find("stop-text").value) values.stop = find("stop-text").value;
  return values;
}

// --- tokens ------------------------------------------------------------------------------------------------------------

/** A token of an output, with how likely it and others were: `others` are [name, log-probability]. */
function token(text, logprob, others, choose) {
  const span = document.createElement("span");
  span.className = "token";
  span.textContent = text;
  const chance = Math.exp(logprob);
  if (chance < 0.05) span.classList.add("p0");
  else if (chance < 0.25) span.classList.add("p1");
  span.show = () => showAlternatives(span, text, logprob, others, choose);
  return span;
}

function showAlternatives(span, text, logprob, others, choose) {
  const panel = find("alternatives");
  document.querySelector(".token.chosen")?.classList.remove("chosen");
  span.classList.add("chosen");
  panel.replaceChildren();
  for (const [name, value] of others) {
    const button = document.createElement("button");
    const label = document.createElement("span");
    const share = document.createElement("span");
    label.textContent = JSON.stringify(name).slice(1, -1).replaceAll(" ", "\u2423");
    share.textContent = `${(100 * Math.exp(value)).toFixed(1)} %`;
    button.append(label, share);
    // What is no text by itself cannot be put into one.
    button.disabled = !choose || name.startsWith("bytes:") || name.startsWith("token_id:");
    button.addEventListener("click", () => { hideAlternatives(); choose(span, name); });
    panel.append(button);
  }
  panel.hidden = false;
  const place = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - panel.offsetWidth - 8);
  panel.style.left = `${Math.max(0, left) + window.scrollX}px`;
  panel.style.top = `${place.bottom + window.scrollY}px`;
}

function hideAlternatives() {
  find("alternatives").hidden = true;
  document.querySelector(".token.chosen")?.classList.remove("chosen");
}

// --- a text --------------------------------------------------------------------------------------------------------------

async function continueText(prompt) {
  find("prompt").value = prompt;
  find("output").replaceChildren();
  const body = { ...sampling(), prompt, logprobs: ALTERNATIVES };
  await whileRunning(async (signal) => {
    for await (const chunk of stream("/v1/completions", body, signal)) {
      const choice = chunk.choices[0];
      if (!choice?.text && !choice?.logprobs) continue;
      addTokens(find("output"), choice.text, choice.logprobs, chooseInText);
    }
  });
}

/** The tokens of a chunk; the text is divided where they begin. */
function addTokens(output, text, logprobs, choose) {
  const offsets = logprobs.text_offset;
  const characters = Array.from(text);
  const first = offsets[0] ?? 0;
  logprobs.tokens.forEach((name, index) => {
    const end = index + 1 < offsets.length ? offsets[index + 1] - first : characters.length;
    const part = characters.slice(offsets[index] - first, end).join("");
    const others = Object.entries(logprobs.top_logprobs[index]).sort((a, b) => b[1] - a[1]);
    output.append(token(part, logprobs.token_logprobs[index], others, choose));
  });
}

function chooseInText(span, name) {
  let kept = "";
  for (let each = span.previousSibling; each; each = each.previousSibling) kept = each.textContent + kept;
  const heldBack = !kept && find("prompt").value.endsWith(" ") && name.startsWith(" ") ? name.slice(1) : name;
  continueText(find("prompt").value + kept + heldBack).catch(report);
}

// --- a chat --------------------------------------------------------------------------------------------------------------

function drawMessages() {
  find("messages").replaceChildren(...state.messages.map((message, index) => {
    const item = document.createElement("li");
    const head = document.createElement("div");
    const role = document.createElement("select");
    role.setAttribute("aria-label", `Role of message ${index + 1}`);
    for (const name of ["system", "user", "assistant"]) role.add(new Option(name, name, false, name === message.role));
    role.addEventListener("change", () => { message.role = role.value; });
    const remove = document.createElement("button");
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove message ${index + 1}`);
    remove.addEventListener("click", () => { state.messages.splice(index, 1); drawMessages(); });
    head.append(role, remove);
    const text = document.createElement("textarea");
    text.rows = 3;
    text.value = message.content;
    text.setAttribute("aria-label", `Message ${index + 1}`);
    text.addEventListener("input", () => { message.content = text.value; });
    message.area = text;
    item.append(head, text);
    return item;
  }));
}

async function answerChat() {
  const messages = state.messages.map(({ role, content }) => ({ role, content }));
  const answer = { role: "assistant", content: "" };
  state.messages.push(answer);
  drawMessages();
  await whileRunning(async (signal) => {
    for await (const chunk of stream("/v1/chat/completions", { ...sampling(), messages }, signal)) {
      answer.content += chunk.choices[0]?.delta.content ?? "";
      answer.area.value = answer.content;
    }
  });
  state.messages.push({ role: "user", content: "" });
  drawMessages();
}

// --- buttons and keys ----------------------------------------------------------------------------------------------------

async function whileRunning(work) {
  state.controller?.abort();
  const controller = new AbortController();
  state.controller = controller;
  find("stop").disabled = false;
  find("status").textContent = "Writing…";
  try {
    await work(controller.signal);
    find("status").textContent = "";
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    if (state.controller === controller) find("status").textContent = "Stopped.";
  } finally {
    if (state.controller === controller) {
      state.controller = null;
      find("stop").disabled = true;
    }
  }
}

function report(error) {
  find("status").textContent = error.message;
}

function run() {
  hideAlternatives();
  (state.chat ? answerChat() : continueText(find("prompt").value + find("output").textContent)).catch(report);
}

function again() {
  hideAlternatives();
  if (!state.chat) {
    continueText(find("prompt").value).catch(report);
    return;
  }
  while (state.messages.length && (state.messages.at(-1).role === "assistant" || !state.messages.at(-1).content)) {
    state.messages.pop();
    if (state.messages.at(-1)?.role === "user") break;
  }
  answerChat().catch(report);
}

function show(chat) {
  state.chat = chat;
  find("text").hidden = chat;
  find("chat").hidden = !chat;
  find("to-text").setAttribute("aria-pressed", String(!chat));
  find("to-chat").setAttribute("aria-pressed", String(chat));
  find("run").textContent = chat ? "Answer" : "Continue";
}

function exportAll() {
  const messages = state.messages.map(({ role, content }) => ({ role, content }));
  const content = { prompt: find("prompt").value + find("output").textContent, messages, sampling: sampling() };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = "alpha.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importAll(file) {
  const content = JSON.parse(await file.text());
  find("prompt").value = String(content.prompt ?? "");
  find("output").replaceChildren();
  state.messages = (content.messages ?? []).map(({ role, content: text }) => ({ role: String(role), content: String(text) }));
  for (const [name, value] of Object.entries(content.sampling ?? {})) {
    if (find(name)?.type === "number") find(name).value = value;
  }
  drawMessages();
}

async function listModels() {
  const models = (await (await ask("/v1/models")).json()).data;
  find("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  const wanted = new URLSearchParams(location.search).get("model"); // RUN@500 is not in the list, but is a model
  if (wanted && !models.some(({ id }) => id === wanted)) find("model").add(new Option(wanted, wanted));
  if (wanted) find("model").value = wanted;
  find("status").textContent = models.length ? "" : "There is no model yet: train one, and load this page again.";
}

find("run").addEventListener("click", run);
find("again").addEventListener("click", again);
find("stop").addEventListener("click", () => state.controller?.abort());
find("to-text").addEventListener("click", () => show(false));
find("to-chat").addEventListener("click", () => show(true));
find("add").addEventListener("click", () => { state.messages.push({ role: "user", content: "" }); drawMessages(); });
find("export").addEventListener("click", exportAll);
find("import").addEventListener("change", (event) => importAll(event.target.files[0]).catch(report));
find("key").addEventListener("change", () => listModels().catch(report));
find("output").addEventListener("mouseover", (event) => event.target.show?.());
find("output").addEventListener("click", (event) => event.target.show?.());
find("output").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const tokens = [...find("output").children];
  const place = tokens.findIndex((each) => each.classList.contains("chosen"));
  tokens[Math.min(tokens.length - 1, Math.max(0, place + step))]?.show();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  if (event.key === "Escape") {
    hideAlternatives();
    state.controller?.abort();
  }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".token, #alternatives")) hideAlternatives();
});
drawMessages();
listModels().catch(report);
