// The kinds of text that Alpha has presets for: what they set, what a model is asked, and what the text is like.

import { element } from "/web/elements.js";
import { askJson } from "/web/server.js";

export const title = "Domains";

export async function show(main) {
  const { domains } = await askJson("/api/domains");
  main.append(element("h2", {}, "Domains"),
    element("p", { className: "hint" }, "A domain is a kind of text, with a tokenizer, a shape and a schedule that suit it."),
    element("div", { className: "cards" }, ...domains.map(card)));
}

function card({ id, description, tokenizer, model, training, prompts, specimen }) {
  const { block, layers, dim, heads, ...others } = model;
  const facts = [
    ["Shape", `${layers} layers of ${dim}, ${heads} heads, block ${block}`],
    ["Tokenizer", tokenizer],
    ...Object.entries({ ...others, ...training }).filter(([name]) => name !== "tokenizer").map(([name, value]) => [camel(name), String(value)]),
  ];
  return element("article", { id },
    element("h3", {}, id), element("p", {}, description),
    element("dl", { className: "facts" }, ...facts.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value)))),
    element("h4", {}, "What it is like"), element("pre", { tabIndex: 0, role: "region", "aria-label": `Text of ${id}` }, specimen),
    element("details", {}, element("summary", {}, `${prompts.length} prompts`), ...prompts.map((prompt) => element("pre", {}, prompt))),
    element("details", {}, element("summary", {}, "How to train on it"),
      element("pre", {}, `alpha datagen --domain=${id} --out=${id}.txt\nalpha train --domain=${id} --data=${id}.txt`)));
}

function camel(name) {
  return name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
}
