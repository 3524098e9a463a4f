import { describe, expect, test } from "vitest";
import { distance } from "../src/choose";
import { ProgramError } from "../src/errors";
import { type Task, taskOf } from "../src/messages";
import { contents } from "../src/onnx-file";
import { fits, load } from "../src/program";
import { decode } from "../src/safetensors";
import { base64, bytes, json } from "./vectors";

interface Vector {
  name: string;
  files: Record<string, string>;
  id?: string;
  refused: string | null;
}
const vectors = json<Vector[]>("programs.json");
const NAMES = ["program.json", "train.onnx", "evaluate.onnx", "layout.json"];

function files({ files }: Vector): Map<string, Uint8Array<ArrayBuffer>> {
  return new Map(Object.entries(files).map(([name, text]) => [name, base64(text)]));
}

function folder(name: string): Map<string, Uint8Array<ArrayBuffer>> {
  return new Map(NAMES.map((file) => [file, bytes(`tasks/${name}/program/${file}`)]));
}

describe("programs", () => {
  const good = vectors.find(({ refused }) => refused === null)!;

  test("a good one is loaded, under its name", async () => {
    const program = await load(files(good), good.id);
    expect(program.id).toBe(good.id);
    expect([program.size, program.trainable]).toEqual([2, 2]);
  });

  for (const vector of vectors.filter(({ refused }) => refused !== null)) {
    test(`${vector.name} is refused in one line`, async () => {
      const error: Error = await load(files(vector)).then(
        () => new Error("it was not refused"),
        (error) => error,
      );
      expect(error.message).toContain(vector.refused);
      expect(error).toBeInstanceOf(ProgramError);
      expect(error.message).not.toContain("\n");
    });
  }

  test("another program than the expected one is refused", async () => {
    await expect(load(files(good), "0".repeat(64))).rejects.toThrow("program.json is not the program 000000000000…");
  });

  test("those that the lowering makes are loaded", async () => {
    const program = await load(folder("convolution"));
    expect(program.size).toBeGreaterThan(program.trainable);
    expect(program.manifest.noise).toHaveLength(2);
  });

  test("a file of nothing but small fields is refused before its end", () => {
    const file = new Uint8Array(4_000_003).fill(8).map((byte, i) => (i % 2 ? 0 : byte));
    expect(() => contents(file)).toThrow("more than 2,000,000 fields");
  });

  test("a graph cut anywhere is refused", () => {
    const file = base64(good.files["train.onnx"]!);
    const whole = JSON.stringify([...contents(file).operators]);
    for (let length = 0; length < file.length; length++) {
      try {
        const found = contents(file.slice(0, length));
        // What follows the graph may be missing: the reader then sees no difference, and the hash does.
        expect(JSON.stringify([...found.operators])).toBe(whole);
      } catch (error) {
        expect(error).toBeInstanceOf(ProgramError);
      }
    }
  });

  test("a task for another recipe, batch or precision is refused", async () => {
    const program = await load(folder("dense"));
    const task = decode(bytes("tasks/dense/task.safetensors"), taskOf).message;
    const other = (change: Partial<Task["recipe"]>) => ({ ...task, recipe: { ...task.recipe, ...change } });
    expect(() => fits(program, task)).not.toThrow();
    expect(() => fits(program, other({ momentum: 0.5, learning_rate: 1 }))).not.toThrow(); // AdamW has no use for it
    expect(() => fits(program, other({ optimizer: "sgd" }))).toThrow(
      "lowered for optimizer adamw, but the task wants sgd",
    );
    expect(() => fits(program, other({ betas: [0.9, 0.95] }))).toThrow("lowered for betas");
    expect(() => fits(program, other({ precision: "bfloat16" }))).toThrow("the program computes in float32");
    expect(() => fits(program, { ...task, batch: 11 })).toThrow("lowered for batches of 10, but the task wants 11");
  });
});

test("two updates are as far apart as their worse part, and infinitely where a number is none", () => {
  const of = (delta: number[], buffers: number[] = []) => {
    return { delta: Float32Array.from(delta), buffers: Float32Array.from(buffers) };
  };
  expect(distance(of([3, 4]), of([3, 4]))).toBe(0);
  expect(distance(of([3, 5]), of([3, 4]))).toBeCloseTo(0.2, 12);
  expect(distance(of([3, 4], [2]), of([3, 4], [1]))).toBe(1);
  expect(distance(of([Number.NaN]), of([1]))).toBe(Infinity);
  expect(distance(of([1], [-Infinity, 3]), of([1], [-Infinity, 2]))).toBe(0.5);
  expect(distance(of([1], [0]), of([1], [-Infinity]))).toBe(Infinity);
  expect(distance(of([1]), of([0]))).toBe(Infinity);
});
