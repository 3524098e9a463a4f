// The page itself: a volunteer's way from files to a report.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { reportOf, type Task, taskOf } from "../../src/messages";
import { decode, encode } from "../../src/safetensors";
import { PAGE } from "./build";
import { start } from "./chromium";
import { type Site, serve } from "./serve";

let site: Site;
let browser: Browser;
let page: Page;
let strangers: string[];
let complaints: string[];

beforeAll(async () => {
  site = await serve({ page: PAGE });
  browser = await start();
});

afterAll(async () => {
  await browser?.close();
  site?.close();
});

beforeEach(async () => {
  page = await browser.newPage();
  [strangers, complaints] = [[], []];
  page.on("request", (request) => {
    if (!/^(blob:|data:)/.test(request.url()) && !request.url().startsWith(site.url)) strangers.push(request.url());
  });
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(error.message));
  await page.goto(`${site.url}/page/index.html`);
});

afterEach(() => page.close());

function path(name: string): string {
  return fileURLToPath(new URL(`../../../vectors/tasks/${name}`, import.meta.url));
}

/** Choose a program's files, its task, with some fields changed, and a shard; then start. */
async function choose(program: string, { shard = program, ...changes }: Partial<Task> = {}): Promise<void> {
  const names = ["program.json", "train.onnx", "evaluate.onnx", "layout.json"];
  await page.locator("#program").setInputFiles(names.map((name) => path(`${program}/program/${name}`)));
  const { message, tensors } = decode(Uint8Array.from(readFileSync(path(`${program}/task.safetensors`))), taskOf);
  const buffer = Buffer.from(encode({ ...message, ...changes }, tensors));
  await page.locator("#task").setInputFiles({ name: "task.safetensors", mimeType: "application/octet-stream", buffer });
  await page.locator("#shard").setInputFiles(path(`${shard}/shard.safetensors`));
  await page.getByRole("button", { name: "Start" }).click();
}

/** The report, as the volunteer saves it. */
async function save() {
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("link", { name: "Save the report" }).click(),
  ]);
  return decode(Uint8Array.from(readFileSync(await download.path())), reportOf);
}

test("files become a report, without any other host", async () => {
  await choose("dense");
  await page.getByText("Done. Thank you").waitFor();
  expect(await page.locator("#steps").textContent()).toBe("20 of 20");
  expect(await page.locator("#backend").textContent()).toMatch(/^the processor \(WebAssembly\)/);
  expect(await page.locator("#why").textContent()).toBe("Chosen because: the browser offers no GPU.");
  const { message, tensors } = await save();
  const wanted = decode(Uint8Array.from(readFileSync(path("dense/report.safetensors"))), reportOf);
  expect(message).toMatchObject({ task: 5, steps: 20, samples: 200 });
  const [found, answer] = [tensors, wanted.tensors].map((all) => Array.from(all.get("delta")!.values as Float32Array));
  const apart = Math.hypot(...found!.map((value, i) => value - answer![i]!));
  expect(apart / Math.hypot(...answer!)).toBeLessThanOrEqual(1e-4);
  expect(tensors.get("buffers")!.values).toHaveLength(0);
  expect(strangers).toEqual([]);
  expect(complaints).toEqual([]);
});

test("a shard that is not the task's is refused, and the next attempt works", async () => {
  await choose("dense", { shard: "convolution" });
  await page.getByText("the shard is damaged or not the task's").waitFor();
  await choose("dense");
  await page.getByText("Done. Thank you").waitFor();
});

test.each([true, false])("a volunteer may stop a task (partial: %s)", async (partial) => {
  await choose("dense", { steps: 1_000_000, pace: 0, partial });
  await page.getByText(/^\d+ of 1000000$/).waitFor();
  await page.getByRole("button", { name: "Stop" }).click();
  if (partial) {
    await page.getByText("Done. Thank you").waitFor();
    const { message } = await save();
    expect(message.steps).toBeLessThan(1_000_000);
    expect(message).toMatchObject({ task: 5, samples: 10 * message.steps });
  } else {
    await page.getByText(/It did not work: stopped after \d+ of 1000000 steps\./).waitFor();
  }
  expect(await page.getByRole("button", { name: "Start" }).isEnabled()).toBe(true);
});

test("a volunteer may stop before the task has begun, and start again", async () => {
  await choose("dense");
  await page.getByText("Done. Thank you").waitFor();
  await page.evaluate(() => {
    document.querySelector("form")!.requestSubmit();
    document.getElementById("stop")!.click();
  });
  await page.getByText("It did not work: stopped before the first step.").waitFor();
  await page.getByRole("button", { name: "Start" }).click();
  await page.getByText("Done. Thank you").waitFor();
});

test("a GPU that is lost in mid-task does not lose the task", async () => {
  const worker = page.workers()[0] ?? (await page.waitForEvent("worker"));
  await worker.evaluate(() => {
    const { requestDevice } = GPUAdapter.prototype;
    GPUAdapter.prototype.requestDevice = async function (descriptor) {
      const device = await requestDevice.call(this, descriptor);
      Object.assign(self, { device });
      return device;
    };
  });
  await page.locator("#wanted").selectOption("webgpu");
  await choose("dense", { steps: 200 });
  await page.locator("#backend", { hasText: /^the graphics card/ }).waitFor({ timeout: 240_000 });
  await page.getByText(/^\d+ of 200$/).waitFor();
  await worker.evaluate(() => (self as unknown as { device: GPUDevice }).device.destroy());
  await page.getByText("Done. Thank you").waitFor();
  expect(await page.locator("#backend").textContent()).toMatch(/^the processor \(WebAssembly\)/);
  expect(await page.locator("#why").textContent()).toMatch(/^Chosen because: the GPU broke down: /);
  expect((await save()).message).toMatchObject({ steps: 200, samples: 2000 });
});

test("a program with a file of another's is refused in words", async () => {
  const names = ["dense/program/program.json", "convolution/program/train.onnx"];
  await page.locator("#program").setInputFiles(names.map(path));
  await page.locator("#task").setInputFiles(path("dense/task.safetensors"));
  await page.locator("#shard").setInputFiles(path("dense/shard.safetensors"));
  await page.getByRole("button", { name: "Start" }).click();
  await page.getByText(/It did not work: train\.onnx has [\d,]+ bytes, but the manifest says [\d,]+\./).waitFor();
});
