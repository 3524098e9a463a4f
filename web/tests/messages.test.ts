import { describe, expect, test } from "vitest";
import { MessageError } from "../src/errors";
import { type Check, type Recipe, rate, reportOf, taskOf } from "../src/messages";
import { decode, encode } from "../src/safetensors";
import { base64, bytes, json } from "./vectors";

interface Vector {
  name: string;
  kind: "task" | "report";
  file: string;
  refused?: string;
  message?: object;
  tensors?: Record<string, { shape: number[]; values: string[] }>;
}
const vectors = json<Vector[]>("messages.json");
const checks = { task: taskOf, report: reportOf } satisfies Record<string, Check<object>>;

/** An element as Python prints it. */
function shown(value: number | bigint, kind: string): string {
  if (kind === "BOOL") return value ? "True" : "False";
  return /^F/.test(kind) ? String(Number(value)) : String(value);
}

describe("messages", () => {
  for (const { name, kind, file, message, tensors } of vectors.filter(({ refused }) => !refused)) {
    test(`${name} is read as Python reads it, and survives a copy`, () => {
      const first = decode<object>(base64(file), checks[kind]);
      for (const read of [first, decode<object>(encode(first.message, first.tensors), checks[kind])]) {
        expect(read.message).toEqual(message);
        expect([...read.tensors.keys()].sort()).toEqual(Object.keys(tensors!).sort());
        for (const [key, tensor] of read.tensors) {
          expect(tensor.shape).toEqual(tensors![key]!.shape);
          const wanted = tensors![key]!.values.map((v) => (/^F/.test(tensor.kind) ? String(Number(v)) : v));
          expect(Array.from(tensor.values as Iterable<number | bigint>, (v) => shown(v, tensor.kind))).toEqual(wanted);
        }
      }
    });
  }

  for (const { name, kind, file, refused } of vectors.filter(({ refused }) => refused)) {
    test(`${name} is refused in one line`, () => {
      const error = thrown(() => decode<object>(base64(file), checks[kind]));
      expect(error).toBeInstanceOf(MessageError);
      expect(error.message).toContain(refused);
      expect(error.message).toMatch(/^not a trainpool message: .{1,300}$/);
    });
  }

  test("any cut of a file is refused", () => {
    const file = bytes("tasks/dense/report.safetensors");
    for (let length = 0; length < file.length; length++) {
      expect(() => decode(file.slice(0, length), reportOf)).toThrow(MessageError);
    }
  });

  test("a file in the midst of other memory is read as well", () => {
    const file = bytes("tasks/dense/report.safetensors");
    const shifted = new Uint8Array(file.length + 3);
    shifted.set(file, 3);
    expect(decode(shifted.subarray(3), reportOf)).toEqual(decode(file, reportOf));
  });

  test("numbers that float64 does not carry are refused", () => {
    const report = { task: 2 ** 53, steps: 1, samples: 1, loss: 0, seconds: 0 };
    expect(() => reportOf(report, "$")).toThrow("$.task");
    expect(() => reportOf({ ...report, task: 0.5 }, "$")).toThrow("$.task");
    expect(() => reportOf({ ...report, task: 1, loss: Number.NaN }, "$")).toThrow("$.loss");
  });
});

test("learning rates are Python's", () => {
  const rates = json<[Recipe, [number, number][]][]>("rates.json");
  for (const [recipe, steps] of rates) {
    for (const [progress, answer] of steps) expect(rate(recipe, progress)).toBeCloseTo(answer, 15);
  }
});

function thrown(act: () => unknown): Error {
  try {
    act();
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing was thrown");
}
