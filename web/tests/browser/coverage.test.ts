// Trainings of each layer and network, which tests/test_web_coverage.py writes, against PyTorch in float64.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Browser, JSHandle, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { relative } from "../../src/choose";
import { reportOf } from "../../src/messages";
import type { Runtime } from "../../src/runtime";
import { decode, type Tensors } from "../../src/safetensors";
import { PAGE } from "./build";
import { start } from "./chromium";
import type { Trainpool } from "./kernel";
import { type Site, serve } from "./serve";

declare const trainpool: Trainpool;

interface Task {
  readonly folder: string;
  /** How far PyTorch in float32 is from the answer: no program is asked for more than twice as much. */
  readonly rounding: { readonly delta: number; readonly buffers: number };
  /** The loss that PyTorch finds with the parameters of the task's start. */
  readonly evaluation: number;
}

interface Case {
  readonly name: string;
  /** One of them must agree. */
  readonly tasks: readonly Task[];
  /** What it runs on. */
  readonly backends: readonly string[];
}

const FOLDER = process.env.COVERAGE ?? "";
const CASES: Case[] = JSON.parse(readFileSync(join(FOLDER, "index.json"), "utf-8"));

let site: Site;
let browser: Browser;
let page: Page;

beforeAll(async () => {
  site = await serve({ page: PAGE, cases: FOLDER });
  browser = await start();
  page = await browser.newPage();
  await page.goto(`${site.url}/page/tests/browser/kernel.html`);
  await page.waitForFunction("window.trainpool");
});

afterAll(async () => {
  await browser?.close();
  site?.close();
});

describe.each([
  ["wasm", 1e-4],
  ["webgpu", 5e-4],
] as const)("%s", (backend, bound) => {
  let runtime: JSHandle<Runtime>;
  let [worst, where] = [0, ""];

  afterAll(() => console.info(`${backend}: the largest difference is ${worst.toExponential(1)}, of ${where}`));

  beforeAll(async () => {
    runtime = await page.evaluateHandle(
      async (backend) => (backend === "wasm" ? trainpool.wasm(1) : (await trainpool.webgpu(true))!),
      backend,
    );
  });

  const cases = CASES.filter(({ backends }) => backends.includes(backend));

  test.each(cases)("$name", async ({ name, tasks }) => {
    expect(tasks).not.toEqual([]);
    for (const [number, { folder, rounding, evaluation }] of tasks.entries()) {
      const found = await train(folder, runtime);
      const { message, tensors } = decode(answer(folder), reportOf);
      const apart = {
        delta: relative(found.delta, values(tensors, "delta")),
        buffers: relative(found.buffers, values(tensors, "buffers")),
        loss: Math.abs(found.report.loss / message.loss - 1),
        evaluation: Math.abs(found.evaluation / evaluation - 1),
      };
      const most = Math.max(bound, 2 * rounding.delta);
      if (apart.delta > most && number < tasks.length - 1) continue;
      if (apart.delta > worst) [worst, where] = [apart.delta, name];
      expect(apart.delta, "the update").toBeLessThanOrEqual(most);
      expect(apart.buffers, "the buffers").toBeLessThanOrEqual(Math.max(bound, 2 * rounding.buffers));
      expect(apart.loss, "the mean loss").toBeLessThanOrEqual(bound);
      expect(apart.evaluation, "the evaluation's loss").toBeLessThanOrEqual(bound);
      return;
    }
  });
});

/** Train and evaluate, in the page. */
function train(folder: string, runtime: JSHandle<Runtime>) {
  return page.evaluate(
    async ({ folder, runtime }) => {
      const program = await trainpool.program(`/cases/${folder}/program`);
      const { task, vector, anchor, shard } = await trainpool.trial(`/cases/${folder}`);
      const kernel = await trainpool.Kernel.open(program, runtime);
      try {
        const { report, delta, buffers } = await kernel.run(task, vector, anchor, shard);
        const { loss } = await kernel.evaluate(vector, await trainpool.shard(`/cases/${folder}/test.safetensors`));
        return { report, delta: Array.from(delta), buffers: Array.from(buffers), evaluation: loss };
      } finally {
        await kernel.close();
      }
    },
    { folder, runtime },
  );
}

function answer(folder: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(readFileSync(join(FOLDER, folder, "report.safetensors")));
}

function values(tensors: Tensors, name: string): Float32Array {
  return tensors.get(name)!.values as Float32Array;
}
