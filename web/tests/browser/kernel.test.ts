// The kernel in Chromium, on WebAssembly and on WebGPU's software adapter, against PyTorch's updates.

import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { relative } from "../../src/choose";
import { reportOf } from "../../src/messages";
import { decode } from "../../src/safetensors";
import { bytes, json } from "../vectors";
import { PAGE } from "./build";
import { start } from "./chromium";
import type { Trainpool } from "./kernel";
import { type Site, serve } from "./serve";

declare const trainpool: Trainpool;
declare const gc: () => void;

let site: Site;
let browser: Browser;
let page: Page;

beforeAll(async () => {
  site = await serve({ page: PAGE, vectors: "../vectors" });
  browser = await start();
});

afterAll(async () => {
  await browser?.close();
  site?.close();
});

beforeEach(async () => {
  page = await browser.newPage();
  await page.addInitScript(watchMemory);
  await page.goto(`${site.url}/page/tests/browser/kernel.html`);
  await page.waitForFunction("window.trainpool");
});

afterEach(() => page.close());

/** Counts what a page holds of WebAssembly's memory and of the GPU's buffers. */
function watchMemory(): void {
  const held = { memories: [] as WebAssembly.Memory[], buffers: 0, devices: 0 };
  Object.assign(window, { held });
  const { Memory } = WebAssembly;
  WebAssembly.Memory = new Proxy(Memory, {
    construct(target, args: [WebAssembly.MemoryDescriptor]) {
      const memory = new target(...args);
      held.memories.push(memory);
      return memory;
    },
  });
  if (!("GPUDevice" in window)) return;
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const device = await requestDevice.call(this, descriptor);
    held.devices++;
    device.lost.then(() => held.devices--);
    return device;
  };
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    const { destroy } = buffer;
    let alive = true;
    held.buffers++;
    buffer.destroy = () => {
      if (alive) held.buffers--;
      alive = false;
      return destroy.call(buffer);
    };
    return buffer;
  };
}

for (const name of ["convolution", "dense"]) {
  for (const [backend, threads, bound] of [
    ["wasm", 1, 1e-4],
    ["wasm", 2, 1e-4],
    ["webgpu", 1, 5e-4],
  ] as const) {
    test(`${name} gives PyTorch's update on ${backend} with ${threads} threads`, async () => {
      const found = await page.evaluate(
        async ([name, backend, threads]) => {
          const program = await trainpool.program(`/vectors/tasks/${name}/program`);
          const { task, vector, anchor, shard } = await trainpool.trial(`/vectors/tasks/${name}`);
          const runtime = backend === "wasm" ? await trainpool.wasm(threads) : await trainpool.webgpu(true);
          const kernel = await trainpool.Kernel.open(program, runtime!);
          const before = Array.from(vector);
          const first = await kernel.run(task, vector, anchor, shard);
          const evaluation = await kernel.evaluate(vector, shard);
          return {
            used: [runtime!.backend, runtime!.threads],
            report: first.report,
            delta: Array.from(first.delta),
            buffers: Array.from(first.buffers),
            evaluation,
            untouched: before.every((value, i) => Object.is(value, vector[i])),
          };
        },
        [name, backend, threads] as const,
      );
      const { message, tensors } = decode(bytes(`tasks/${name}/report.safetensors`), reportOf);
      const evaluation = json<{ loss: number; accuracy: number; samples: number }>(`tasks/${name}/evaluation.json`);
      expect(found.used).toEqual([backend, threads]);
      expect(relative(found.delta, tensors.get("delta")!.values as Float32Array)).toBeLessThanOrEqual(bound);
      expect(relative(found.buffers, tensors.get("buffers")!.values as Float32Array)).toBeLessThanOrEqual(bound);
      expect(found.report).toMatchObject({ task: message.task, steps: message.steps, samples: message.samples });
      expect(Math.abs(found.report.loss / message.loss - 1)).toBeLessThanOrEqual(bound);
      expect(Math.abs(found.evaluation.loss / evaluation.loss - 1)).toBeLessThanOrEqual(bound);
      expect(found.evaluation).toMatchObject({ accuracy: evaluation.accuracy, samples: evaluation.samples });
      expect(found.untouched).toBe(true);
    });
  }
}

test("the same task gives the same bits again, and a partial answer is the shorter task's", async () => {
  const same = await page.evaluate(async () => {
    const program = await trainpool.program("/vectors/tasks/convolution/program");
    const { task, vector, shard } = await trainpool.trial("/vectors/tasks/convolution");
    const kernel = await trainpool.Kernel.open(program, await trainpool.wasm(1));
    const short = await kernel.run({ ...task, steps: 3 }, vector, undefined, shard);
    const again = await kernel.run({ ...task, steps: 3 }, vector, undefined, shard);
    const partial = await kernel.run(task, vector, undefined, shard, (steps) => steps < 3);
    return [again, partial].map(
      ({ report, delta }) => report.steps === 3 && delta.every((value, i) => Object.is(value, short.delta[i])),
    );
  });
  expect(same).toEqual([true, true]);
});

test("without an anchor the proximal term pulls to where the task began", async () => {
  const [same, none] = await page.evaluate(async () => {
    const program = await trainpool.program("/vectors/tasks/dense/program");
    const { task, vector, shard } = await trainpool.trial("/vectors/tasks/dense");
    const kernel = await trainpool.Kernel.open(program, await trainpool.wasm(1));
    const start = vector.slice(0, program.trainable);
    const { delta } = await kernel.run({ ...task, rho: 0.3 }, vector, undefined, shard);
    const there = await kernel.run({ ...task, rho: 0.3 }, vector, start, shard);
    const without = await kernel.run({ ...task, rho: 0 }, vector, undefined, shard);
    return [there, without].map((other) => other.delta.every((value, i) => Object.is(value, delta[i])));
  });
  expect([same, none]).toEqual([true, false]);
});

test("a task that fits no program, shard or vector is refused", async () => {
  const reasons = await page.evaluate(async () => {
    const program = await trainpool.program("/vectors/tasks/dense/program");
    const { task, vector, anchor, shard } = await trainpool.trial("/vectors/tasks/dense");
    const other = await trainpool.trial("/vectors/tasks/convolution");
    const kernel = await trainpool.Kernel.open(program, await trainpool.wasm(1));
    const broken = vector.slice().fill(Number.NaN);
    const tries = [
      () => kernel.run({ ...task, batch: 3 }, vector, anchor, shard),
      () => kernel.run(task, vector.slice(1), anchor, shard),
      () => kernel.run(task, vector, anchor!.slice(1), shard),
      () => kernel.run(task, vector, anchor, other.shard),
      () => kernel.run(task, broken, anchor, shard),
      () => kernel.evaluate(vector, new Map()),
    ];
    const found: string[] = [];
    for (const attempt of tries)
      found.push(
        await attempt().then(
          () => "done",
          (error) => error.message,
        ),
      );
    return found;
  });
  expect(reasons).toEqual([
    "the program was lowered for batches of 10, but the task wants 3",
    "the task's parameters have 194 elements, but the program has 195",
    "the anchor's parameters have 194 elements, but the program has 195",
    "the shard's x is U8 [1,8,8], but the program wants float32 [6]",
    "the loss is NaN at the first step: check the data and lower the learning rate",
    "the shard's x is missing, but the program wants float32 [6]",
  ]);
});

test.each([
  ["wasm", "convolution", 1000],
  ["webgpu", "convolution", 100], // the software adapter takes long
  ["webgpu", "dense", 1000],
] as const)("many steps take no more memory than ten, evaluations included: %s, %s", async (backend, name, most) => {
  const [before, after] = await page.evaluate(
    async ([backend, name, most]) => {
      const program = await trainpool.program(`/vectors/tasks/${name}/program`);
      const { task, vector, anchor, shard } = await trainpool.trial(`/vectors/tasks/${name}`);
      const runtime = backend === "wasm" ? await trainpool.wasm(1) : await trainpool.webgpu(true);
      const kernel = await trainpool.Kernel.open(program, runtime!);
      const { held } = window as unknown as { held: { memories: WebAssembly.Memory[]; buffers: number } };
      const sizes: { wasm: number; buffers: number; heap: number }[] = [];
      for (const steps of [10, most]) {
        await kernel.run({ ...task, steps, pace: 0.0001 }, vector, anchor, shard);
        for (let i = 0; i < steps / 10; i++) await kernel.evaluate(vector, shard);
        gc();
        sizes.push({
          wasm: held.memories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0),
          buffers: held.buffers,
          heap: (performance as unknown as { memory: { usedJSHeapSize: number } }).memory.usedJSHeapSize,
        });
      }
      return sizes;
    },
    [backend, name, most] as const,
  );
  expect(before!.wasm).toBeGreaterThan(1e6);
  expect(after!.wasm).toBe(before!.wasm);
  expect(before!.buffers > 0).toBe(backend === "webgpu");
  expect(after!.buffers).toBe(before!.buffers);
  expect(after!.heap - before!.heap).toBeLessThan(2e6);
});

test("a GPU is used if its first step agrees with WebAssembly's, and a software one only if asked for", async () => {
  const choices = await page.evaluate(async () => {
    const program = await trainpool.program("/vectors/tasks/dense/program");
    const trial = await trainpool.trial("/vectors/tasks/dense");
    const found: string[] = [];
    const choose = async (wanted: "auto" | "webgpu" | "wasm") => {
      const { kernel, why } = await trainpool.choice.choose(program, wanted, trial, 1);
      found.push(`${kernel.runtime.backend}: ${why}`);
      await trainpool.choice.discard(kernel);
    };
    await choose("auto");
    await choose("wasm");
    await choose("webgpu");
    const { writeBuffer } = GPUQueue.prototype;
    GPUQueue.prototype.writeBuffer = function (buffer, at, data) {
      // A GPU that loses the parameters; what the runtime itself writes goes through.
      if (!(data instanceof Float32Array)) writeBuffer.call(this, buffer, at, data as BufferSource);
    };
    await choose("webgpu");
    GPUAdapter.prototype.requestDevice = () => Promise.reject(new Error("the driver is gone"));
    await choose("webgpu");
    const { held } = window as unknown as { held: { devices: number } };
    found.push(`${held.devices} devices left`);
    return found;
  });
  expect(choices[0]).toBe("wasm: the browser offers no GPU");
  expect(choices[1]).toBe("wasm: WebAssembly was asked for");
  expect(choices[2]).toMatch(/^webgpu: its first step agrees with WebAssembly's \(difference \d/);
  expect(choices[3]).toMatch(/^wasm: the GPU's first step differs from WebAssembly's \(by \d/);
  expect(choices[4]).toBe("wasm: the GPU does not run this program: the driver is gone");
  expect(choices[5]).toBe("0 devices left");
});
