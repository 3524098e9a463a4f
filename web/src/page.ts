// The page: takes a task's files, lets the worker do it, and shows what happens.

import type { Wanted } from "./choose";
import type { Answer, Command } from "./protocol";

const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
/** What follows once the program is verified. */
let next: Command | undefined;
/** Whether the volunteer wants no more of it; the worker knows only of what it was already told. */
let stopped = false;
const places = { webgpu: "the graphics card (WebGPU)", wasm: "the processor (WebAssembly)" };

worker.onmessage = ({ data }: MessageEvent<Answer>) => show(data);
worker.onerror = ({ message }) => failed(`the worker broke off: ${message}`);
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start().catch((error) => failed(`a file cannot be read: ${error instanceof Error ? error.message : error}`));
});
element("stop").addEventListener("click", () => {
  stopped = true;
  tell({ kind: "stop" });
});

async function start(): Promise<void> {
  busy(true);
  stopped = false;
  element("save").hidden = true;
  for (const id of ["steps", "speed", "loss", "backend"]) say(id, "–");
  say("why", "");
  status("Checking the program …");
  const contents = await Promise.all(chosen("program").map(async (file) => [file.name, await bytes(file)] as const));
  const [task, shard] = await Promise.all([bytes(chosen("task")[0]!), bytes(chosen("shard")[0]!)]);
  next = { kind: "run", task, shard };
  tell({ kind: "open", files: new Map(contents), wanted: element<HTMLSelectElement>("wanted").value as Wanted });
}

function show(answer: Answer): void {
  const progress = element<HTMLProgressElement>("progress");
  switch (answer.kind) {
    case "opened":
      progress.value = 0;
      if (stopped) {
        failed("stopped before the first step");
        break;
      }
      status(`Preparing ${answer.name}, ${answer.parameters.toLocaleString("en")} parameters …`);
      if (next) tell(next);
      break;
    case "chosen": {
      const threads = answer.threads > 1 ? `, ${answer.threads} threads` : "";
      say("backend", places[answer.backend] + threads);
      say("why", `Chosen because: ${answer.why}.`);
      status("Training …");
      break;
    }
    case "progress":
      [progress.value, progress.max] = [answer.steps, answer.of];
      say("steps", `${answer.steps} of ${answer.of}`);
      say("loss", answer.loss.toPrecision(4));
      say("speed", (answer.steps / answer.seconds).toPrecision(3));
      break;
    case "done": {
      const link = element<HTMLAnchorElement>("save");
      URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(new Blob([answer.report], { type: "application/octet-stream" }));
      link.hidden = false;
      say("speed", answer.stepsPerSecond.toPrecision(3));
      busy(false);
      status("Done. Thank you for the computing time.");
      break;
    }
    case "failed":
      failed(answer.reason);
  }
}

function failed(reason: string): void {
  busy(false);
  status(`It did not work: ${reason}.`, true);
}

function busy(yes: boolean): void {
  element<HTMLButtonElement>("start").disabled = yes;
  element<HTMLButtonElement>("stop").disabled = !yes;
}

function status(text: string, bad = false): void {
  say("status", text);
  element("status").classList.toggle("failed", bad);
}

function say(id: string, text: string): void {
  element(id).textContent = text;
}

function chosen(id: string): File[] {
  return [...(element<HTMLInputElement>(id).files ?? [])];
}

async function bytes(file: File): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await file.arrayBuffer());
}

function tell(command: Command): void {
  worker.postMessage(command);
}

function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}
