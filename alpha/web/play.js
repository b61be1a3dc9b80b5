// The page of alpha serve: a text that the model continues, and a chat. All it knows of the server is the API.

const ALTERNATIVES = 8;
const find = (id) => document.getElementById(id);
const MOST_COLUMNS = 6;
const state = { chat: false, columns: [], models: [], messages: [{ role: "user", content: "" }], controller: null };

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
  const values = {};
  for (const name of ["temperature", "top_k", "top_p", "min_p", "max_tokens", "seed"]) {
    const text = find(name).value;
    if (text !== "") values[name] = Number(text);
  }
  if (find("stop-text").value) values.stop = find("stop-text").value;
  return values;
}

// --- tokens ------------------------------------------------------------------------------------------------------------

/** A place for what a model writes; `choose(tokens, name)` continues after these tokens with another one. */
function outputOf(label, choose) {
  const output = document.createElement("div");
  output.className = "output";
  output.tabIndex = 0;
  output.setAttribute("role", "region");
  output.setAttribute("aria-label", label);
  output.choose = choose;
  output.addEventListener("mouseover", (event) => event.target.show?.());
  output.addEventListener("click", (event) => event.target.show?.());
  output.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const tokens = [...output.children];
    const place = tokens.findIndex((each) => each.classList.contains("chosen"));
    if (step) tokens[Math.min(tokens.length - 1, Math.max(0, place + step))]?.show();
    else if (event.key === "ArrowDown" && place >= 0) find("alternatives").querySelector("button:enabled")?.focus();
    else return;
    event.preventDefault();
  });
  return output;
}

/** Add a token to an output, with how likely it and others were: `others` are [name, log-probability]. */
function addToken(output, text, logprob, others) {
  const span = document.createElement("span");
  span.className = "token";
  span.textContent = text;
  const chance = Math.exp(logprob);
  if (chance < 0.05) span.classList.add("rare");
  else if (chance < 0.25) span.classList.add("unlikely");
  span.show = () => showAlternatives(output, span, others);
  output.append(span);
}

function showAlternatives(output, span, others) {
  const panel = find("alternatives");
  document.querySelector(".token.chosen")?.classList.remove("chosen");
  span.classList.add("chosen");
  panel.output = output;
  panel.replaceChildren(...others.map(([name, value]) => {
    const button = document.createElement("button");
    const label = document.createElement("span");
    const share = document.createElement("span");
    label.textContent = JSON.stringify(name).slice(1, -1).replaceAll(" ", "\u2423");
    share.textContent = `${(100 * Math.exp(value)).toFixed(1)} %`;
    button.append(label, share);
    // What is no text by itself cannot be put into one.
    button.disabled = name.startsWith("bytes:") || name.startsWith("token_id:");
    button.addEventListener("click", () => {
      hideAlternatives();
      let kept = "";
      for (let each = span.previousSibling; each; each = each.previousSibling) kept = each.textContent + kept;
      output.choose(kept, name);
    });
    return button;
  }));
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

// --- a text, continued by one model or several ---------------------------------------------------------------------------

/** The columns of outputs: the first is that of the model above, the others are those beside it. */
function drawColumns(beside) {
  state.columns = [find("model").value, ...beside].map((model, index) => {
    const column = document.createElement("div");
    const output = outputOf(`${index + 1}. What ${model} wrote`, (kept, name) => chooseInText(kept, name));
    if (!index) output.id = "output";
    const head = document.createElement("div");
    head.className = "head";
    const title = document.createElement("strong");
    title.textContent = model;
    head.append(title, buttonOf("Take over", `Continue ${index + 1}, of ${model}`, () => continueText(find("prompt").value + output.textContent)));
    if (index) head.append(buttonOf("Remove", `Remove ${index + 1}, of ${model}`, () => drawColumns(beside.filter((_, each) => each !== index - 1))));
    if (beside.length) column.append(head);
    column.append(output);
    return { model, output, column };
  });
  find("columns").replaceChildren(...state.columns.map(({ column }) => column));
  find("beside").disabled = find("checkpoints").disabled = state.columns.length >= MOST_COLUMNS;
}

function buttonOf(text, label, act) {
  const button = document.createElement("button");
  button.textContent = text;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", act);
  return button;
}

function beside() {
  return state.columns.slice(1).map(({ model }) => model);
}

/** Some checkpoints of the run above, the first, the last but one, and what lies evenly between. */
function addCheckpoints() {
  const model = find("model").value.split("@")[0];
  const steps = state.models.find(({ id }) => id === model)?.steps.slice(0, -1) ?? [];
  const count = Math.min(steps.length, 3);
  const chosen = Array.from({ length: count }, (_, index) => steps[Math.round((index * (steps.length - 1)) / Math.max(1, count - 1))]);
  if (!count) find("status").textContent = `${model} has no earlier checkpoint.`;
  else drawColumns(chosen.reverse().map((step) => `${model}@${step}`));
}

function continueText(prompt) {
  hideAlternatives();
  find("prompt").value = prompt;
  for (const { output } of state.columns) output.replaceChildren();
  const options = sampling();
  whileRunning((signal) => Promise.all(state.columns.map(async ({ model, output }) => {
    const body = { ...options, model, prompt, logprobs: ALTERNATIVES };
    for await (const chunk of stream("/v1/completions", body, signal)) {
      const choice = chunk.choices[0];
      if (choice?.text || choice?.logprobs) addTokens(output, choice.text, choice.logprobs);
    }
  })));
}

/** The tokens of a chunk; the text is divided where they begin. */
function addTokens(output, text, logprobs) {
  const offsets = logprobs.text_offset;
  const characters = Array.from(text);
  const first = offsets[0] ?? 0;
  logprobs.tokens.forEach((name, index) => {
    const end = index + 1 < offsets.length ? offsets[index + 1] - first : characters.length;
    const part = characters.slice(offsets[index] - first, end).join("");
    const others = Object.entries(logprobs.top_logprobs[index]).sort((a, b) => b[1] - a[1]);
    addToken(output, part, logprobs.token_logprobs[index], others);
  });
}

function chooseInText(kept, name) {
  const isHeldBack = !kept && find("prompt").value.endsWith(" ") && name.startsWith(" ");
  continueText(find("prompt").value + kept + (isHeldBack ? name.slice(1) : name));
}

// --- a chat --------------------------------------------------------------------------------------------------------------

/** Brings the list up to date; what stands there already is left alone, or a long chat would be slow. */
function drawMessages() {
  const list = find("messages");
  state.messages.forEach((message, index) => {
    message.item ??= itemOf(message);
    if (list.children[index] !== message.item) list.insertBefore(message.item, list.children[index] ?? null);
    if (message.number === index + 1) return;
    message.number = index + 1;
    message.roleChoice.setAttribute("aria-label", `Role of message ${index + 1}`);
    message.remove.setAttribute("aria-label", `Remove message ${index + 1}`);
    message.edit.setAttribute("aria-label", `Edit message ${index + 1}`);
    message.area.setAttribute("aria-label", `Message ${index + 1}`);
    message.output.setAttribute("aria-label", `Message ${index + 1}, token by token`);
  });
  while (list.children.length > state.messages.length) list.lastChild.remove();
}

/** A message's place on the page: an area to write in, or what was drawn, until it is edited. */
function itemOf(message) {
  const item = document.createElement("li");
  const head = document.createElement("div");
  head.className = "head";
  const role = document.createElement("select");
  for (const name of ["system", "user", "assistant"]) role.add(new Option(name, name, false, name === message.role));
  role.addEventListener("change", () => { message.role = role.value; });
  const area = document.createElement("textarea");
  area.rows = 2;
  area.value = message.content;
  area.addEventListener("input", () => { message.content = area.value; });
  const output = outputOf("", (kept, name) => chooseInChat(message, kept + name));
  const edit = buttonOf("Edit", "", () => { showTokens(message, false); area.focus(); });
  const remove = buttonOf("Remove", "", () => {
    state.messages.splice(state.messages.indexOf(message), 1);
    item.remove();
    drawMessages();
  });
  head.append(role, edit, remove);
  item.append(head, area, output);
  Object.assign(message, { roleChoice: role, area, output, edit, remove });
  showTokens(message, false);
  return item;
}

function showTokens(message, shown) {
  message.output.hidden = message.edit.hidden = !shown;
  message.area.hidden = shown;
  message.area.value = message.content;
}

/** The last message that says something is answered, or continued where it is the assistant's. */
function answerChat() {
  hideAlternatives();
  while (state.messages.length > 1 && !state.messages.at(-1).content) state.messages.pop();
  if (state.messages.at(-1)?.role !== "assistant") state.messages.push({ role: "assistant", content: "" });
  const answer = state.messages.at(-1);
  const messages = state.messages.map(({ role, content }) => ({ role, content }));
  const begun = answer.content ? { continue_final_message: true } : {};
  if (!answer.content) messages.pop();
  drawMessages();
  answer.output.replaceChildren(answer.content);
  showTokens(answer, true);
  const body = { ...sampling(), ...begun, model: find("model").value, messages, logprobs: true, top_logprobs: ALTERNATIVES };
  const decoder = new TextDecoder();
  whileRunning(async (signal) => {
    try {
      for await (const chunk of stream("/v1/chat/completions", body, signal)) {
        const choice = chunk.choices[0];
        answer.content += choice?.delta.content ?? "";
        for (const { bytes, logprob, top_logprobs: others } of choice?.logprobs?.content ?? []) {
          const text = decoder.decode(new Uint8Array(bytes), { stream: true });
          addToken(answer.output, text, logprob, others.map((other) => [other.token, other.logprob]));
        }
      }
    } finally {
      showTokens(answer, answer.output.textContent !== "");
    }
    state.messages.push({ role: "user", content: "" });
    drawMessages();
  });
}

/** Continue a message after this beginning of it; what came after it goes. */
function chooseInChat(message, content) {
  state.messages.length = state.messages.indexOf(message) + 1;
  message.content = content;
  answerChat();
}

// --- buttons and keys ----------------------------------------------------------------------------------------------------

async function whileRunning(work) {
  state.controller?.abort();
  const controller = new AbortController();
  state.controller = controller;
  find("stop").disabled = false;
  say("Writing…");
  try {
    await work(controller.signal);
    say("");
  } catch (error) {
    if (state.controller === controller) say(error.name === "AbortError" ? "Stopped." : error.message);
    controller.abort();  // the columns beside the one that failed
  } finally {
    if (state.controller === controller) {
      state.controller = null;
      find("stop").disabled = true;
    }
  }
}

function say(text) {
  find("status").textContent = text;
}

function report(error) {
  say(error.message);
}

function run() {
  if (state.chat) answerChat();
  else continueText(find("prompt").value + (state.columns.length === 1 ? find("output").textContent : ""));
}

function again() {
  if (!state.chat) {
    continueText(find("prompt").value);
    return;
  }
  while (state.messages.length > 1 && (state.messages.at(-1).role === "assistant" || !state.messages.at(-1).content)) {
    if (state.messages.pop().role === "assistant") break;
  }
  answerChat();
}

function show(chat) {
  hideAlternatives();
  state.chat = chat;
  find("text").hidden = chat;
  find("chat").hidden = !chat;
  find("to-text").setAttribute("aria-pressed", String(!chat));
  find("to-chat").setAttribute("aria-pressed", String(chat));
  find("run").textContent = chat ? "Answer" : "Continue";
}

function exportAll() {
  const messages = state.messages.map(({ role, content }) => ({ role, content }));
  const outputs = state.columns.map(({ model, output }) => ({ model, text: output.textContent }));
  const content = { prompt: find("prompt").value, outputs, messages, sampling: sampling(), chat: state.chat };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = "alpha.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importAll(file) {
  const content = JSON.parse(await file.text());
  find("prompt").value = String(content.prompt ?? "");
  const outputs = (content.outputs ?? []).slice(0, MOST_COLUMNS);
  drawColumns(outputs.slice(1).map(({ model }) => String(model)));
  outputs.forEach(({ text }, index) => state.columns[index].output.append(String(text)));
  state.messages = (content.messages ?? []).map(({ role, content: text }) => ({ role: String(role), content: String(text) }));
  for (const [name, value] of Object.entries(content.sampling ?? {})) {
    const control = find(name === "stop" ? "stop-text" : name);
    if (control?.matches("aside input")) control.value = value;
  }
  find("messages").replaceChildren();
  drawMessages();
  show(Boolean(content.chat));
}

async function listModels() {
  state.models = (await (await ask("/v1/models")).json()).data;
  const options = () => state.models.flatMap(({ id, steps }) => [id, ...steps.slice(0, -1).reverse().map((step) => `${id}@${step}`)])
    .map((name) => new Option(name, name));
  find("model").replaceChildren(...options());
  find("beside").replaceChildren(new Option("add a model", ""), ...options());
  const wanted = new URLSearchParams(location.search).get("model");
  if (wanted && !find("model").querySelector(`option[value="${CSS.escape(wanted)}"]`)) find("model").add(new Option(wanted, wanted));
  if (wanted) find("model").value = wanted;
  drawColumns([]);
  say(state.models.length ? "" : "There is no model yet: train one, and load this page again.");
}

find("run").addEventListener("click", run);
find("again").addEventListener("click", again);
find("stop").addEventListener("click", () => state.controller?.abort());
find("to-text").addEventListener("click", () => show(false));
find("to-chat").addEventListener("click", () => show(true));
find("add").addEventListener("click", () => { state.messages.push({ role: "user", content: "" }); drawMessages(); });
find("export").addEventListener("click", exportAll);
find("import").addEventListener("change", (event) => {
  importAll(event.target.files[0]).catch(report);
  event.target.value = "";
});
find("key").addEventListener("change", () => listModels().catch(report));
find("model").addEventListener("change", () => drawColumns(beside()));
find("beside").addEventListener("change", (event) => {
  drawColumns([...beside(), event.target.value]);
  event.target.value = "";
});
find("checkpoints").addEventListener("click", addCheckpoints);
find("alternatives").addEventListener("keydown", (event) => {
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...find("alternatives").querySelectorAll("button:enabled")];
  const place = buttons.indexOf(document.activeElement) + step;
  if (place < 0) find("alternatives").output.focus();
  else buttons[Math.min(place, buttons.length - 1)].focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  if (event.key !== "Escape") return;
  const panel = find("alternatives");
  if (panel.contains(document.activeElement)) panel.output.focus();
  hideAlternatives();
  state.controller?.abort();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".token, #alternatives")) hideAlternatives();
});
drawMessages();
listModels().catch(report);
