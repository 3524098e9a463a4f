// The Web Worker: one program, one task at a time, away from the page's own thread.

import { type Choice, choose, discard, type Trial, type Wanted } from "./choose";
import { KernelError, MessageError, reason } from "./errors";
import { Kernel } from "./kernel";
import { shardOf, taskOf } from "./messages";
import { load, type Program, sha256 } from "./program";
import type { Answer, Command } from "./protocol";
import { wasm } from "./runtime";
import { decode, encode, floats } from "./safetensors";

type Bytes = Uint8Array<ArrayBuffer>;

/** How often a page hears of progress, and how long a stop may wait, in milliseconds. */
const BEAT = 100;

let program: Program | undefined;
let wanted: Wanted = "auto";
let threads: number | undefined;
let choice: Choice | undefined;
let last = Promise.resolve();
/** Of every command that is not done yet, whether a stop came after it. */
const waiting: Job[] = [];

interface Job {
  stopped: boolean;
}

self.onmessage = ({ data }: MessageEvent<Command>) => {
  if (data.kind === "stop") {
    for (const job of waiting) job.stopped = true;
    return;
  }
  const job = { stopped: false };
  waiting.push(job);
  last = last
    .then(() => handle(data, job))
    .catch((error) => answer({ kind: "failed", reason: reason(error) }))
    .finally(() => waiting.shift());
};

async function handle(command: Exclude<Command, { kind: "stop" }>, job: Job): Promise<void> {
  switch (command.kind) {
    case "open":
      if (choice) await discard(choice.kernel).catch(() => undefined); // a GPU that is lost has nothing to give back
      [choice, program, wanted, threads] = [undefined, undefined, command.wanted ?? "auto", command.threads];
      program = await load(command.files, command.expected);
      answer({ kind: "opened", id: program.id, name: program.manifest.name, parameters: program.trainable });
      break;
    case "run":
      await run(trialOf(command.task, command.shard), await sha256(command.shard), job);
      break;
    case "evaluate": {
      const trial = trialOf(command.task, command.data);
      const evaluation = await compute(trial, (kernel) => kernel.evaluate(trial.vector, trial.shard));
      answer({ kind: "evaluated", evaluation });
    }
  }
}

async function run(trial: Trial, shard: string, job: Job): Promise<void> {
  const { task, vector, anchor } = trial;
  if (job.stopped) throw new KernelError("stopped before the first step");
  if (shard !== task.shard) throw new MessageError("the shard is damaged or not the task's: its SHA-256 is another");
  const { report, delta, buffers } = await compute(trial, (kernel) => {
    const begin = performance.now();
    let beat = begin;
    return kernel.run(task, vector, anchor, trial.shard, async (steps, loss) => {
      const now = performance.now();
      if (now - beat < BEAT && steps < task.steps) return true;
      beat = now;
      answer({ kind: "progress", steps, of: task.steps, loss, seconds: (now - begin) / 1000 });
      await turn();
      if (job.stopped && !task.partial) throw new KernelError(`stopped after ${steps} of ${task.steps} steps`);
      return !job.stopped;
    });
  });
  const tensors = new Map([
    ["delta", floats(delta)],
    ["buffers", floats(buffers)],
  ]);
  const file = encode(report, tensors);
  answer({ kind: "done", report: file, stepsPerSecond: report.steps / report.seconds }, [file.buffer]);
}

/** Use the program's kernel. Where the GPU breaks down (drivers restart, computers sleep), the processor begins anew. */
async function compute<T>(trial: Trial, work: (kernel: Kernel) => Promise<T>): Promise<T> {
  if (!program) throw new KernelError("no program is open");
  if (!choice) use(await choose(program, wanted, trial, threads));
  const { kernel } = choice!;
  try {
    return await work(kernel);
  } catch (error) {
    const known = error instanceof KernelError || error instanceof MessageError;
    if (known || kernel.runtime.backend === "wasm") throw error;
    discard(kernel).catch(() => undefined); // its memory may be gone already
    use({ kernel: await Kernel.open(program, await wasm(threads)), why: `the GPU broke down: ${reason(error)}` });
    return work(choice!.kernel);
  }
}

function use(next: Choice): void {
  choice = next;
  const { backend, threads } = next.kernel.runtime;
  answer({ kind: "chosen", backend, threads, why: next.why });
}

function trialOf(file: Bytes, shard: Bytes): Trial {
  const { message: task, tensors } = decode(file, taskOf);
  const vector = vectorOf("vector");
  return {
    task,
    vector,
    anchor: task.anchored ? vectorOf("anchor") : undefined,
    shard: decode(shard, shardOf).tensors,
  };

  function vectorOf(name: string): Float32Array<ArrayBuffer> {
    const tensor = tensors.get(name);
    if (tensor?.kind !== "F32" || tensor.shape.length !== 1) {
      throw new MessageError(`the task's file has no flat float32 tensor ${name}`);
    }
    return tensor.values as Float32Array<ArrayBuffer>;
  }
}

/** Let messages in: a step on WebAssembly gives no other way. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}

function answer(message: Answer, transfer: Transferable[] = []): void {
  self.postMessage(message, { transfer });
}
