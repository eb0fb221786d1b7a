// A conversation as a file.

/** Markdown of a conversation. */
export function asMarkdown({ title, system, messages }) {
  const parts = [`# ${title || "conversation"}`];
  if (system) parts.push("## system", system);
  for (const one of messages) {
    parts.push(`## ${one.role}`);
    if (one.reasoning) parts.push(one.reasoning.split("\n").map((line) => `> ${line}`).join("\n"));
    if (one.content) parts.push(one.content);
    for (const call of one.calls ?? []) parts.push(`\`${call.name}\``, `\`\`\`json\n${call.arguments}\n\`\`\``);
    if (one.error) parts.push(`error: ${one.error}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Gives a conversation to the browser as a download. kind: "md" or "json". */
export function download(conversation, kind) {
  const text = kind === "json" ? JSON.stringify(conversation, null, 2) : asMarkdown(conversation);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/markdown" }));
  link.download = `${(conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
