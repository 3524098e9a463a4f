import { expect, test } from "vitest";
import { batches, bits, derive, fold, key, noise, permutation, threefry, uniform } from "../src/rng";
import { json } from "./vectors";

type Seeded<T extends unknown[]> = [seed: string, ...rest: T];
const vectors = json<{
  fold: Seeded<[string, number[]]>[];
  derive: Seeded<[string[], number]>[];
  bits: Seeded<[number, string[]]>[];
  uniform: Seeded<[number, number[]]>[];
  permutation: Seeded<[number, number[]]>[];
  batches: [number, number, number, number, number, number[][]][];
  noise: [number, number, number, number[]][];
}>("rng.json");

test("threefry gives Random123's known answers", () => {
  const cases = [
    [0, 0, 0, 0, 0x6b200159, 0x99ba4efe],
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x1cb996fc, 0xbb002be7],
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xc4923a9c, 0x483df7a0],
  ] as const;
  for (const [c0, c1, k0, k1, ...answer] of cases) {
    const [x0, x1] = [Uint32Array.of(c0), Uint32Array.of(c1)];
    threefry([k0, k1], x0, x1);
    expect([x0[0], x1[0]]).toEqual(answer);
  }
});

test("keys are folded as in Python", () => {
  for (const [seed, data, answer] of vectors.fold) expect(fold(key(BigInt(seed)), BigInt(data))).toEqual(answer);
  for (const [seed, data, answer] of vectors.derive) expect(derive(BigInt(seed), ...data.map(BigInt))).toBe(answer);
});

test("numbers below 2**53 need no bigint", () => {
  for (const seed of [0, 12345, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1]) expect(key(seed)).toEqual(key(BigInt(seed)));
});

test("streams are Python's, beyond 2**32 elements too", () => {
  for (const [seed, start, answer] of vectors.bits) {
    const [high, low] = bits(key(BigInt(seed)), start, answer.length);
    const whole = Array.from(high, (word, i) => String((BigInt(word) << 32n) | BigInt(low[i]!)));
    expect(whole).toEqual(answer);
  }
  for (const [seed, start, answer] of vectors.uniform) {
    expect(Array.from(uniform(key(BigInt(seed)), start, answer.length))).toEqual(answer);
  }
});

test("permutations and batches are Python's", () => {
  for (const [seed, n, answer] of vectors.permutation) {
    expect(Array.from(permutation(key(BigInt(seed)), n))).toEqual(answer);
  }
  for (const [seed, samples, offset, steps, batch, answer] of vectors.batches) {
    expect(Array.from(batches(seed, samples, offset, steps, batch), (rows) => Array.from(rows))).toEqual(answer);
  }
});

test("noise is Python's", () => {
  for (const [seed, number, offset, answer] of vectors.noise) {
    expect(Array.from(noise(seed, number, offset, answer.length))).toEqual(answer);
  }
});
